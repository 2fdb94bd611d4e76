"""Run one step of a model: forward, in training also backward.

Images, weights and ground truth are random, and the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmlit_tools.benchmark.models import DTYPES, Settings
from mmlit_tools.benchmark.samples import detection_samples, segmentation_samples

OBJECTS_PER_IMAGE = 8
#: Share of the pixels in the ground truth of a segmentor.
IGNORED_SHARE = 0.1


class Step:
    """One step of a model on random images of one shape.

    Args:
        model: As `build_model` makes it.
        scope: Of its config, or None for a backbone.
        shape: (height, width) of the images in pixels.
        settings: As for `build_model`.
    """

    def __init__(
        self,
        model: nn.Module,
        scope: str | None,
        shape: tuple[int, int],
        settings: Settings,
    ):
        self.model = model
        self._settings = settings
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(settings.batch, 3, *shape, generator=generator)
        images = images.to(settings.device)
        self._compute = COMPUTES[scope](model, images, settings.training)

    def forward(self) -> Tensor | None:
        """Run the forward pass; in training, return the loss."""
        device, dtype = torch.device(self._settings.device), self._settings.dtype
        with torch.set_grad_enabled(self._settings.training), torch.autocast(
            device.type, DTYPES[dtype], enabled=dtype != 'float32'
        ):
            return self._compute()

    def __call__(self) -> None:
        """Run the whole step; in training, with the backward pass."""
        loss = self.forward()
        if self._settings.training:
            loss.backward()
            self.model.zero_grad(set_to_none=True)


def _compute_backbone(
    model: nn.Module, images: Tensor, training: bool
) -> Callable[[], Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4096, generator=generator).to(images.device)

    def compute():
        levels = model(images)
        if not training:
            return None
        # One weight per channel: no two gradients are alike, at no cost in memory.
        means = (level.mean((2, 3), dtype=torch.float32) for level in levels)
        return sum((mean * weights[: mean.shape[1]]).mean() for mean in means)

    return compute


def _compute_detector(
    model: nn.Module, images: Tensor, training: bool
) -> Callable[[], Tensor | None]:
    samples = detection_samples(images, OBJECTS_PER_IMAGE)

    def compute():
        if training:
            return model.parse_losses(model(images, samples, mode='loss'))[0]
        model(images, samples, mode='tensor')
        return None

    return compute


def _compute_segmentor(
    model: nn.Module, images: Tensor, training: bool
) -> Callable[[], Tensor | None]:
    samples = segmentation_samples(images, model.num_classes, IGNORED_SHARE)
    infos = [sample.metainfo for sample in samples]

    def compute():
        if training:
            return model.parse_losses(model(images, samples, mode='loss'))[0]
        # As mmseg's own prediction: the logits are resized to the image.
        model.encode_decode(images, infos)
        return None

    return compute


#: Makers of a step's computation, by scope; None: of a backbone alone.
COMPUTES = {
    None: _compute_backbone,
    'mmdet': _compute_detector,
    'mmseg': _compute_segmentor,
}
