#!/usr/bin/env python3
"""Draws a small data set for detection and segmentation: no download needed.

    python tools/make_shapes.py [--out DIR] [--train 1600] [--val 80] [--size 160]
                                [--seed 0] [--force]

writes the pictures, COCO's annotations and semantic masks (`shapes_writing.py` has the
list), and `DIR/shapes.json`, which says what the set was drawn with. The same
arguments give the same bytes. What the pictures hold is decided in `shapes_drawing.py`.

The set appears at `DIR` whole or not at all, and any number of processes may ask for
it at once (`ensure_shapes`): one draws, the others wait.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from mmlit_tools.shapes.dataset import SPLITS, is_written, write_shapes

try:
    import fcntl
except ImportError:  # Windows: works, but one process at a time.
    fcntl = None

DEFAULT_OUT = Path(__file__).resolve().parents[2] / 'data' / 'shapes'
MANIFEST = 'shapes.json'
# Raise it when the same arguments begin to give other pictures.
DRAWING_VERSION = 2


def ensure_shapes(
    out: str | Path = DEFAULT_OUT,
    train: int = 1600,
    val: int = 80,
    size: int = 160,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Returns the folder of the data set with these parameters, drawing it if needed.

    A set that was drawn with other parameters is refused, not replaced.
    """
    return _prepare(Path(out), _parameters(train, val, size, seed), False, progress)


def make_shapes(
    out: str | Path = DEFAULT_OUT,
    train: int = 1600,
    val: int = 80,
    size: int = 160,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Draws the data set anew, in place of an earlier one if there is one."""
    return _prepare(Path(out), _parameters(train, val, size, seed), True, progress)


def _parameters(train: int, val: int, size: int, seed: int) -> dict[str, int]:
    ranges = {
        'train': (train, 1, 999_999),
        'val': (val, 1, 999_999),
        'size': (size, 64, 2048),
        'seed': (seed, 0, 2**32 - 1),
    }
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f'{name} must be a whole number, got {value!r}')
        if not low <= value <= high:
            raise ValueError(f'{name} must be from {low} to {high}, got {value}')
    values = {name: value for name, (value, _, _) in ranges.items()}
    return {'drawing_version': DRAWING_VERSION, **values}


def _prepare(out: Path, parameters: dict, replace: bool, progress: bool) -> Path:
    out = out.expanduser().resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        # We hold the lock, so what lies here was left by a process that was killed.
        for leftover in out.parent.glob(f'.{glob.escape(out.name)}.*.tmp'):
            shutil.rmtree(leftover)
        found = _read_manifest(out)
        if not replace and found == parameters and _is_complete(out, parameters):
            return out
        if not replace and found is not None and found != parameters:
            raise ValueError(_difference(out, found, parameters))
        # These names match the pattern above, so that a kill leaves no litter for long.
        fresh = out.with_name(f'.{out.name}.new-{os.getpid()}.tmp')
        old = out.with_name(f'.{out.name}.old-{os.getpid()}.tmp')
        write_shapes(fresh, parameters, progress)
        manifest = json.dumps(parameters, indent=2) + '\n'
        (fresh / MANIFEST).write_text(manifest)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    return out


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Lets one process at a time prepare `out`; a killed one lets go of it."""
    # The file stays: removing it would let two processes lock two different files.
    with open(out.with_name(f'.{out.name}.lock'), 'w') as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f'Waiting for another process to draw {out}', flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_manifest(out: Path) -> dict | None:
    """What the set at `out` was drawn with; None where there is nothing.

    Raises where there is something that this tool did not write, and so must not
    replace.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / MANIFEST).read_text())
        found['drawing_version']
        return found
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(
            f'{out} holds something other than a shapes data set '
            f'(no readable {MANIFEST}); give an empty or new folder as out'
        ) from None


def _is_complete(out: Path, parameters: dict) -> bool:
    return all(is_written(out, split, parameters[split]) for split in SPLITS)


def _difference(out: Path, found: dict, wanted: dict) -> str:
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return (
        f'{out} was drawn with '
        + ', '.join(f'{name}={found.get(name)}' for name in names)
        + ', but wanted is '
        + ', '.join(f'{name}={wanted[name]}' for name in names)
        + '; remove the folder, draw it anew with tools/make_shapes.py --force, or '
        'give another folder as out'
    )


def main(arguments: list[str] | None = None) -> None:
    """Draws what the command line asks for."""
    parser = argparse.ArgumentParser(
        description='Draws a small data set for detection and segmentation.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default=DEFAULT_OUT, help='folder to write')
    parser.add_argument('--train', type=int, default=1600, help='training images')
    parser.add_argument('--val', type=int, default=80, help='validation images')
    parser.add_argument('--size', type=int, default=160, help='image side in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--force', action='store_true', help='draw anew what is there already'
    )
    args = vars(parser.parse_args(arguments))
    make = make_shapes if args.pop('force') else ensure_shapes
    try:
        print(f'The data set is at {make(**args)}')
    except (ValueError, OSError) as error:
        sys.exit(f'make_shapes: {error}')


if __name__ == '__main__':
    main()
