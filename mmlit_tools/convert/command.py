"""Convert a checkpoint file between the authors' layout and mmlit's.

    python tools/convert_checkpoint.py lit_s.pth lit_s_mmlit.pth
    python tools/convert_checkpoint.py mask_rcnn_lit_s.pth --dry-run
    python tools/convert_checkpoint.py --to-official epoch_12.pth mine.pth

Classifiers, detectors and segmentors are taken; necks and heads pass through. mmlit
loads the authors' files as they are, so that none has to be converted; a converted file
holds the weights alone and says what it was made from. Nothing in SRC is run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmlit import __version__
from mmlit.archs import ARCHS
from mmlit.arguments import check_img_size
from mmlit.errors import UserError
from mmlit.models.lit import MIN_IMG_SIZE
from mmlit_tools.cli import check_out_file, command, write_file
from mmlit_tools.convert.conversion import Result, convert_to_mmlit, convert_to_official
from mmlit_tools.models import classes_of, open_checkpoint, weights_of


@command('convert_checkpoint.py')
def main(arguments: list[str] | None = None) -> None:
    """Convert as the command line says."""
    args = parse_args(arguments)
    check_paths(args)
    convert = convert_to_official if args.to_official else convert_to_mmlit
    screen = Console(stderr=True)
    with Progress(console=screen, disable=not screen.is_terminal) as progress:
        task = progress.add_task('Reading', total=None)
        checkpoint = open_checkpoint(str(args.src))
        progress.update(task, description='Converting')
        try:
            result = convert(weights_of(checkpoint), args.img_size)
        except ValueError as error:
            raise UserError(f'{args.src} cannot be converted: {error}') from error
        if not args.dry_run:
            content = pack(checkpoint, result, args)
            progress.update(task, description='Writing', total=len(content))
            write_file(
                args.dst, content, args.force, lambda done: progress.advance(task, done)
            )
    if args.dry_run:
        show(result, args)
    print(describe(result, args))


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'convert_checkpoint.py',
        description="Convert a checkpoint from the authors' layout to mmlit's.",
    )
    parser.add_argument('src', type=Path, help='the file to convert')
    parser.add_argument(
        'dst', type=Path, nargs='?', help='the file to write (not with --dry-run)'
    )
    parser.add_argument(
        '--img-size',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='resize the relative position tables to this reference size, one number '
        'or height and width: 800 in detection, 512 in segmentation',
    )
    parser.add_argument(
        '--to-official',
        action='store_true',
        help="the other way: from mmlit's layout to what the authors' code loads",
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='write nothing; print what would become of each key as a table',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace DST if it is there'
    )
    args = parser.parse_args(arguments)
    if args.dst is None and not args.dry_run:
        parser.error('DST is missing: the file to write (or give --dry-run)')
    if args.img_size is not None:
        sides = args.img_size * 2 if len(args.img_size) == 1 else args.img_size
        try:
            args.img_size = check_img_size(sides, MIN_IMG_SIZE)
        except (TypeError, ValueError) as error:
            parser.error(f'--img-size: {error}')
    return args


def check_paths(args: argparse.Namespace) -> None:
    """Raise UserError before the work if its result could not be written."""
    if not args.src.is_file():
        raise UserError(f'SRC {args.src} does not exist or is not a file')
    if args.dry_run:
        return
    if args.dst.exists() and args.dst.samefile(args.src):
        raise UserError(f'DST {args.dst} is SRC itself; give another name')
    check_out_file(args.dst, 'DST', args.force)


def pack(
    checkpoint: Mapping[str, Any], result: Result, args: argparse.Namespace
) -> memoryview:
    """Return the bytes of the new file.

    The authors' classification code looks for `model`; mmcv 1.x, under their detectors
    and segmentors, for `state_dict` and `meta`, as do mmengine and mmlit.
    """
    digest = hashlib.sha256()
    with args.src.open('rb') as file:
        for chunk in iter(lambda: file.read(1 << 22), b''):
            digest.update(chunk)
    meta = dict(
        source=args.src.name,
        sha256=digest.hexdigest(),
        arch=result.arch if result.arch in ARCHS else None,
        img_size=result.img_size,
        mmlit_version=__version__,
    )
    # Without them mmdet's and mmseg's `init_detector`, `init_model` take the classes of
    # COCO and Cityscapes. mmcv 1.x has them in capitals.
    classes = classes_of(checkpoint)
    if args.to_official:
        meta.update({key.upper(): value for key, value in classes.items()})
    elif classes:
        meta['dataset_meta'] = classes
    weights = OrderedDict(
        (key, value.clone() if isinstance(value, torch.Tensor) else value)
        for key, value in result.state.items()
    )
    container = 'model' if args.to_official and not result.prefix else 'state_dict'
    buffer = io.BytesIO()
    torch.save({'meta': meta, container: weights}, buffer)
    return buffer.getbuffer()


def show(result: Result, args: argparse.Namespace) -> None:
    """Print what becomes of each key."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # A line a key: nothing wraps a file.
    table = Table(title=f'{args.src.name}, LIT {result.arch}')
    for title in ('key', 'becomes', 'shape', ''):
        table.add_column(title, overflow='fold')
    for row in result.rows:
        table.add_row(row.source, row.target, row.shape, row.note)
    console.print(table)


def describe(result: Result, args: argparse.Namespace) -> str:
    """Return a line on the conversion."""
    size = ''
    if result.img_size:
        size = ', reference size ' + ' x '.join(map(str, result.img_size))
    end = 'nothing is written' if args.dry_run else f'written to {args.dst}'
    return f'LIT {result.arch}{size}: {result.counts()}; {end}'
