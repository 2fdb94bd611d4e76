"""Compare an ONNX file with PyTorch, in numbers and in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import onnxruntime
import torch
from rich.table import Table
from torch import Tensor, nn

from mmlit.errors import UserError
from mmlit_tools.benchmark.measure import time_rounds
from mmlit_tools.export.graph import INPUT

#: Largest difference allowed; rounding in float32 makes about a tenth of it.
TOLERANCE = 1e-4


class CheckError(UserError):
    """onnxruntime cannot run the file."""


@dataclass(frozen=True)
class Row:
    """Results of one batch of images.

    Args:
        shape: (batch, channels, height, width).
        difference: The largest relative difference of all outputs.
        output: The output that has it.
        onnxruntime: Median seconds of a run.
        pytorch: The same.
    """

    shape: tuple[int, int, int, int]
    difference: float
    output: str
    onnxruntime: float
    pytorch: float

    @property
    def label(self) -> str:
        """Spell the size of the images."""
        batch, _, height, width = self.shape
        return f'batch {batch} of {height}x{width}'


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    """Open a model in onnxruntime, on the CPU with as many threads as torch.

    Raises:
        CheckError: It cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider']
        )
    # The exceptions of onnxruntime have no other class in common.
    except Exception as error:
        raise CheckError(f'onnxruntime cannot load OUT.onnx: {error}') from error


def compare(
    session: onnxruntime.InferenceSession,
    network: nn.Module,
    shapes: Sequence[tuple[int, int, int, int]],
    repeat: int,
    advance: Callable[[], None],
) -> list[Row]:
    """Run both on random images, in turns.

    Args:
        session: Of the file.
        network: What the file was made from.
        shapes: (batch, channels, height, width) of the images.
        repeat: Timed runs of each; one before them is compared and not timed.
        advance: Called after each timed run.

    Raises:
        CheckError: onnxruntime gives up on an image.
    """
    names = [output.name for output in session.get_outputs()]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for shape in shapes:
        image = torch.randn(shape, generator=generator)
        feed = {INPUT: image.numpy()}
        with torch.inference_mode():
            found = _run(session, feed)
            differences = {
                name: relative_difference(value, wanted)
                for name, value, wanted in zip(names, found, network(image))
            }
            steps = {
                'onnxruntime': lambda feed=feed: session.run(None, feed),
                'pytorch': lambda image=image: network(image),
            }
            seconds, _ = time_rounds(steps, repeat, 'cpu', advance)
        worst = max(differences, key=differences.get)
        times = {name: median(values) for name, values in seconds.items()}
        rows.append(Row(tuple(shape), differences[worst], worst, **times))
    return rows


def relative_difference(found: np.ndarray, wanted: Tensor) -> float:
    """Return max |found - wanted| / max |wanted|, each over a whole output.

    Not element by element: numbers that cancel to almost nothing have no digits to
    compare. Other shapes and NaN differ infinitely.
    """
    wanted = wanted.numpy()
    if found.shape != wanted.shape:
        return math.inf
    difference = float(np.abs(found - wanted).max())
    if difference == 0:
        return 0.0
    largest = float(np.abs(wanted).max())
    relative = difference / largest if largest else math.inf
    return relative if math.isfinite(relative) else math.inf


def _run(session: onnxruntime.InferenceSession, feed: dict) -> list[np.ndarray]:
    try:
        return session.run(None, feed)
    # The exceptions of onnxruntime have no other class in common.
    except Exception as error:
        size = 'x'.join(map(str, feed[INPUT].shape))
        raise CheckError(f'onnxruntime fails on an image of {size}: {error}') from error


def make_table(rows: Sequence[Row], title: str) -> Table:
    """Tabulate the rows for the screen."""
    table = Table(title=title)
    columns = ('image', 'batch', 'max relative difference', 'onnxruntime (ms)')
    for i, column in enumerate((*columns, 'PyTorch (ms)', 'onnxruntime / PyTorch')):
        table.add_column(column, justify='right' if i else 'left')
    for row in rows:
        batch, _, height, width = row.shape
        table.add_row(
            f'{height}x{width}',
            str(batch),
            f'{row.difference:.1e} ({row.output})',
            f'{row.onnxruntime * 1000:.1f}',
            f'{row.pytorch * 1000:.1f}',
            f'{row.onnxruntime / row.pytorch:.2f}',
        )
    return table
