"""Measure LIT beside other backbones, alone or in whole networks: time, memory, MACs.

    python tools/benchmark.py --models lit-s lit-s:eager lit-ti swin-t pvt-s r50
    python tools/benchmark.py --models lit-s swin-t --sizes 512 800 1056 --mode train
    python tools/benchmark.py --shape 512 512 --shape 512 2048 --models \
        configs/segmentation/lit-s_upernet*.py configs/benchmark/*_upernet.py

A model is `lit-ti|s|m|b`, with `:kernel` behind it for another attention kernel than
'auto', `swin-t`, `pvt-s`, `r50` (backbones alone, mmdet's), or the path of a config of
mmdet or mmseg (the whole detector or segmentor, `:kernel` as well); with `@bfloat16`
behind it, it computes in that precision whatever `--dtype` says. Everything is measured
in one run: the models take turns, and so does the matrix multiplication that says what
the machine can do. No dataset and no weights are needed. Table on screen;
benchmark.json, .csv and .md in the output folder, and from two image sizes on
latency.png and memory.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from mmlit.errors import UserError
from mmlit_tools.benchmark.bench import Bench, memory_obstacle
from mmlit_tools.benchmark.measure import describe_machine, use_threads
from mmlit_tools.benchmark.models import (
    DTYPES,
    LIT_ARCHS,
    PEERS,
    Settings,
    parse_model,
)
from mmlit_tools.benchmark.plots import draw_plots
from mmlit_tools.benchmark.report import (
    complete_rows,
    fit_memory,
    make_table,
    write_report,
)
from mmlit_tools.cli import check_least, command

MIN_SIDE = 32
FILE_WIDTH = 200
DEFAULT_MODELS = ('lit-s', 'lit-ti', 'swin-t', 'pvt-s', 'r50')
DEFAULT_SHAPE = (800, 1344)


@command('benchmark.py')
def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for and write the reports."""
    args = parse_args(arguments)
    shared = ('mode', 'batch', 'dtype', 'device', 'threads', 'with_cp')
    settings = Settings(**{name: getattr(args, name) for name in shared})
    use_threads(args.threads)
    try:
        report = run(args, settings)
    except KeyboardInterrupt:
        raise UserError(
            f'interrupted; the image sizes done so far are in {args.out_dir}'
        ) from None
    except OSError as error:
        raise UserError(f'--out-dir {args.out_dir}: {error}') from error
    # In a file, the table need not fit a narrow screen.
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(make_table(report))
    for note in report['notes']:
        console.print(note, markup=False)
    names = ['benchmark.json', 'benchmark.csv', 'benchmark.md']
    if len(args.shape) > 1:
        names += draw_plots(report, args.out_dir)
    print(f'Written to {args.out_dir}: {", ".join(names)}')
    if not any(row['seconds'] for row in report['rows']):
        raise UserError('nothing could be measured; the notes above say why')


def run(args: argparse.Namespace, settings: Settings) -> dict:
    """Measure all shapes; write the reports after each, so that none is lost."""
    obstacle = None if args.no_memory else memory_obstacle(settings)
    rounds = {key: getattr(args, key) for key in ('repeat', 'warmup', 'matmul_size')}
    report = dict(
        machine=describe_machine(settings),
        settings=dict(**vars(settings), **rounds),
        notes=[obstacle] if obstacle else [],
    )
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        bench = Bench(
            args.models,
            settings,
            **rounds,
            with_memory=not (args.no_memory or obstacle),
            progress=progress,
            shapes=len(args.shape),
        )
        for shape in args.shape:
            measured = bench.measure(shape)
            rows += complete_rows(measured, report['settings'])
            for row in measured:
                where = f'{row["model"]}, {row["height"]}x{row["width"]}'
                report['notes'] += [f'{where}: {note}' for note in row['notes']]
            report.update(rows=rows, fits=fit_memory(rows))
            write_report(report, args.out_dir)
    return report


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line, and check it."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        epilog='More at the top of the file and in tools/README.md.',
    )
    add = parser.add_argument
    add(
        '--models',
        nargs='+',
        default=DEFAULT_MODELS,
        metavar='MODEL',
        help=f'{", ".join(LIT_ARCHS)} (each may be followed by :kernel), '
        f'{", ".join(PEERS)}, or CONFIG.py[:kernel] (default: '
        f'{" ".join(DEFAULT_MODELS)})',
    )
    add(
        '--shape',
        nargs=2,
        type=int,
        action='append',
        metavar=('H', 'W'),
        help='image size in pixels; may be repeated (default: 800 1344)',
    )
    add('--sizes', nargs='+', type=int, metavar='S', help='square image sizes as well')
    add('--batch', type=int, default=1, help='images per step (default: 1)')
    add('--mode', choices=['forward', 'train'], default='forward')
    add(
        '--dtype',
        choices=list(DTYPES),
        default='float32',
        help='the half precision ones run under autocast, without loss scaling',
    )
    add('--device', default='cpu', help='cpu or cuda[:N] (default: cpu)')
    add('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    add('--repeat', type=int, default=7, help='interleaved rounds (default: 7)')
    add('--warmup', type=int, default=1, help='steps before them (default: 1)')
    add('--no-memory', action='store_true', help='do not measure memory')
    add('--with-cp', action='store_true', help="gradient checkpointing of LIT's blocks")
    add(
        '--matmul-size',
        type=int,
        default=4096,
        metavar='N',
        help='side of the reference matrices (default: 4096)',
    )
    add(
        '--out-dir',
        type=Path,
        default=Path('work_dirs/benchmark'),
        help='default: work_dirs/benchmark in the current folder',
    )
    args = parser.parse_args(arguments)
    for name in ('batch', 'threads', 'repeat', 'matmul_size'):
        check_least(f'--{name.replace("_", "-")}', getattr(args, name), 1)
    check_least('--warmup', args.warmup, 0)
    shapes = [tuple(shape) for shape in args.shape or []]
    shapes += [(size, size) for size in args.sizes or []]
    for side in (side for shape in shapes for side in shape):
        check_least('an image side in pixels,', side, MIN_SIDE)
    args.shape = list(dict.fromkeys(shapes)) or [DEFAULT_SHAPE]
    args.models = [parse_model(text) for text in args.models]
    labels = [spec.label for spec in args.models]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f'model {label} is named twice')
    _check_device(args.device)
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out-dir {args.out_dir}: {error.strerror}') from error
    return args


def _check_device(name: str) -> None:
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = None
    if kind not in ('cpu', 'cuda'):
        raise UserError(f'--device must be cpu or cuda[:N], got {name!r}')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {name}: torch sees no GPU here')
