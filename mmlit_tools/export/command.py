"""Export a detector or segmentor, or a part of one, to an ONNX file.

    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx
    python tools/export_onnx.py CONFIG OUT.onnx --part backbone --dtm grid-sample
    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx --check

One file takes any batch, height and width. It is compared with PyTorch before it is
written, at other sizes than it was exported at; `--check` compares an existing file
again. Without CHECKPOINT the weights are initial ones, and nothing is downloaded.
docs/deployment.md describes inputs and outputs.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress

from mmlit import __version__
from mmlit.errors import UserError
from mmlit_tools.cli import (
    add_config_options,
    check_file,
    check_least,
    check_out_file,
    command,
    write_file,
)
from mmlit_tools.configs import known_scope, read_config
from mmlit_tools.export.dtm import FORMS
from mmlit_tools.export.parts import (
    MIN_SIDE,
    PARTS,
    Part,
    load_part,
    preprocessing,
    take_part,
)
from mmlit_tools.models import build_model

DEFAULT_SIZES = ((256, 256), (203, 301), (320, 480))
DEFAULT_BATCHES = (1, 3)
DEFAULT_FORM = 'deform-conv'
#: The newest that torch's exporter and onnxscript write.
LAST_OPSET = 25
FILE_WIDTH = 120


@command('export_onnx.py')
def main(arguments: list[str] | None = None) -> None:
    """Export or check a file as the command line says."""
    args = parse_args(arguments)
    check_args(args)
    try:
        from mmlit_tools.export import check, graph
    except ModuleNotFoundError as error:
        raise UserError(
            f'{error.name} is not installed: pip install "mmlit[onnx]"'
        ) from error
    config = read_config(args)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task('Building the model', total=None)
        if args.check:
            content = args.out.read_bytes()
            notes = graph.read_notes(args.out)
            check_source(args, notes)
            network, names, _ = build(args, config, notes['part'])
            graph.check_names(args.out, names)
        else:
            network, names, classes = build(args, config, args.part)
            progress.update(task, description='Exporting (minutes)')
            model = graph.export_graph(network, names, args.dtm, args.opset)
            notes = describe_source(args, config, classes)
            content = graph.serialize(model, notes)
        check_runtime(notes['dtm'])
        shapes = [(n, network.channels, *s) for s in args.size for n in args.batch]
        total = 2 * args.repeat * len(shapes)
        progress.update(task, description='Comparing', total=total)
        session = check.open_session(content)
        rows = check.compare(
            session, network, shapes, args.repeat, lambda: progress.advance(task)
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(check.make_table(rows, graph.describe(content, notes)))
    worst = max(rows, key=lambda row: row.difference)
    if worst.difference > check.TOLERANCE:
        raise UserError(
            f'{args.out} {"differs" if args.check else "is not written: it differs"} '
            f'from PyTorch: {worst.output} by {worst.difference:.1e} of its largest '
            f'number (allowed: {check.TOLERANCE:.0e}), at {worst.label}'
        )
    if args.check:
        print(f'{args.out} gives the numbers of PyTorch')
    else:
        write_file(args.out, content, args.force)
        print(f'Written to {args.out}')


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'export_onnx.py',
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
    add('--check', action='store_true', help='compare an existing file; write none')
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
    # Options may stand between the optional CHECKPOINT and OUT.
    return parser.parse_intermixed_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Complete the arguments; raise UserError before the work if they cannot be."""
    if args.checkpoint is not None:
        check_file(args.checkpoint, 'checkpoint')
    args.size = [tuple(size) for size in args.size or DEFAULT_SIZES]
    for size in args.size:
        check_least('--size', min(size), MIN_SIDE)
    check_least('--batch', min(args.batch), 1)
    check_least('--repeat', args.repeat, 1)
    if args.check:
        for name in ('part', 'dtm', 'opset', 'force'):
            if getattr(args, name):
                raise UserError(f'--check goes by the file: leave out --{name}')
        check_file(args.out, 'file')
        return
    check_out_file(args.out, 'OUT.onnx', args.force, '.onnx')
    args.part, args.dtm = args.part or PARTS[-1], args.dtm or DEFAULT_FORM
    form = FORMS[args.dtm]
    args.opset = form.opset if args.opset is None else args.opset
    if not form.opset <= args.opset <= LAST_OPSET:
        others = [n for n, f in FORMS.items() if f.opset <= args.opset <= LAST_OPSET]
        raise UserError(
            f'--opset {args.opset}: --dtm {args.dtm} writes {form.operator}, which '
            f'takes opset {form.opset} to {LAST_OPSET}'
            + (f'; --dtm {others[0]} can do with {args.opset}' if others else '')
        )


def build(
    args: argparse.Namespace, config: Config, part: str
) -> tuple[Part, list[str], list[str]]:
    """Return the part to export, the names of its outputs and, if known, classes."""
    scope = known_scope(config)
    model = build_model(config)
    network, names = take_part(model, part, scope)
    if args.checkpoint is None:
        print(
            'No CHECKPOINT: these are initial weights, and nothing is downloaded. The '
            'offsets of token merging are zero in them.'
        )
        return network, names, []
    return network, names, load_part(model, args, network.names)


def describe_source(
    args: argparse.Namespace, config: Config, classes: list[str]
) -> dict[str, str]:
    """Return the metadata of the file."""
    return dict(
        mmlit_version=__version__,
        config=Path(args.config).name,
        checkpoint=Path(args.checkpoint).name if args.checkpoint else '',
        part=args.part,
        dtm=args.dtm,
        preprocessing=preprocessing(config),
        classes=json.dumps(classes),
    )


def check_source(args: argparse.Namespace, notes: dict[str, str]) -> None:
    """Raise UserError if a file was made from weights of another kind."""
    if bool(args.checkpoint) != bool(notes['checkpoint']):
        made = notes['checkpoint'] or 'initial weights'
        wanted = 'name it as' if notes['checkpoint'] else 'leave out'
        raise UserError(f'{args.out} was exported from {made}: {wanted} CHECKPOINT')


def check_runtime(dtm: str) -> None:
    """Raise UserError if the installed onnxruntime lacks the operator."""
    form, version = FORMS[dtm], metadata.version('onnxruntime')
    if tuple(map(int, version.split('.')[:2])) < form.onnxruntime:
        least = '.'.join(map(str, form.onnxruntime))
        raise UserError(
            f'onnxruntime {version} has no {form.operator}: take {least} or newer'
            + (', or --dtm grid-sample' if dtm != 'grid-sample' else '')
        )
