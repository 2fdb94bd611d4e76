#!/usr/bin/env python3
"""Converts a checkpoint file between the authors' layout and mmlit's.

    python tools/convert_checkpoint.py lit_s.pth lit_s_mmlit.pth
    python tools/convert_checkpoint.py mask_rcnn_lit_s.pth --dry-run
    python tools/convert_checkpoint.py --to-official epoch_12.pth mine.pth

mmlit loads the authors' files as they are, so that none has to be converted; what is
converted holds the weights alone, says what it was made from, and needs no care when it
is read. Classifiers, detectors and segmentors are taken; necks and heads pass through.
Nothing in SRC is run.
"""

import argparse
import hashlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Mapping

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmlit import __version__, read_checkpoint
from mmlit.archs import ARCHS
from mmlit.arguments import check_img_size
from mmlit.checkpoints.atomic import write_whole
from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError
from mmlit.models.lit import MIN_IMG_SIZE
from mmlit_tools.configs import stop
from mmlit_tools.convert.conversion import Result, convert_to_mmlit, convert_to_official


def main() -> None:
    """Converts what the command line asks for."""
    args = parse_args()
    check_paths(args)
    convert = convert_to_official if args.to_official else convert_to_mmlit
    screen = Console(stderr=True)
    try:
        with Progress(console=screen, disable=not screen.is_terminal) as progress:
            task = progress.add_task('Reading', total=None)
            checkpoint = read_checkpoint(args.src)
            progress.update(task, description='Converting')
            result = convert(weights_of(checkpoint), args.img_size)
            if not args.dry_run:
                content = pack(checkpoint, result, args)
                progress.update(task, description='Writing', total=len(content))
                write_whole(
                    args.dst,
                    content,
                    args.force,
                    lambda written: progress.advance(task, written),
                )
    except (UnsafeCheckpointError, BrokenCheckpointError, OSError) as error:
        stop(str(error))
    except ValueError as error:
        stop(f'{args.src} cannot be converted: {error}')
    if args.dry_run:
        show(result, args)
    print(describe(result, args))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint from the authors' layout to mmlit's."
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
    args = parser.parse_args()
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
    """Stops before the work where its result could not be written."""
    if not args.src.is_file():
        stop(f'SRC {args.src} does not exist or is no file')
    if args.dry_run:
        return
    if args.dst.is_dir():
        stop(f'DST {args.dst} is a folder; give the file to write')
    if not args.dst.parent.is_dir():
        stop(f'the folder of DST {args.dst} does not exist')
    if args.dst.exists() and args.dst.samefile(args.src):
        stop(f'DST {args.dst} is SRC itself; give another name')
    if args.dst.exists() and not args.force:
        stop(f'DST {args.dst} exists; --force replaces it')


def weights_of(checkpoint: Dict[str, Any]) -> Mapping[str, Any]:
    """The state dict of a checkpoint: that of mmengine and mmcv, the authors', its own.

    Raises:
        ValueError: The checkpoint holds no weights at all.
    """
    for container in ('state_dict', 'model'):
        if isinstance(checkpoint.get(container), dict):
            return checkpoint[container]
    if not any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        raise ValueError(
            'it holds no weights: neither state_dict nor model is among its entries '
            + (', '.join(map(str, list(checkpoint)[:8])) or '(there are none)')
        )
    return checkpoint


def pack(
    checkpoint: Dict[str, Any], result: Result, args: argparse.Namespace
) -> memoryview:
    """The bytes of the new file.

    The authors' classification code looks for `model`; mmcv 1.x, under their detectors
    and segmentors, for `state_dict` and `meta`, as do mmengine and mmlit.
    """
    with args.src.open('rb') as file:
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(1 << 22), b''):
            digest.update(chunk)
    meta = dict(
        source=args.src.name,
        sha256=digest.hexdigest(),
        arch=result.arch if result.arch in ARCHS else None,
        img_size=result.img_size,
        mmlit_version=__version__,
    )
    meta.update(class_names(checkpoint.get('meta'), args.to_official))
    weights = OrderedDict(
        (key, value.clone() if isinstance(value, torch.Tensor) else value)
        for key, value in result.state.items()
    )
    where = 'model' if args.to_official and not result.prefix else 'state_dict'
    buffer = io.BytesIO()
    torch.save({'meta': meta, where: weights}, buffer)
    return buffer.getbuffer()


def class_names(meta: Any, to_official: bool) -> Dict[str, Any]:
    """The names and colours of a detector's classes, as mmcv 1.x or mmengine keep them.

    Without them mmdet's and mmseg's `init_detector`, `init_model` take those of COCO
    and of Cityscapes.
    """
    meta = meta if isinstance(meta, dict) else {}
    known = meta.get('dataset_meta', meta)
    known = known if isinstance(known, dict) else {}
    known = {str(key).lower(): value for key, value in known.items()}
    kept = {key: known[key] for key in ('classes', 'palette') if known.get(key)}
    if to_official:
        return {key.upper(): value for key, value in kept.items()}
    return {'dataset_meta': kept} if kept else {}


def show(result: Result, args: argparse.Namespace) -> None:
    """Prints what becomes of each key."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # No terminal wraps a file: one line a key.
    table = Table(title=f'{args.src.name}, LIT {result.arch}')
    for title in ('key', 'becomes', 'shape', ''):
        table.add_column(title, overflow='fold')
    for row in result.rows:
        table.add_row(row.source, row.target, row.shape, row.note)
    console.print(table)


def describe(result: Result, args: argparse.Namespace) -> str:
    """One line on what was done."""
    size = ''
    if result.img_size:
        size = ', reference size ' + ' x '.join(map(str, result.img_size))
    end = 'nothing is written' if args.dry_run else f'written to {args.dst}'
    return f'LIT {result.arch}{size}: {result.counts()}; {end}'


if __name__ == '__main__':
    main()
