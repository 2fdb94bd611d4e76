"""Read and draw boxes and masks for the demo of detection."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

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

# Less certain predictions are left out of the pictures.
MIN_SCORE = 0.5


@dataclass
class Instances:
    """The objects of one image."""

    boxes: np.ndarray  # (n, 4) as x1, y1, x2, y2 in pixels
    labels: np.ndarray  # (n,) indices into `CATEGORIES`
    masks: np.ndarray  # (n, H, W) bool
    scores: np.ndarray | None = None  # (n,), where they were predicted

    def draw(self, axis: Axes) -> None:
        """Draw the objects over their image."""
        for index, (box, label) in enumerate(zip(self.boxes, self.labels)):
            colour = COLOURS[label % len(COLOURS)]
            draw_mask(axis, self.masks[index], colour)
            x1, y1, x2, y2 = box
            # Pixel (0, 0) is drawn around (0, 0), and a box begins at its corner.
            corner = (x1 - 0.5, y1 - 0.5)
            outline = Rectangle(
                corner, x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.8
            )
            axis.add_patch(outline)
            text = CATEGORIES[label]
            if self.scores is not None:
                text += f' {self.scores[index]:.2f}'
            draw_tag(axis, np.maximum(corner, 1), text, colour, verticalalignment='top')


def read(data: Path, results: Path, count: int) -> list[Comparison]:
    """Read images with their objects.

    Args:
        data: Folder of the shapes dataset.
        results: Pickle that `tools/test.py --out` wrote.
        count: Number of images.
    """
    coco = COCO(str(data / 'annotations' / 'val.json'))
    comparisons = []
    for entry in pick_evenly(pickle.loads(results.read_bytes()), count):
        image = read_image(Path(entry['img_path']))
        found = _found(entry['pred_instances'], image.shape[:2])
        comparisons.append(Comparison(image, _truth(coco, entry['img_id']), found))
    return comparisons


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


def _found(entry: dict, shape: tuple[int, int]) -> Instances:
    scores = np.asarray(entry['scores'])
    keep = np.flatnonzero(scores >= MIN_SCORE)
    masks = [coco_mask.decode(entry['masks'][i]) for i in keep]
    return Instances(
        boxes=np.asarray(entry['bboxes'])[keep],
        labels=np.asarray(entry['labels'])[keep],
        masks=np.array(masks, bool).reshape(-1, *shape),
        scores=scores[keep],
    )


DETECTION = Task(
    keys={'box AP': 'coco/bbox_mAP', 'mask AP': 'coco/segm_mAP'},
    perfect=1,
    axis='COCO AP, IoU 0.50 to 0.95 (0 to 1)',
    goal=0.4,
    duration='10 to 20 minutes on two CPU cores, less on a GPU',
    results='results.pkl',
    test_options=('test_evaluator.classwise=True',),
    read=read,
    # The metric keeps one figure a category, that of the type evaluated last: masks.
    categories={f'mask AP of {name}': f'coco/{name}_precision' for name in CATEGORIES},
)
