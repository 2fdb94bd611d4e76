"""Whether an ONNX file gives the numbers of PyTorch, and how long both take."""

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

from mmlit_tools.benchmark.measure import time_rounds
from mmlit_tools.export.graph import INPUT

#: The largest difference that passes. Float32 itself makes about a tenth of it.
TOLERANCE = 1e-4


class CheckError(Exception):
    """The file cannot be run; the message says why, in one line."""


@dataclass(frozen=True)
class Row:
    """One batch of images through both.

    Args:
        shape: (batch, channels, height, width).
        difference: The largest relative difference of all outputs.
        output: The output that has it.
        onnxruntime: Seconds of a run, median.
        pytorch: The same.
    """

    shape: tuple[int, int, int, int]
    difference: float
    output: str
    onnxruntime: float
    pytorch: float

    @property
    def label(self) -> str:
        """The size of the images, in words."""
        batch, _, height, width = self.shape
        return f'batch {batch} of {height}x{width}'


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    """onnxruntime on the CPU, with as many threads as torch has.

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
    # Its exceptions have no class in common but this.
    except Exception as error:
        raise CheckError(f'onnxruntime cannot load it: {error}') from error


def compare(
    session: onnxruntime.InferenceSession,
    network: nn.Module,
    shapes: Sequence[tuple[int, int, int, int]],
    repeat: int,
    advance: Callable[[], None],
) -> list[Row]:
    """Runs both on random images, in turns.

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
    """max |found - wanted| / max |wanted|, each over a whole output.

    Not element by element: numbers that cancel to almost nothing have no digits to
    compare. Other shapes, and what is no number, differ infinitely.
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
    # Its exceptions have no class in common but this.
    except Exception as error:
        size = 'x'.join(map(str, feed[INPUT].shape))
        raise CheckError(f'onnxruntime fails on an image of {size}: {error}') from error


def make_table(rows: Sequence[Row], title: str) -> Table:
    """The rows for the screen."""
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
