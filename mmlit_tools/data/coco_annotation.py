"""Check COCO annotations one by one: box, mask, references."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from mmlit_tools.data.findings import Findings

# Boxes of the real COCO reach over the edge by fractions of a pixel.
EXACT, ROUNDING = 0.01, 2.0
MIN_SIDE = 1  # px of a box
MIN_POINTS = 3  # of a polygon
MAX_DISTANCE = 2  # image sides from the corner: pycocotools takes memory for all of it
MAX_CODES = 7  # characters of one run: 35 bits


class AnnotationCheck:
    """Check annotations, and count them.

    Args:
        images: Images of the json by id.
        categories: Names of its categories by id.
        with_masks: Whether the pipeline loads masks: then a missing one is an error.
        findings: Where to note them.

    Attributes:
        annotated: Ids of the images that have an annotation.
        per_category: Number of annotations by category id.
    """

    def __init__(
        self, images: dict, categories: dict, with_masks: bool, findings: Findings
    ):
        self.images = images
        self.categories = categories
        self.with_masks = with_masks
        self.findings = findings
        self.annotated: set = set()
        self.per_category: Counter = Counter()

    def __call__(self, annotation: dict) -> None:
        """Check one annotation, whose keys are those of COCO, of proper types."""
        self.per_category[annotation['category_id']] += 1
        self.annotated.add(annotation['image_id'])
        image = self.images.get(annotation['image_id'])
        name = f'annotation {annotation["id"]}'
        if annotation['category_id'] not in self.categories:
            self.findings.error(
                'annotation of a category that the json does not list',
                f'{name}: category_id {annotation["category_id"]}',
            )
        if image is None:
            self.findings.error(
                'annotation of an image that the json does not list',
                f'{name}: image_id {annotation["image_id"]}',
            )
            return
        name += f' of {image["file_name"]}'
        self._check_box(annotation['bbox'], annotation['area'], image, name)
        if self.with_masks:
            self._check_mask(annotation.get('segmentation'), image, name)

    def _check_box(self, box: list, area: float, image: dict, name: str) -> None:
        x, y, width, height = box
        said = f'{name}: bbox {box} in {image["width"]}x{image["height"]} px'
        if width <= 0 or height <= 0 or area <= 0:
            said += f', area {area:g}'
            self.findings.warn('box without an area (mmdet drops it)', said)
        elif width < MIN_SIDE or height < MIN_SIDE:
            self.findings.warn('box of less than 1 px (mmdet drops it)', said)
        over = max(-x, -y, x + width - image['width'], y + height - image['height'])
        if over > ROUNDING:
            self.findings.error(
                f'box that leaves its image by more than {ROUNDING:g} px '
                '(a bbox is x, y, width, height in pixels)',
                said,
            )
        elif over > EXACT:
            self.findings.warn('box that leaves its image by a rounding', said)

    def _check_mask(self, mask, image: dict, name: str) -> None:
        fault = ''
        if not mask:
            fault = 'no segmentation, and the pipeline loads masks'
        elif isinstance(mask, dict):
            fault = _fault_of_rle(mask, image)
        elif not isinstance(mask, list):
            fault = f'segmentation is neither polygons nor RLE but {mask!r:.40}'
        elif not all(is_numbers(polygon) for polygon in mask):
            fault = 'segmentation is not a list of lists of numbers'
        else:
            sizes = [len(polygon) for polygon in mask]
            if any(size % 2 or size < 2 * MIN_POINTS for size in sizes):
                fault = f'polygons of {sizes} numbers: need x, y of 3 points or more'
            else:
                fault = _fault_of_points(mask, image)
        if fault:
            self.findings.error('annotation without a proper mask', f'{name}: {fault}')


def is_number(value) -> bool:
    """Tell whether a value of the json is a finite number."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def is_numbers(values) -> bool:
    """Tell whether a value of the json is a list of finite numbers."""
    return isinstance(values, list) and all(map(is_number, values))


def is_box(value) -> bool:
    """Tell whether a value of the json is a list of four finite numbers."""
    return is_numbers(value) and len(value) == 4


def _fault_of_points(polygons: list, image: dict) -> str:
    for polygon in polygons:
        for axis, key in enumerate(('width', 'height')):
            farthest = max(polygon[axis::2], key=abs)
            if abs(farthest) > MAX_DISTANCE * image[key]:
                return (
                    f'a polygon has a point at {"xy"[axis]}={farthest:g}, far outside '
                    f'of the {key} {image[key]}'
                )
    return ''


def _fault_of_rle(mask: dict, image: dict) -> str:
    counts, size = mask.get('counts'), mask.get('size')
    wanted = [image['height'], image['width']]
    if not isinstance(counts, (list, str)) or not counts:
        return "RLE without 'counts'"
    if size != wanted:
        return f'RLE of size {size}, its image has {wanted} (height, width)'
    # pycocotools believes them: runs that end early leave what was in the memory.
    if isinstance(counts, str):
        counts = _unpacked(counts)
    elif not all(type(count) is int for count in counts):
        return 'counts of the RLE are not whole numbers'
    if len(counts) == 0 or min(counts) < 0 or sum(counts) != size[0] * size[1]:
        return f'counts of the RLE do not add up to {size[0]} x {size[1]} pixels'
    return ''


def _unpacked(text: str) -> list[int]:
    """Decode the runs of a packed COCO RLE; an invalid one gives [].

    Five bits a character, from 48 on, low ones first; the sixth bit says that more
    follow, the last one's fifth is the sign. From the fourth run on, a value is the
    difference to the last run but one.
    """
    codes = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    if codes.min() < 0 or codes.max() > 63 or codes[-1] > 31:
        return []
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - starts
    if lengths.max() > MAX_CODES:
        return []
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= (codes[ends] >> 4 & 1) << (5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs.tolist()
