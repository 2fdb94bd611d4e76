"""Wrap a data pipeline so that failures name the offending file."""

import logging
from typing import Callable, List, Optional, Sequence, Union

import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from ..arguments import check_bool, check_int
from ..errors import BrokenSampleError, spell_error

#: Consecutive failures that end a training: the fault is not in single files.
MAX_CONSECUTIVE = 10
#: Maximum number of invalid class ids listed in an error.
MAX_LISTED = 8


@TRANSFORMS.register_module()
class PipelineGuard(BaseTransform):
    """Run transforms, and name the file of the image on which they fail.

    Errors of OpenCV, Pillow and numpy mostly do not, and end a training that has run
    for hours. With ``skip`` a broken image is left out with a warning: the guard
    returns ``None``, for which mmengine's datasets load another image at random. Ten
    failures in a row end the training.

    Our tools wrap the pipelines of a config; for others, write
    ``pipeline=[dict(type='PipelineGuard', transforms=pipeline)]``.

    Args:
        transforms: The pipeline.
        skip: Leave out samples that fail, as fits training; ``False`` fits validation,
            whose metrics would be those of other images.
        num_classes: The classes of a segmentor. Masks with ids beyond them then fail
            here by name, not as an ``IndexError`` in the loss (on a GPU, an abort).
            ``None`` does not check.
        ignore_index: The id that the loss ignores.

    Raises:
        BrokenSampleError: Ten images failed in a row; without ``skip``, one did.
    """

    def __init__(
        self,
        transforms: Sequence[Union[dict, Callable]],
        skip: bool = True,
        num_classes: Optional[int] = None,
        ignore_index: int = 255,
    ):
        self.pipeline = Compose(transforms)
        self.skip = check_bool('skip', skip)
        if num_classes is not None:
            check_int('num_classes', num_classes, 1)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._failures = 0

    @property
    def transforms(self) -> List[Callable]:
        """The wrapped transforms, in order."""
        return self.pipeline.transforms

    def transform(self, results: dict) -> Optional[dict]:
        """Return what the transforms return; ``None`` for a sample to leave out."""
        name = results.get('img_path', 'an image without img_path')
        mask = results.get('seg_map_path')
        try:
            packed = self.pipeline(results)
            self._check_mask(packed)
        except Exception as error:  # A transform may raise anything.
            mask = f' with the mask {mask}' if mask else ''
            text = f'{name}{mask} fails: {spell_error(error)}'
            self._failures += 1
            if not self.skip:
                raise BrokenSampleError(text) from error
            if self._failures == MAX_CONSECUTIVE:
                text = f'{MAX_CONSECUTIVE} images in a row fail, the last one: {text}'
                raise BrokenSampleError(text) from error
            print_log(f'Left out of training: {text}', 'current', level=logging.WARNING)
            return None
        self._failures = 0
        return packed

    def _check_mask(self, packed: Optional[dict]) -> None:
        """Check a mask's size and ids, whose faults the loss would not attribute."""
        image = (packed or {}).get('inputs')
        sample = (packed or {}).get('data_samples')
        mask = getattr(sample, 'gt_sem_seg', None)
        if not isinstance(image, torch.Tensor) or mask is None:
            return
        # Masks are resized with the image in training, but not in validation.
        sizes = tuple(image.shape[-2:]), tuple(sample.metainfo.get('ori_shape', ()))
        if tuple(mask.shape) not in sizes:
            text = 'the mask is of another size: {1}x{0} px, the image {3}x{2}'
            raise ValueError(text.format(*mask.shape, *image.shape[-2:]))
        if self.num_classes is None:
            return
        ids = mask.data[mask.data != self.ignore_index]
        invalid = ids[(ids < 0) | (ids >= self.num_classes)]
        if invalid.numel():
            raise ValueError(
                f'the mask has ids beyond the {self.num_classes} classes, as they are '
                f'after loading: {invalid.unique()[:MAX_LISTED].tolist()}'
            )
