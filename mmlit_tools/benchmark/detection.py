"""Synthetic ground truth for the whole detectors that `benchmark.py` measures."""

from __future__ import annotations

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor


def make_samples(images: Tensor, count: int) -> list[DetDataSample]:
    """Boxes with masks at random places, the same in every run.

    Args:
        images: (B, 3, H, W).
        count: Objects per image, all of the first category.

    Returns:
        One sample per image. Boxes are a tenth to a half of the image wide and high;
        a mask fills its box.
    """
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
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                pad_shape=(height, width),
                batch_input_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes).float().to(images.device),
            labels=torch.zeros(count, dtype=torch.long, device=images.device),
            masks=BitmapMasks(masks, height, width),
        )
        samples.append(sample)
    return samples
