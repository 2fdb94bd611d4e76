"""An mmengine hook that ends a training whose loss is no number any more."""

import math
from typing import Any, Dict, Iterator, List, Optional

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..arguments import check_int
from ..errors import NonFiniteLossError

#: So many images of a batch are named.
NAMED = 8


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends a training after some iterations in a row whose loss is NaN or infinite.

    The error names the iterations, the losses and the images, those of the iteration
    before among them: weights that a step spoils show in the next loss. It also keeps
    weights that are not finite out of the checkpoints: those saved before stay, and the
    training ends::

        custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)
        default_hooks = dict(finite_loss=dict(type='FiniteLossHook', in_a_row=3))

    Each process of a distributed run looks at its own images.

    Args:
        in_a_row: How many such iterations end it. Mixed precision gets over one or two:
            its loss scaling leaves those steps out.

    Raises:
        TypeError, ValueError: `in_a_row` is not a positive int.
        NonFiniteLossError: The training ends.
    """

    priority = 'NORMAL'

    def __init__(self, in_a_row: int = 3):
        self.in_a_row = check_int('in_a_row', in_a_row, 1)
        self._bad: List[str] = []
        self._images_before = ''

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[Dict[str, Any]] = None,
    ) -> None:
        """Look at the losses of the iteration."""
        images = _name_images(data_batch)
        losses = {
            name: value.item() if isinstance(value, torch.Tensor) else value
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        wrong = {n: value for n, value in losses.items() if not math.isfinite(value)}
        if not wrong:
            self._bad, self._images_before = [], images
            return
        listed = ', '.join(f'{name} {value}' for name, value in wrong.items())
        moment = f'iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        self._bad.append(f'{moment}: {listed}; {images}')
        if len(self._bad) >= self.in_a_row:
            raise NonFiniteLossError(
                f'the loss is not finite, {len(self._bad)} times in a row, so training '
                f'ends. {self._describe()}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep weights that are not finite out of the checkpoints."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # FSDP puts a module of its own around each block; checkpoints leave it out.
        parameters = {
            name.replace('_fsdp_wrapped_module.', '')
            for name, _ in model.named_parameters()
        }
        for name, value in checkpoint['state_dict'].items():
            if not torch.is_floating_point(value):
                continue
            # A buffer may be a mask of -inf.
            wrong = ~value.isfinite() if name in parameters else value.isnan()
            if wrong.any():
                raise NonFiniteLossError(
                    f'the weights are not finite (first of all {name}) after iteration '
                    f'{checkpoint["meta"]["iter"]}, so they are not saved and training '
                    f'ends. {self._describe()}'
                )

    def _describe(self) -> str:
        lines = [*self._bad, f'The iteration before: {self._images_before}']
        return (
            '. '.join(lines)
            + '. Look at these images and their labels, and try a lower learning rate '
            'or gradient clipping; resuming goes on from the last checkpoint'
        )


def _name_images(batch: Any) -> str:
    names = [str(name) for name in _find_images(batch)]
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    return f'images {", ".join(names[:NAMED])}{more}' if names else 'images unknown'


def _find_images(batch: Any) -> Iterator[Any]:
    """The paths, or else the ids, of the images of a batch, however it is nested."""
    if isinstance(batch, BaseDataElement):
        found = batch.metainfo
        if 'img_path' in found or 'img_id' in found:
            yield found.get('img_path', found.get('img_id'))
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _find_images(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _find_images(value)
