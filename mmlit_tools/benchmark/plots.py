"""Plot latency and memory against image size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from mmlit.checkpoints.atomic import write_whole
from mmlit_tools.benchmark.report import MIB, describe_run

# Okabe and Ito's palette, without its yellow: told apart by colour-blind readers, also
# by marker and dash where there are more models than colours.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = 'osD^vPX*'
DASHES = ('-', '--', ':')
DPI = 120


def draw_plots(report: dict, folder: Path) -> list[str]:
    """Draw `latency.png` and, where memory was measured, `memory.png`.

    Returns:
        The names of the files.
    """
    plots = [
        ('latency.png', 'latency of a step (ms), median', _latency, _spread),
        ('memory.png', 'memory of a step (MiB)', _memory, None),
    ]
    drawn = []
    for name, label, value, spread in plots:
        if any(value(row) is not None for row in report['rows']):
            figure, picture = _draw(report, label, value, spread), io.BytesIO()
            figure.savefig(picture, dpi=DPI, format='png')
            content = memoryview(picture.getvalue())
            write_whole(folder / name, content)
            drawn.append(name)
    return drawn


def _latency(row: dict) -> float | None:
    return 1000 * row['latency']['median'] if row['latency'] else None


def _spread(row: dict) -> tuple[float, float]:
    return 1000 * row['latency']['q1'], 1000 * row['latency']['q3']


def _memory(row: dict) -> float | None:
    return row['memory']['above'] / MIB if row['memory'] else None


def _draw(
    report: dict,
    label: str,
    value: Callable[[dict], float | None],
    spread: Callable[[dict], tuple[float, float]] | None,
) -> Figure:
    figure = Figure(figsize=(8.5, 5.2), layout='constrained')
    axis = figure.subplots()
    models = list(dict.fromkeys(row['model'] for row in report['rows']))
    sides = set()
    for i, model in enumerate(models):
        rows = [row for row in report['rows'] if row['model'] == model]
        rows = sorted((row for row in rows if value(row) is not None), key=_side)
        if not rows:
            continue
        x = [_side(row) for row in rows]
        sides.update(x)
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(
            x,
            [value(row) for row in rows],
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
            label=model,
        )
        if spread:
            low, high = zip(*(spread(row) for row in rows))
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    square = all(row['height'] == row['width'] for row in report['rows'])
    axis.set_xlabel(
        'image side (px)' if square else 'square root of height x width (px)'
    )
    axis.set_ylabel(label + ('; band: quartiles' if spread else ''))
    if len(sides) <= 12:
        axis.set_xticks(sorted(sides), [f'{side:.0f}' for side in sorted(sides)])
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    step, _, rest = describe_run(report['settings']).partition(': ')
    figure.suptitle(f'{step}\n{rest}', fontsize=10)
    return figure


def _side(row: dict) -> float:
    return math.sqrt(row['height'] * row['width'])
