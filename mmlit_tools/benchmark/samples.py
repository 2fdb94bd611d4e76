"""Make synthetic ground truth for detectors and segmentors, the same in every run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: The label that mmseg's losses ignore.
IGNORED = 255


def detection_samples(images: Tensor, count: int) -> list:
    """Make boxes with masks at random places.

    Args:
        images: (B, 3, H, W).
        count: Objects per image, all of the first category.

    Returns:
        One `DetDataSample` per image. Boxes are a tenth to a half of the image wide
        and high; a mask fills its box.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = images.shape[-2:]
    size = np.array([width, height])
    random = np.random.RandomState(0)
    samples = []
    for _ in images:
        extent = random.uniform(0.1, 0.5, (count, 2))
        corner = random.uniform(0, 1 - extent)
        boxes = np.concatenate([corner * size, (corner + extent) * size], axis=1)
        masks = np.zeros((count, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        objects = InstanceData(
            bboxes=torch.from_numpy(boxes).float().to(images.device),
            labels=torch.zeros(count, dtype=torch.long, device=images.device),
            masks=BitmapMasks(masks, height, width),
        )
        shapes = dict(_shapes(images), batch_input_shape=(height, width))
        sample = DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0)))
        sample.gt_instances = objects
        samples.append(sample)
    return samples


def segmentation_samples(images: Tensor, num_classes: int, ignored: float) -> list:
    """Make a random class for each pixel.

    Args:
        images: (B, 3, H, W).
        num_classes: Labels are below it.
        ignored: The share of pixels that are 255 instead, from 0 to 1.

    Returns:
        One `SegDataSample` per image, its labels of shape (1, H, W).
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in images:
        size = (1, *images.shape[-2:])
        labels = torch.randint(num_classes, size, generator=generator)
        labels[torch.rand(size, generator=generator) < ignored] = IGNORED
        labels = PixelData(data=labels.to(images.device))
        samples.append(SegDataSample(metainfo=_shapes(images), gt_sem_seg=labels))
    return samples


def _shapes(images: Tensor) -> dict[str, tuple[int, int]]:
    size = tuple(images.shape[-2:])
    return dict(img_shape=size, ori_shape=size, pad_shape=size)
