#!/usr/bin/env python3
"""Writes a config as one flat file, without bases: all that it says, in one place.

    python tools/print_config.py CONFIG [--cfg-options KEY=VALUE ...] [--out FILE.py]

on the screen, or to FILE.py, which mmengine, mmdet and mmseg load alone and which gives
what CONFIG gives. Variables are gone: their values stand wherever they were used, so
that setting `data_root` later changes nothing else. Paths that CONFIG derives from its
own place (`{{ fileDirname }}`) are absolute in the result; they are listed, and the way
to write another is `--cfg-options`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmlit_tools.configs import add_config_options, read_settings, stop


def main() -> None:
    """Writes what the command line asks for."""
    args = parse_args()
    if args.out is not None:
        check_out(args.out, args.force)
    config = read_settings(args)
    text = flatten(config)
    machine = [f'{key}={value}' for key, value in absolute_paths(config.to_dict())]
    if machine:
        print('Absolute paths in it: ' + ', '.join(machine), file=sys.stderr)
    if args.out is None:
        print(text, end='')
        return
    from mmlit.checkpoints.atomic import write_whole  # mmlit takes seconds to import

    try:
        write_whole(args.out, memoryview(text.encode()), args.force, lambda _: None)
    except OSError as error:
        stop(f'--out {args.out}: {error}')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Write a config without bases.')
    add_config_options(parser)
    parser.add_argument(
        '--out', type=Path, metavar='FILE.py', help='file to write (default: screen)'
    )
    parser.add_argument(
        '--force', action='store_true', help='replace FILE.py if it is there already'
    )
    return parser.parse_args()


def check_out(out: Path, force: bool) -> None:
    """Stops where the file cannot be written, or would be in the place of another."""
    if out.suffix != '.py':
        stop(f'--out must end in .py, got {out}')
    if not out.parent.is_dir():
        stop(f'--out {out}: there is no folder {out.parent} (seen from {os.getcwd()})')
    if out.is_dir() or (out.exists() and not force):
        stop(f'--out {out} exists already; --force replaces a file')


def flatten(config: Config) -> str:
    """The text of a config without bases.

    Stops where the text would not give the same config again: not all that Python can
    hold can be written down.
    """
    try:
        text = config.pretty_text.rstrip() + '\n'
        again = Config.fromstring(text, '.py')
    except Exception as error:
        # The text is code, which may fail in any way.
        stop(f'the config cannot be written flat: {type(error).__name__}: {error}')
    for key in sorted({*config, *again}):
        if not _same(config.get(key), again.get(key)):
            stop(
                f'the config cannot be written flat: {key}={config.get(key)!r} would '
                f'become {again.get(key)!r}'
            )
    return text


def absolute_paths(node, key: str = '') -> Iterator[tuple[str, str]]:
    """The settings that are absolute paths, those of this machine: (key, path)."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from absolute_paths(child, f'{key}.{name}' if key else str(name))
    elif isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from absolute_paths(child, f'{key}.{number}')
    elif isinstance(node, str) and os.path.isabs(node):
        yield key, node


def _same(one, other) -> bool:
    """Equality that tells a list from a tuple, and holds for nan."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


if __name__ == '__main__':
    main()
