"""A pipeline around a pipeline: it names the file that the inner one fails on."""

import logging
from typing import Callable, List, Optional, Sequence, Union

import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from ..arguments import check_bool, check_int
from ..errors import BrokenSampleError, spell_error

#: Failures one after the other that no longer are the fault of single files.
IN_A_ROW = 10
#: So many of the ids that are no classes are named.
NAMED = 8


@TRANSFORMS.register_module()
class PipelineGuard(BaseTransform):
    """Runs transforms, and names the file of the image that they fail on.

    What OpenCV, Pillow and numpy raise on a broken image or mask mostly does not say
    which, and ends a training that has run for hours. With ``skip`` such an image is
    left out with a warning instead: where a pipeline returns ``None``, mmengine's data
    sets take another image at random. Ten in a row are no single files any more, and
    end the training, as each one does without ``skip``.

    ``tools/train.py`` and ``tools/test.py`` put it around the pipelines of a config
    by themselves; for other tools write ``pipeline=[dict(type='PipelineGuard',
    transforms=pipeline)]``.

    Args:
        transforms: The pipeline.
        skip: Leave out what fails, as fits training; ``False`` fits validation, whose
            figures would be those of other images.
        num_classes: The classes of a segmentor. A mask with an id beyond them then
            fails by its name, where the loss would raise an ``IndexError`` (on a GPU,
            end the process). ``None`` does not look.
        ignore_index: The id that the loss leaves out.

    Raises:
        TypeError, ValueError: An argument is none of these.
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
        self._failed = 0

    @property
    def transforms(self) -> List[Callable]:
        """What is guarded, in order."""
        return self.pipeline.transforms

    def transform(self, results: dict) -> Optional[dict]:
        """What the transforms make of an image; ``None`` where it is left out."""
        name = results.get('img_path', 'an image without img_path')
        mask = results.get('seg_map_path')
        try:
            packed = self.pipeline(results)
            self._check_mask(packed)
        except Exception as error:  # A transform may raise anything.
            said = f'{name}{f" with the mask {mask}" if mask else ""} fails: '
            said += spell_error(error)
            self._failed += 1
            if not self.skip:
                raise BrokenSampleError(said) from error
            if self._failed == IN_A_ROW:
                raise BrokenSampleError(
                    f'{IN_A_ROW} images in a row cannot be used, the last one: {said}'
                ) from error
            print_log(f'Left out of training: {said}', 'current', level=logging.WARNING)
            return None
        self._failed = 0
        return packed

    def _check_mask(self, packed: Optional[dict]) -> None:
        """Does a mask fit its image, as resized or as in the file, and the classes?

        If not, the loss would fail, in a batch in which nobody finds the image.
        """
        image = (packed or {}).get('inputs')
        sample = (packed or {}).get('data_samples')
        mask = getattr(sample, 'gt_sem_seg', None)
        if not isinstance(image, torch.Tensor) or mask is None:
            return
        sizes = tuple(image.shape[-2:]), tuple(sample.metainfo.get('ori_shape', ()))
        if tuple(mask.shape) not in sizes:
            raise ValueError(
                'the mask is of another size: {1}x{0} px, the image {3}x{2}'.format(
                    *mask.shape, *image.shape[-2:]
                )
            )
        if self.num_classes is None:
            return
        ids = mask.data[mask.data != self.ignore_index]
        beyond = ids[(ids < 0) | (ids >= self.num_classes)]
        if beyond.numel():
            raise ValueError(
                f'the mask has ids beyond the {self.num_classes} classes, as they are '
                f'after loading: {beyond.unique()[:NAMED].tolist()}'
            )


def unguarded(transforms: Sequence[Callable]) -> List[Callable]:
    """The transforms of a pipeline, those inside of guards in their place."""
    flat = []
    for step in transforms:
        flat += step.transforms if isinstance(step, PipelineGuard) else [step]
    return flat
