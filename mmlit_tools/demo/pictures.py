"""Draw predictions beside the ground truth, and the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mmlit_tools.demo.records import History

# Okabe and Ito's palette: told apart by colour-blind readers as well.
COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#CC79A7', '#0072B2', '#D55E00')
DPI = 110


class Drawable(Protocol):
    """Something that can be drawn over an image."""

    def draw(self, axis: Axes) -> None:
        """Draw it on axes in which a pixel's coordinates are its column and row."""


@dataclass
class Comparison:
    """An image (H, W, 3) in RGB order, its ground truth and its prediction."""

    image: np.ndarray
    truth: Drawable
    found: Drawable


def pick_evenly(entries: Sequence, count: int) -> list:
    """Pick up to `count` entries at even distances, the first and the last included."""
    picked = np.linspace(0, len(entries) - 1, min(count, len(entries))).astype(int)
    return [entries[index] for index in picked]


def read_image(path: Path, mode: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Read an image, in RGB order or by another `mode` of OpenCV."""
    image = cv2.imread(str(path), mode)
    if image is None:
        raise OSError(f'could not read the image {path}')
    return image


def draw_comparisons(comparisons: Sequence[Comparison], title: str, path: Path) -> None:
    """Draw two images a row, each with its ground truth left, the prediction right."""
    rows = -(-len(comparisons) // 2)
    figure = Figure(figsize=(13, 3.25 * rows + 0.9), layout='constrained')
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, comparison in enumerate(comparisons):
        left, right = axes[index // 2, 2 * (index % 2) :][:2]
        for axis, content, name in (
            (left, comparison.truth, 'ground truth'),
            (right, comparison.found, 'prediction'),
        ):
            axis.imshow(comparison.image)
            content.draw(axis)
            axis.set_xlim(-0.5, comparison.image.shape[1] - 0.5)
            axis.set_ylim(comparison.image.shape[0] - 0.5, -0.5)
            axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=13)
    _save(figure, path)


def draw_mask(axis: Axes, mask: np.ndarray, colour: str) -> None:
    """Tint a mask (H, W) and draw its outline."""
    tint = np.zeros((*mask.shape, 4))
    tint[mask] = (*to_rgb(colour), 0.45)
    axis.imshow(tint)
    # Padded, so that the outline of a mask at the image's border is closed.
    axis.contour(
        np.arange(-1, mask.shape[1] + 1),
        np.arange(-1, mask.shape[0] + 1),
        np.pad(mask, 1),
        levels=[0.5],
        colors=colour,
        linewidths=1.2,
    )


def draw_tag(axis: Axes, at: np.ndarray, text: str, colour: str, **align: str) -> None:
    """Write a text on a coloured ground, at (x, y) in pixels."""
    axis.text(
        *at,
        text,
        fontsize=7.5,
        bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 1, 'alpha': 0.9},
        clip_on=True,
        **align,
    )


def draw_history(
    history: History, axis_name: str, goal: float, title: str, path: Path
) -> None:
    """Draw the training loss, and the figures of each evaluation, over the epochs."""
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2, sharex=True)
    epochs, losses = np.array(history.loss, float).reshape(-1, 2).T
    left.plot(epochs, losses, color=COLOURS[1], alpha=0.5, label='as logged')
    left.plot(epochs, smooth(losses), color=COLOURS[5], linewidth=2, label='smoothed')
    left.set(title='Training loss', ylabel='sum of the losses (no unit)')
    for (name, points), colour in zip(history.figures.items(), COLOURS[5:]):
        x, y = np.array(points, float).reshape(-1, 2).T
        right.plot(x, y, 'o-', color=colour, label=name)
    right.axhline(goal, color='grey', linestyle='--', label=f'goal {goal:.2f}')
    right.set(title='Validation', ylabel=axis_name)
    for axis in (left, right):
        axis.axhline(0, color='none')  # Makes the automatic range begin at 0.
        axis.set_ylim(bottom=0)
        axis.set_xlabel('training time (epochs)')
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title, fontsize=13)
    _save(figure, path)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Return the mean over up to `width` neighbours, fewer towards the ends."""
    if not len(values):
        return values
    padded = np.convolve(values, np.ones(width), mode='full')
    counts = np.convolve(np.ones_like(values), np.ones(width), mode='full')
    start = width // 2
    return (padded / counts)[start : start + len(values)]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
