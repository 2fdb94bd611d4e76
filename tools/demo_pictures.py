"""The demo's pictures: predictions beside the ground truth, and the learning curve."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from demo_records import History

# Okabe and Ito's palette: told apart by colour-blind readers as well.
COLOURS = ('#E69F00', '#56B4E9', '#009E73', '#F0E442', '#CC79A7', '#0072B2', '#D55E00')
DPI = 110


@dataclass
class Instances:
    """The objects of one image."""

    boxes: np.ndarray  # (n, 4) as x1, y1, x2, y2 in pixels
    labels: np.ndarray  # (n,) indices into the category names
    masks: np.ndarray  # (n, H, W) bool
    scores: np.ndarray | None = None  # (n,), where they were predicted


@dataclass
class Comparison:
    """An image (H, W, 3) in RGB order, what is in it and what was found in it."""

    image: np.ndarray
    truth: Instances
    found: Instances


def read_comparisons(
    annotations: Path, results: Path, count: int, min_score: float = 0.5
) -> tuple[list[Comparison], list[str]]:
    """Reads images spread evenly over a test run's results, and the category names.

    Evenly means: not chosen for how well the detector did on them.

    Args:
        annotations: COCO file of the images that were tested on.
        results: pickle that `tools/test.py --out` wrote.
        count: how many images.
        min_score: less certain predictions are left out.
    """
    coco = COCO(str(annotations))
    names = [category['name'] for category in coco.dataset['categories']]
    entries = pickle.loads(results.read_bytes())
    picked = np.linspace(0, len(entries) - 1, min(count, len(entries))).astype(int)
    comparisons = []
    for index in picked:
        entry = entries[index]
        image = cv2.imread(entry['img_path'])
        if image is None:
            raise OSError(f'could not read the image {entry["img_path"]}')
        comparisons.append(
            Comparison(
                image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
                truth=_truth(coco, entry['img_id']),
                found=_found(entry['pred_instances'], min_score, image.shape[:2]),
            )
        )
    return comparisons, names


def _truth(coco: COCO, image_id: int) -> Instances:
    items = coco.imgToAnns[image_id]
    boxes = np.array([item['bbox'] for item in items], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    # mmdet numbers the categories in the order of the file.
    labels = {category: i for i, category in enumerate(coco.cats)}
    image = coco.imgs[image_id]
    masks = [coco.annToMask(item) for item in items]
    return Instances(
        boxes=boxes,
        labels=np.array([labels[item['category_id']] for item in items], int),
        masks=np.array(masks, bool).reshape(-1, image['height'], image['width']),
    )


def _found(entry: dict, min_score: float, shape: tuple[int, int]) -> Instances:
    scores = np.asarray(entry['scores'])
    keep = np.flatnonzero(scores >= min_score)
    masks = [coco_mask.decode(entry['masks'][i]) for i in keep]
    return Instances(
        boxes=np.asarray(entry['bboxes'])[keep],
        labels=np.asarray(entry['labels'])[keep],
        masks=np.array(masks, bool).reshape(-1, *shape),
        scores=scores[keep],
    )


def draw_comparisons(
    comparisons: Sequence[Comparison], names: Sequence[str], title: str, path: Path
) -> None:
    """Draws two images a row, each with its ground truth left, the prediction right."""
    rows = -(-len(comparisons) // 2)
    figure = Figure(figsize=(13, 3.25 * rows + 0.9), layout='constrained')
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, comparison in enumerate(comparisons):
        left, right = axes[index // 2, 2 * (index % 2) :][:2]
        _draw_instances(left, comparison.image, comparison.truth, names)
        _draw_instances(right, comparison.image, comparison.found, names)
        left.set_title('ground truth', fontsize=10)
        right.set_title('prediction', fontsize=10)
    figure.suptitle(title, fontsize=13)
    _save(figure, path)


def _draw_instances(
    axis: Axes, image: np.ndarray, instances: Instances, names: Sequence[str]
) -> None:
    axis.imshow(image)
    for index, (box, label) in enumerate(zip(instances.boxes, instances.labels)):
        colour = COLOURS[label % len(COLOURS)]
        mask = instances.masks[index]
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
        x1, y1, x2, y2 = box
        # Pixel (0, 0) is drawn around (0, 0), and a box begins at its corner.
        corner = (x1 - 0.5, y1 - 0.5)
        axis.add_patch(
            Rectangle(corner, x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.8)
        )
        text = names[label]
        if instances.scores is not None:
            text += f' {instances.scores[index]:.2f}'
        axis.text(
            *np.maximum(corner, 1),
            text,
            fontsize=7.5,
            verticalalignment='top',
            bbox={'facecolor': colour, 'edgecolor': 'none', 'pad': 1, 'alpha': 0.9},
            clip_on=True,
        )
    axis.set_xlim(-0.5, image.shape[1] - 0.5)
    axis.set_ylim(image.shape[0] - 0.5, -0.5)


def draw_history(history: History, goal: float, title: str, path: Path) -> None:
    """Draws the training loss, and the AP after each evaluation, over the epochs."""
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2, sharex=True)
    epochs, losses = np.array(history.loss, float).reshape(-1, 2).T
    left.plot(epochs, losses, color=COLOURS[1], alpha=0.5, label='as logged')
    left.plot(epochs, smooth(losses), color=COLOURS[5], linewidth=2, label='smoothed')
    left.set(title='Training loss', ylabel='sum of the losses (no unit)')
    for points, name, colour in (
        (history.box_ap, 'boxes', COLOURS[5]),
        (history.mask_ap, 'masks', COLOURS[6]),
    ):
        right.plot(*np.array(points, float).reshape(-1, 2).T, 'o-', color=colour)
        right.lines[-1].set_label(name)
    right.axhline(goal, color='grey', linestyle='--', label=f'goal {goal:.2f}')
    right.set(title='Validation AP', ylabel='COCO AP, IoU 0.50 to 0.95 (0 to 1)')
    for axis in (left, right):
        axis.axhline(0, color='none')  # Makes the automatic range begin at 0.
        axis.set_ylim(bottom=0)
        axis.set_xlabel('training time (epochs)')
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title, fontsize=13)
    _save(figure, path)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """The mean over up to `width` neighbours, fewer towards the ends."""
    if not len(values):
        return values
    padded = np.convolve(values, np.ones(width), mode='full')
    counts = np.convolve(np.ones_like(values), np.ones(width), mode='full')
    start = width // 2
    return (padded / counts)[start : start + len(values)]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
