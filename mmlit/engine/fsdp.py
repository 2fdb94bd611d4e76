"""Shard LIT between processes with FSDP, in mmengine's `FlexibleRunner`.

`import mmlit` does not import this: a config names it in `custom_imports`, as
`configs/detection/mask-rcnn_lit-b_fpn_fsdp_1x_coco.py` does.
"""

import os
from pathlib import Path
from typing import Any, Dict, Optional, Union

from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from ..models.blocks import Block

#: One file in the layout of unsharded runs. It is not offloaded to the CPU first, of
#: which torch 2.13 dies where the CPU is the device (a tensor is freed twice).
WHOLE_CHECKPOINTS = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True),
)


@FUNCTIONS.register_module()
def wrap_lit_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Make each block of LIT an FSDP unit, as an ``auto_wrap_policy``.

    FSDP gathers the parameters of a unit when its ``forward`` is called. Stages, whose
    ``out_norm`` LIT calls, and heads (``loss``, ``predict``) are also used otherwise.
    """
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class LITFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy, set up for LIT, with checkpoints that resume.

    In configs: ``runner_type = 'FlexibleRunner'`` and
    ``strategy = dict(type='LITFSDPStrategy')``. It runs on GPUs over NCCL and, for a
    trial, on CPUs over gloo. The weights in its checkpoints load in any run; the
    optimizer's state resumes in a sharded run of any number of processes.

    Args:
        model_wrapper: Arguments of mmengine's ``MMFullyShardedDataParallel``, besides
            a unit for each block (``auto_wrap_policy``).
        state_dict_cfg: As in ``FSDPStrategy``; ``None`` is one whole file.
        kwargs: Those of ``FSDPStrategy``.
    """

    def __init__(
        self,
        *,
        model_wrapper: Optional[dict] = None,
        state_dict_cfg: Optional[Union[str, dict]] = None,
        **kwargs: Any,
    ):
        wrapper = dict(
            type='MMFullyShardedDataParallel', auto_wrap_policy='wrap_lit_blocks'
        )
        if get_device() == 'cpu':
            wrapper['device_id'] = 'cpu'  # mmengine's own is the number of a GPU
        wrapper.update(model_wrapper or {})
        whole = state_dict_cfg or WHOLE_CHECKPOINTS
        super().__init__(model_wrapper=wrapper, state_dict_cfg=whole, **kwargs)

    def load_model_state_dict(self, state_dict: Dict[str, Any], **kwargs: Any) -> None:
        """Load the weights into the shards; see ``FSDPStrategy``."""
        # LIT compares what it loads with its own whole state dict, in each process.
        whole = FullStateDictConfig(rank0_only=False)
        with FSDP.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, whole):
            super().load_model_state_dict(state_dict, **kwargs)

    def load_optim_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the optimizer's state into the shards; see ``FSDPStrategy``."""
        # mmengine passes these by position, in the order of torch 2.0.
        shards = FSDP.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=state_dict,
        )
        self.optim_wrapper.load_state_dict(shards)

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Save a file whole or not at all; see ``FSDPStrategy``."""
        if '://' in filename or not self._is_full_state_dict():
            super().save_checkpoint(filename, **kwargs)
            return
        # FlexibleRunner ignores the hook's backend_args, so write atomically here; the
        # hook cleans up stale *.part files.
        path = Path(filename)
        part = path.with_name(f'.{path.name}.part')
        try:
            super().save_checkpoint(str(part), **kwargs)
            if is_main_process():
                with part.open('rb') as file:
                    os.fsync(file.fileno())
                os.replace(part, path)
        except OSError as error:
            raise OSError(f'{path} cannot be written: {error.strerror}') from error
        finally:
            if is_main_process() and part.exists():
                part.unlink()
