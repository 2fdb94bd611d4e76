"""Read and draw label maps for the demo of segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes

from mmlit_tools.demo.pictures import (
    COLOURS,
    Comparison,
    draw_mask,
    draw_tag,
    pick_evenly,
    read_image,
)
from mmlit_tools.demo.task import Task
from mmlit_tools.shapes.drawing import CATEGORIES

# Regions below this share of an image get no name.
MIN_NAMED = 0.005


@dataclass
class LabelMap:
    """The category of each pixel of one image."""

    labels: np.ndarray  # (H, W): 0 is the background, 1 and up are `CATEGORIES`

    def draw(self, axis: Axes) -> None:
        """Draw everything but the background over the image."""
        for index, name in enumerate(CATEGORIES):
            mask = self.labels == index + 1
            if not mask.any():
                continue
            colour = COLOURS[index % len(COLOURS)]
            draw_mask(axis, mask, colour)
            _, _, stats, centres = cv2.connectedComponentsWithStats(
                mask.astype(np.uint8)
            )
            # The first is what lies outside the mask.
            for area, centre in zip(stats[1:, cv2.CC_STAT_AREA], centres[1:]):
                if area >= MIN_NAMED * mask.size:
                    middle = {'horizontalalignment': 'center'}
                    draw_tag(axis, centre, name, colour, **middle)


def read(data: Path, results: Path, count: int) -> list[Comparison]:
    """Read images with their label maps.

    Args:
        data: Folder of the shapes dataset.
        results: Folder of the label maps that `tools/test.py --out` wrote.
        count: Number of images.
    """
    comparisons = []
    for mask in pick_evenly(sorted((data / 'masks' / 'val').glob('*.png')), count):
        truth, found = (
            _read_labels(folder / mask.name) for folder in (mask.parent, results)
        )
        image = read_image(data / 'val' / f'{mask.stem}.jpg')
        comparisons.append(Comparison(image, truth, found))
    return comparisons


def _read_labels(path: Path) -> LabelMap:
    return LabelMap(read_image(path, cv2.IMREAD_GRAYSCALE))


SEGMENTATION = Task(
    keys={'mIoU': 'mIoU'},
    perfect=100,
    axis='mean IoU, background included (0 to 1)',
    goal=0.6,
    duration='about 15 minutes on two CPU cores, less on a GPU',
    results='label_maps',
    test_options=(),
    read=read,
    # mmseg prints a table of the classes itself, and returns the mean alone.
    categories={},
)
