#!/usr/bin/env python3
"""Exports a detector or segmentor, or a part of one, to an ONNX file.

    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx
    python tools/export_onnx.py CONFIG OUT.onnx --part backbone --dtm grid-sample
    python tools/export_onnx.py CONFIG CHECKPOINT OUT.onnx --check

One file takes any batch, height and width. It is compared with PyTorch before it is
written, at sizes that it was not exported at; with `--check` a file that is there is
compared again. Without CHECKPOINT nothing is downloaded: the weights are the initial
ones. docs/deployment.md says what goes in and what comes out.
"""

from __future__ import annotations

import argparse
import json
import pickle
from importlib import metadata
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmlit import __version__
from mmlit.checkpoints.atomic import write_whole
from mmlit_tools.configs import read_config, stop
from mmlit_tools.export.arguments import parse_arguments
from mmlit_tools.export.dtm import FORMS
from mmlit_tools.export.parts import (
    Part,
    build_model,
    load_weights,
    preprocessing,
    take_part,
)

try:
    from mmlit_tools.export.check import (
        TOLERANCE,
        CheckError,
        Row,
        compare,
        make_table,
        open_session,
    )
    from mmlit_tools.export.graph import (
        ExportError,
        check_names,
        describe,
        export_graph,
        read_notes,
        serialize,
    )
except ModuleNotFoundError as error:
    stop(f'{error.name} is not installed: pip install "mmlit[onnx]"')

FILE_WIDTH = 120


def main(arguments: list[str] | None = None) -> None:
    """Exports, or checks, what the command line asks for."""
    args = parse_arguments(arguments)
    config = read_config(args)
    with Progress(console=Console(stderr=True)) as progress:
        try:
            rows, notes, content = work(args, config, progress)
        except (ExportError, CheckError) as error:
            stop(f'{args.out}: {error}')
        except (OSError, TypeError, ValueError, pickle.UnpicklingError) as error:
            stop(str(error))
    show(make_table(rows, describe(content, notes)))
    worst = max(rows, key=lambda row: row.difference)
    if worst.difference > TOLERANCE:
        stop(
            f'{args.out} {"differs" if args.check else "is not written: it differs"} '
            f'from PyTorch: {worst.output} by {worst.difference:.1e} of its largest '
            f'number (allowed: {TOLERANCE:.0e}), at {worst.label}'
        )
    if args.check:
        print(f'{args.out} gives the numbers of PyTorch')
        return
    try:
        write_whole(args.out, memoryview(content), args.force, lambda _: None)
    except OSError as error:
        stop(str(error))
    print(f'Written to {args.out}')


def work(
    args: argparse.Namespace, config: Config, progress: Progress
) -> tuple[list[Row], dict[str, str], bytes]:
    """All but the writing: what was compared, what the file says, the file's bytes."""
    task = progress.add_task('Building the model', total=None)
    if args.check:
        content = args.out.read_bytes()
        notes = read_notes(content)
        check_source(args, notes)
        network, names, _ = build(args, config, notes['part'])
        check_names(content, names)
    else:
        network, names, classes = build(args, config, args.part)
        progress.update(task, description='Exporting (minutes)')
        model = export_graph(network, names, args.dtm, args.opset)
        notes = dict(
            mmlit_version=__version__,
            config=Path(args.config).name,
            checkpoint=Path(args.checkpoint).name if args.checkpoint else '',
            part=args.part,
            dtm=args.dtm,
            preprocessing=preprocessing(config),
            classes=json.dumps(classes),
        )
        content = serialize(model, notes)
    check_runtime(notes['dtm'])
    shapes = [(n, network.channels, *size) for size in args.size for n in args.batch]
    steps = 2 * args.repeat * len(shapes)
    progress.update(task, description='Comparing', total=steps)
    session = open_session(content)
    rows = compare(
        session, network, shapes, args.repeat, lambda: progress.advance(task)
    )
    return rows, notes, content


def build(
    args: argparse.Namespace, config: Config, part: str
) -> tuple[Part, list[str], list[str]]:
    """The part to export, the names of its outputs, and of the classes if known."""
    model = build_model(config)
    network, names = take_part(model, part, config.default_scope)
    if args.checkpoint is None:
        print(
            'No CHECKPOINT: these are initial weights, and nothing is downloaded. The '
            'offsets of token merging are zero in them.'
        )
        return network, names, []
    try:
        classes = load_weights(model, args.checkpoint, network.names)
    except ValueError as error:
        raise ValueError(
            f'checkpoint {args.checkpoint} does not fit {args.config}: {error}'
        ) from error
    return network, names, list(classes)


def check_source(args: argparse.Namespace, notes: dict[str, str]) -> None:
    """Refuses to compare a file with weights of another kind than it was made from."""
    if bool(args.checkpoint) != bool(notes['checkpoint']):
        made = notes['checkpoint'] or 'initial weights'
        wanted = 'name it as' if notes['checkpoint'] else 'leave out'
        raise ValueError(f'{args.out} was exported from {made}: {wanted} CHECKPOINT')


def check_runtime(dtm: str) -> None:
    """Stops where the onnxruntime that is installed lacks the operator."""
    form, version = FORMS[dtm], metadata.version('onnxruntime')
    if tuple(map(int, version.split('.')[:2])) < form.onnxruntime:
        least = '.'.join(map(str, form.onnxruntime))
        stop(
            f'onnxruntime {version} has no {form.operator}: take {least} or newer'
            + (', or --dtm grid-sample' if dtm != 'grid-sample' else '')
        )


def show(table: Table) -> None:
    """Prints a table; in a file, it need not fit a narrow screen."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(table)


if __name__ == '__main__':
    main()
