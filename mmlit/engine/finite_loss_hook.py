"""End a training whose loss or weights are NaN or infinite."""

import math
from typing import Any, Iterator, List

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..arguments import check_int
from ..errors import NonFiniteLossError

#: Maximum number of images of a batch listed in an error.
MAX_LISTED = 8


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """End a training after some consecutive iterations with a NaN or infinite loss.

    The error names the iterations, the losses and the images, also those of the
    iteration before, whose step may have spoilt the weights. Non-finite weights are not
    saved either: the training ends, and earlier checkpoints stay::

        custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)
        default_hooks = dict(finite_loss=dict(type='FiniteLossHook', in_a_row=3))

    Each process of a distributed run checks its own images.

    Args:
        in_a_row: Number of such iterations. Mixed precision recovers from one or two:
            its loss scaling skips those steps.

    Raises:
        NonFiniteLossError: The training ends.
    """

    priority = 'NORMAL'

    def __init__(self, in_a_row: int = 3):
        self.in_a_row = check_int('in_a_row', in_a_row, 1)
        self._failures: List[str] = []
        self._previous_images = ''

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Check the losses of the iteration."""
        images = _name_images(data_batch)
        listed = []
        for name, value in (outputs or {}).items():
            value = value.item() if isinstance(value, torch.Tensor) else value
            if 'loss' in name and not math.isfinite(value):
                listed.append(f'{name} {value}')
        if not listed:
            self._failures, self._previous_images = [], images
            return
        iteration = f'iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        self._failures.append(f'{iteration}: {", ".join(listed)}; {images}')
        if len(self._failures) >= self.in_a_row:
            raise NonFiniteLossError(
                f'the loss is not finite, {len(self._failures)} times in a row, so '
                f'training ends. {self._describe()}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save non-finite weights."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # FSDP wraps each block in a module, whose name checkpoints leave out.
        wrapped = '_fsdp_wrapped_module.'
        parameters = {n.replace(wrapped, '') for n, _ in model.named_parameters()}
        for name, value in checkpoint['state_dict'].items():
            # A buffer may be a mask of -inf.
            if (~value.isfinite() if name in parameters else value.isnan()).any():
                raise NonFiniteLossError(
                    f'the weights are not finite (first {name}) after iteration '
                    f'{checkpoint["meta"]["iter"]}, so they are not saved and training '
                    f'ends. {self._describe()}'
                )

    def _describe(self) -> str:
        lines = [*self._failures, f'The iteration before: {self._previous_images}']
        return '. '.join(lines) + (
            '. Check these images and their labels, and try a lower learning rate or '
            'gradient clipping; --resume continues from the last checkpoint'
        )


def _name_images(batch: Any) -> str:
    names = [str(name) for name in _find_images(batch)]
    if not names:
        return 'unknown images'
    more = f' and {len(names) - MAX_LISTED} more' if len(names) > MAX_LISTED else ''
    return f'images {", ".join(names[:MAX_LISTED])}{more}'


def _find_images(batch: Any) -> Iterator[Any]:
    """Yield the paths, or else the ids, of the images of a nested batch."""
    if isinstance(batch, BaseDataElement):
        found = batch.metainfo
        if 'img_path' in found or 'img_id' in found:
            yield found.get('img_path', found.get('img_id'))
    elif isinstance(batch, (dict, list, tuple)):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from _find_images(value)
