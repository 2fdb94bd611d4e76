"""Draw the PNGs: offsets, attention, level maps."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from mmlit.checkpoints.atomic import write_whole
from mmlit.visualization.image import SingleImage
from mmlit.visualization.offsets import DPI, draw_offsets, show_picture
from mmlit.visualization.probe import AttentionRecord, ProbeResult, stride_of

COLUMNS = 4
WIDTH = 11.0  # of all panels side by side, in inches


def write_pictures(
    args: argparse.Namespace, stem: str, image: SingleImage, result: ProbeResult
) -> int:
    """Write the pictures that the command line asks for; return their number.

    Raises:
        ValueError: A stage, block, head, cell or pixel that is not there.
    """
    draw = {'offsets': _offsets, 'attention': _attention, 'features': _features}
    figures = draw[args.what](args, image, result)
    for name, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, dpi=DPI, format='png')
        path = Path(args.out_dir) / f'{stem}_{name}.png'
        write_whole(path, memoryview(picture.getvalue()))
    return len(figures)


# --- offsets ----------------------------------------------------------------------


def _offsets(args, image: SingleImage, result: ProbeResult) -> dict[str, Figure]:
    figures = {}
    _check_there('stage', args.stage, {m.stage for m in result.token_mergings})
    for merging in result.token_mergings:
        if args.stage is None or merging.stage in args.stage:
            rows, columns = merging.offsets.shape[:2]
            for row, column in args.cells or ():
                if row >= rows or column >= columns:
                    raise ValueError(
                        f'--cells {row},{column}: stage {merging.stage} has {rows} '
                        f'rows and {columns} columns of tokens'
                    )
            name = f'offsets_stage{merging.stage}'
            figures[name] = draw_offsets(merging, image, args.cells)
    return figures


# --- attention --------------------------------------------------------------------


def _attention(args, image: SingleImage, result: ProbeResult) -> dict[str, Figure]:
    """Draw one picture per block: the mean over the heads, then each head."""
    width, height = image.size
    x, y = args.query or (width // 2, height // 2)
    if x >= width or y >= height:
        raise ValueError(f'--query {x},{y} lies outside of {width} x {height} pixels')
    _check_there('stage', args.stage, {a.stage for a in result.attentions})
    chosen = [
        a for a in result.attentions if args.stage is None or a.stage in args.stage
    ]
    _check_there('block', args.block, {a.block for a in chosen})
    figures = {}
    for attended in chosen:
        if args.block is not None and attended.block not in args.block:
            continue
        name = f'attention_stage{attended.stage}_block{attended.block}'
        figures[name] = _draw_attention(attended, image, (x, y), args.head)
    return figures


def _draw_attention(
    attended: AttentionRecord, image: SingleImage, query: tuple, heads: list[int] | None
) -> Figure:
    grid = tuple(attended.tokens.shape[:2])
    stride = stride_of(attended.stage)
    # The middle of the pixel; odd last tokens are lost on the way to a stage.
    row, column = image.token_at(query[0] + 0.5, query[1] + 0.5, stride)
    row, column = min(row, grid[0] - 1), min(column, grid[1] - 1)
    weights = attended.weights([(row, column)])[:, 0].cpu().numpy()
    _check_there('head', heads, range(len(weights)))
    chosen = range(len(weights)) if heads is None else heads
    panels = [('mean of all heads', weights.mean(axis=0))]
    panels += [(f'head {head}', weights[head]) for head in chosen]
    figure, axes = _panels(image, len(panels), COLUMNS, gap=0.1, right=0.95)
    extent = image.extent(stride, grid)
    at = (query[0] + 0.5, query[1] + 0.5)
    for axis, (title, shown) in zip(axes, panels):
        show_picture(axis, image)
        share = shown / shown.max()
        axis.imshow(
            share, extent=extent, cmap='YlOrRd', vmin=0, vmax=1, alpha=opacity(share)
        )
        _clip(axis, image)
        axis.plot(*at, 'o', ms=7, mfc='none', mec='white', mew=2.5)
        axis.plot(*at, 'o', ms=7, mfc='none', mec='#0072B2', mew=1.2)
        axis.set_title(f'{title}: max {shown.max():.2%}', fontsize=9)
    height = min(3.5, figure.get_figheight() - 1) / figure.get_figheight()
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), 'YlOrRd'),
        cax=figure.add_axes([1 - 0.85 / figure.get_figwidth(), 0.05, 0.015, height]),
    )
    bar.set_label("attention weight / the panel's maximum")
    figure.suptitle(
        f'What the pixel x={query[0]}, y={query[1]} (circle) attends to: stage '
        f'{attended.stage} (stride {stride}), block {attended.block}\n'
        f'token row {row}, column {column} of {grid[0]} x {grid[1]}; weights add up to '
        f'1, even attention would be {1 / (grid[0] * grid[1]):.3%}',
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
    )
    return figure


# --- level maps -------------------------------------------------------------------


def _features(args, image: SingleImage, result: ProbeResult) -> dict[str, Figure]:
    """Draw, for each level, distances from the mean token and principal components."""
    _check_there('stage', args.stage, result.feature_maps)
    levels = {
        stage: level
        for stage, level in result.feature_maps.items()
        if args.stage is None or stage in args.stage
    }
    figure, axes = _panels(image, 2 * len(levels), 2, gap=0.9, right=0.1)
    for i, (stage, level) in enumerate(levels.items()):
        stride = stride_of(stage)
        # Tokens of padding would take their share of the components.
        height, width = (
            max(1, min(n, math.ceil(side * scale / stride)))
            for n, side, scale in zip(
                level.shape[1:], reversed(image.size), reversed(image.scale)
            )
        )
        level = level[:, :height, :width].float().cpu()
        extent = image.extent(stride, (height, width))
        left, right = axes[2 * i : 2 * i + 2]
        distances = (level - level.mean(dim=(1, 2), keepdim=True)).norm(dim=0)
        shown = left.imshow(distances.numpy(), extent=extent, cmap='viridis')
        figure.colorbar(shown, cax=left.inset_axes([1.02, 0, 0.035, 1]))
        left.set_title(f'level {stage} (stride {stride}): distance from the mean token')
        components, shares = principal_components(level)
        right.imshow(components, extent=extent)
        parts = ', '.join(f'{share:.0%}' for share in shares)
        right.set_title(f'level {stage}: components 1, 2, 3 as R, G, B ({parts})')
        for axis in (left, right):
            axis.title.set_fontsize(9)
            _clip(axis, image)
    figure.suptitle(
        'Level maps as emitted. Left: Euclidean distance of each token from the mean '
        'of all.\nRight: first three principal components, each from its 1st to its '
        '99th percentile (share of the variance)',
        fontsize=10,
        y=1 - 0.1 / figure.get_figheight(),
    )
    return {'features': figure}


def principal_components(level: Tensor) -> tuple[np.ndarray, list[float]]:
    """Return the first three principal components of a map, as colours.

    Args:
        level: (C, H, W).

    Returns:
        (H, W, 3) from 0 to 1, and the share of the variance that each holds.
    """
    tokens = level.flatten(1).double().T
    tokens = tokens - tokens.mean(dim=0)
    values, vectors = torch.linalg.eigh(tokens.T @ tokens)  # Rising.
    vectors = vectors[:, -3:].flip(1)
    # The sign is arbitrary: the largest part of each is made positive.
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    parts = (tokens @ (vectors * largest.sign())).numpy()
    low, high = np.percentile(parts, [1, 99], axis=0)
    parts = ((parts - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    total = max(float(values.sum()), 1e-12)
    shares = [float(value) / total for value in values[-3:].flip(0)]
    return parts.reshape(*level.shape[1:], 3), shares


# --- all --------------------------------------------------------------------------


def opacity(share: np.ndarray) -> np.ndarray:
    """Return the opacity of a heat map: see-through where attention is small."""
    return 0.9 * np.sqrt(share)


def _panels(
    image: SingleImage, count: int, columns: int, gap: float, right: float
) -> tuple[Figure, np.ndarray]:
    """Make a figure of panels in the picture's shape under two lines of title.

    Args:
        image: The picture.
        count: Number of panels.
        columns: Panels side by side, at most.
        gap: Inches between them.
        right: Inches to the right of the last.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    panel_width = WIDTH / max(columns, 2)
    panel = (panel_width, panel_width * image.size[1] / image.size[0])
    head, line, margin = 0.55, 0.25, 0.08
    # Titles want their room, however narrow the panels are.
    width = max(margin + columns * panel[0] + (columns - 1) * gap + right, 7.5)
    height = head + rows * (panel[1] + line) + margin
    figure, axes = Figure(figsize=(width, height)), []
    for i in range(count):
        row, column = divmod(i, columns)
        left = margin + column * (panel[0] + gap)
        bottom = height - head - (row + 1) * (panel[1] + line)
        place = (left / width, bottom / height, panel[0] / width, panel[1] / height)
        axes.append(figure.add_axes(place, xticks=[], yticks=[]))
    return figure, np.array(axes)


def _clip(axis: Axes, image: SingleImage) -> None:
    """Cut off the part of a map that shows padding."""
    width, height = image.size
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)


def _check_there(option: str, asked: list[int] | None, there: Iterable[int]) -> None:
    """Raise ValueError at a number that the network does not have."""
    there = sorted(there)
    missing = [] if asked is None else [one for one in asked if one not in there]
    if missing or not there:
        valid = ', '.join(map(str, there)) or 'none'
        value = '' if asked is None else f' {",".join(map(str, asked))}'
        raise ValueError(f'--{option}{value}: the network has {option}s {valid} here')
