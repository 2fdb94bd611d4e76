"""Draw what LIT does with images: sampling points, attention, level maps.

    python tools/visualize.py offsets IMAGE... --config CFG --checkpoint CKPT
    python tools/visualize.py attention IMAGE... --config CFG --query 320,200
    python tools/visualize.py features IMAGE... --config CFG --max-side 640

PNGs in --out-dir, and `index.html`, one file that works offline: click a pixel and see
its attention and its sampling points. Without --checkpoint the weights are initial
ones; nothing is downloaded. docs/visualisation.md shows what comes out.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmengine.utils import track_iter_progress

from mmlit.errors import UserError
from mmlit_tools.cli import add_cfg_options, check_file, command
from mmlit_tools.configs import read_config
from mmlit_tools.visualize.model import open_subject
from mmlit_tools.visualize.page import describe, write_page
from mmlit_tools.visualize.pictures import write_pictures

PAGE = 'index.html'
#: At 1333x800 the last block of each stage fits, of any LIT.
PAGE_MB = 12.0


@command('visualize.py')
def main(arguments: list[str] | None = None) -> None:
    """Draw the pictures that the command line asks for."""
    args = parse_args(arguments)
    check_paths(args)
    subject = open_subject(read_config(args), args.checkpoint, args.max_side)
    print(f'Weights: {subject.weights}')
    entries, count = [], 0
    for path in track_iter_progress(args.images):
        try:
            image, result = subject.probe(path)
            count += write_pictures(args, path.stem, image, result)
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: {error}') from error
        if args.page:
            entries.append(describe(path.stem, image, result, args.page_mb))
    if args.page:
        try:
            print(write_page(args.out_dir / PAGE, entries, subject.weights))
        except OSError as error:
            raise UserError(f'{args.out_dir / PAGE}: {error}') from error
    print(f'{count} PNGs are in {args.out_dir}')


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'visualize.py', description='Draw what LIT does with images.'
    )
    parser.add_argument(
        'what',
        choices=['offsets', 'attention', 'features'],
        help='offsets: where each merged token sampled; attention: what one pixel '
        'attends to, per stage, block and head; features: the level maps, as norms and '
        'as first three principal components',
    )
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
    parser.add_argument(
        '--config', required=True, help="a config of mmdet's or mmseg's with a LIT"
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--checkpoint',
        help="weights of the whole model or of LIT alone, mmlit's or the authors' "
        '(default: initial weights)',
    )
    parser.add_argument('--out-dir', type=Path, required=True, help='folder to write')
    parser.add_argument(
        '--max-side',
        type=int,
        metavar='PIXELS',
        help="resize images to this longer side (default: the config's test scale)",
    )
    parser.add_argument(
        '--stage',
        type=_numbers,
        metavar='N,...',
        help='stages 0-3 to draw (default: all); an offset belongs to the stage that '
        'the merged token enters',
    )
    parser.add_argument(
        '--block', type=_numbers, metavar='N,...', help='blocks of a stage, from 0'
    )
    parser.add_argument(
        '--head', type=_numbers, metavar='N,...', help='heads of a block, from 0'
    )
    parser.add_argument(
        '--query',
        type=_pair,
        metavar='X,Y',
        help='pixel of the image that attends (default: its middle)',
    )
    parser.add_argument(
        '--cells',
        type=_pair,
        nargs='+',
        metavar='ROW,COL',
        help='draw the offsets of these merged tokens alone; needs one --stage',
    )
    parser.add_argument(
        '--no-page', dest='page', action='store_false', help=f'write no {PAGE}'
    )
    parser.add_argument(
        '--page-mb',
        type=float,
        default=PAGE_MB,
        metavar='MB',
        help='size that each image may have on the page; what attention does not fit '
        'is left out and named on it (default: %(default)s)',
    )
    args = parser.parse_args(arguments)
    check_options(parser, args)
    return args


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit at options that do not go together, or would do nothing."""
    used = {
        'offsets': ('stage', 'cells'),
        'attention': ('stage', 'block', 'head', 'query'),
        'features': ('stage',),
    }
    for name in ('stage', 'block', 'head', 'query', 'cells'):
        if getattr(args, name) is not None and name not in used[args.what]:
            parser.error(f'--{name} has no meaning for {args.what}')
    stages = {'offsets': (1, 2, 3), 'attention': (2, 3), 'features': (0, 1, 2, 3)}
    for stage in args.stage or ():
        if stage not in stages[args.what]:
            valid = ', '.join(map(str, stages[args.what]))
            parser.error(f'--stage {stage}: {args.what} has the stages {valid}')
    if args.cells is not None and len(args.stage or ()) != 1:
        parser.error('--cells needs one --stage: a cell is a row and column of its map')
    if args.max_side is not None and args.max_side < 32:
        parser.error(f'--max-side must be at least 32, got {args.max_side}')
    if not args.page_mb > 0:
        parser.error(f'--page-mb must be above 0, got {args.page_mb}')


def check_paths(args: argparse.Namespace) -> None:
    """Raise UserError if inputs are missing or outputs cannot be written."""
    check_file(args.config, 'config')
    if args.checkpoint is not None:
        check_file(args.checkpoint, 'checkpoint')
    stems = {}
    for path in args.images:
        check_file(str(path), 'image')
        if path.stem in stems:
            raise UserError(
                f'{stems[path.stem]} and {path} would have pictures of the same name; '
                'draw them into different folders'
            )
        stems[path.stem] = path
    if args.out_dir.exists() and not args.out_dir.is_dir():
        raise UserError(f'--out-dir {args.out_dir} is not a folder')
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out-dir {args.out_dir}: {error}') from error


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r'\d+(,\d+)*', text):
        raise argparse.ArgumentTypeError(
            f'{text!r}: whole numbers from 0, with commas between them, are wanted'
        )
    return [int(part) for part in text.split(',')]


def _pair(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f'{text!r}: a pair such as 12,34 is wanted')
    return tuple(numbers)
