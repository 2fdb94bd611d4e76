"""The command line of `export_onnx.py`, checked before any work starts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmlit_tools.configs import add_config_options, check_file, check_least, stop
from mmlit_tools.export.dtm import FORMS
from mmlit_tools.export.parts import MIN_SIDE, PARTS

DEFAULT_SIZES = ((256, 256), (203, 301), (320, 480))
DEFAULT_BATCHES = (1, 3)
DEFAULT_FORM = 'deform-conv'
#: The newest that torch's exporter and onnxscript write.
LAST_OPSET = 25


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked; a mistake ends the program with one line."""
    parser = argparse.ArgumentParser(
        description='Export a detector or segmentor, or a part of one, to ONNX.',
        epilog='More in docs/deployment.md.',
    )
    add_config_options(parser)
    add = parser.add_argument
    add('checkpoint', nargs='?', help='weights (default: initial ones)')
    add('out', type=Path, metavar='OUT.onnx', help='the file to write, or to check')
    add(
        '--part',
        choices=PARTS,
        help='what to export: the backbone, backbone and neck, or the whole model up '
        'to the raw outputs of its head (default: model)',
    )
    add(
        '--dtm',
        choices=list(FORMS),
        help='how token merging is written: as DeformConv (opset 19 or newer, '
        'onnxruntime 1.25 or newer), or by GridSample for runtimes without that '
        '(opset 16 or newer; default: deform-conv)',
    )
    add('--opset', type=int, help="ONNX's operators (default: the oldest that will do)")
    add('--check', action='store_true', help='compare a file that is there; write none')
    add(
        '--size',
        nargs=2,
        type=int,
        action='append',
        metavar=('H', 'W'),
        help='image size to compare and time at; may be repeated (default: '
        + ', '.join(f'{h} {w}' for h, w in DEFAULT_SIZES)
        + ')',
    )
    add(
        '--batch',
        nargs='+',
        type=int,
        default=DEFAULT_BATCHES,
        metavar='N',
        help='images at a time (default: 1 3)',
    )
    add('--repeat', type=int, default=5, help='timed runs of each (default: 5)')
    add('--force', action='store_true', help='replace OUT.onnx if it is there')
    args = parser.parse_intermixed_args(arguments)
    try:
        _check(args)
    except ValueError as error:
        stop(str(error))
    return args


def _check(args: argparse.Namespace) -> None:
    if args.out.suffix != '.onnx':
        raise ValueError(f'OUT.onnx must end in .onnx, got {args.out}')
    if args.checkpoint is not None:
        check_file(args.checkpoint, 'checkpoint')
    args.size = [tuple(size) for size in args.size or DEFAULT_SIZES]
    for size in args.size:
        check_least('--size', min(size), MIN_SIDE)
    check_least('--batch', min(args.batch), 1)
    check_least('--repeat', args.repeat, 1)
    if args.check:
        _check_file_to_compare(args)
    else:
        _check_file_to_write(args)


def _check_file_to_compare(args: argparse.Namespace) -> None:
    for name in ('part', 'dtm', 'opset', 'force'):
        if getattr(args, name):
            raise ValueError(f'--check goes by the file: leave out --{name}')
    check_file(str(args.out), 'file')


def _check_file_to_write(args: argparse.Namespace) -> None:
    args.part, args.dtm = args.part or PARTS[-1], args.dtm or DEFAULT_FORM
    form = FORMS[args.dtm]
    args.opset = form.opset if args.opset is None else args.opset
    if not form.opset <= args.opset <= LAST_OPSET:
        others = [n for n, f in FORMS.items() if f.opset <= args.opset <= LAST_OPSET]
        raise ValueError(
            f'--opset {args.opset}: --dtm {args.dtm} writes {form.operator}, which '
            f'takes opset {form.opset} to {LAST_OPSET}'
            + (f'; --dtm {others[0]} can do with {args.opset}' if others else '')
        )
    if not args.out.parent.is_dir():
        raise ValueError(
            f'the folder of {args.out} does not exist (seen from {os.getcwd()})'
        )
    if args.out.is_dir():
        raise ValueError(f'{args.out} is a folder; give the file to write')
    if args.out.exists() and not args.force:
        raise ValueError(f'{args.out} exists: --force replaces it, --check compares it')
