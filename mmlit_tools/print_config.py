"""Print a config as one flat file, without bases.

    python tools/print_config.py CONFIG [--cfg-options KEY=VALUE ...] [--out FILE.py]

The file gives the same config when mmengine, mmdet or mmseg loads it. Variables are
replaced by their values, so that changing `data_root` in it changes nothing else. Paths
that CONFIG derives from its own place (`{{ fileDirname }}`) become absolute; they are
listed, and `--cfg-options` sets others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pprint import pformat

from mmengine.config import Config

from mmlit.errors import UserError, spell_error
from mmlit_tools.cli import add_config_options, check_out_file, command, write_file
from mmlit_tools.configs import read_settings


@command('print_config.py')
def main(arguments: list[str] | None = None) -> None:
    """Print the config, or write it to a file."""
    parser = argparse.ArgumentParser(
        'print_config.py', description='Print a config without bases.'
    )
    add_config_options(parser)
    parser.add_argument(
        '--out', type=Path, metavar='FILE.py', help='file to write (default: screen)'
    )
    parser.add_argument(
        '--force', action='store_true', help='replace FILE.py if it is there already'
    )
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_out_file(args.out, '--out', args.force, '.py')
    config = read_settings(args)
    text = flatten(config)
    absolute = [f'{key}={value}' for key, value in absolute_paths(config.to_dict())]
    if absolute:
        print('Absolute paths in it: ' + ', '.join(absolute), file=sys.stderr)
    if args.out is None:
        print(text, end='')
    else:
        write_file(args.out, text.encode(), args.force)


def flatten(config: Config) -> str:
    """Return the text of a config without bases.

    Raises:
        UserError: The text would not give the same config again.
    """
    try:
        text = config.pretty_text.rstrip() + '\n'
        again = Config.fromstring(text, '.py').to_dict()
    except Exception as error:  # The text is code, which may fail in any way.
        raise UserError(f'CONFIG has no flat form: {spell_error(error)}') from error
    before = config.to_dict()
    for key in sorted({*before, *again}):
        # As text: 1 is not True there, nor a list a tuple.
        found, wanted = pformat(again.get(key)), pformat(before.get(key))
        if found != wanted:
            raise UserError(
                f'CONFIG has no flat form: {key}={wanted} would become {found}'
            )
    return text


def absolute_paths(node, key: str = '') -> Iterator[tuple[str, str]]:
    """Yield the settings that are absolute paths: (key, path)."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from absolute_paths(child, f'{key}.{name}' if key else str(name))
    elif isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from absolute_paths(child, f'{key}.{number}')
    elif isinstance(node, str) and os.path.isabs(node):
        yield key, node
