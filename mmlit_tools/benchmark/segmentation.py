"""Synthetic ground truth for the whole segmentors that `benchmark.py` measures."""

from __future__ import annotations

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

#: What mmseg's losses pass over.
UNLABELLED = 255


def make_samples(
    images: Tensor, num_classes: int, unlabelled_share: float
) -> list[SegDataSample]:
    """A random class for each pixel, the same in every run.

    Args:
        images: (B, 3, H, W).
        num_classes: Labels are below it.
        unlabelled_share: How much of the pixels is 255 instead, from 0 to 1.

    Returns:
        One sample per image, its labels of shape (1, H, W).
    """
    height, width = images.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in images:
        labels = torch.randint(num_classes, (1, height, width), generator=generator)
        chance = torch.rand(labels.shape, generator=generator)
        labels[chance < unlabelled_share] = UNLABELLED
        samples.append(
            SegDataSample(
                metainfo=dict(
                    img_shape=(height, width),
                    ori_shape=(height, width),
                    pad_shape=(height, width),
                ),
                gt_sem_seg=PixelData(data=labels.to(images.device)),
            )
        )
    return samples
