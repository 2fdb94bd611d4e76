"""Train in mixed precision on the CPU, where mmengine's AmpOptimWrapper refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper with forward pass and loss under bfloat16 autocast.

    bfloat16 has the range of float32, so losses are not scaled. What backbone, neck
    and heads return is cast to float32: the code between them calls operators of mmcv
    (NMS, RoIAlign) that have no bfloat16 version for the CPU. Arguments are those of
    mmengine's OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Open the context of the forward pass and the loss."""
        if is_model_wrapper(model):
            model = model.module
        with ExitStack() as stack:
            stack.enter_context(super().optim_context(model))
            for part in _parts(model):
                stack.enter_context(_returns_float32(part))
            stack.enter_context(torch.autocast('cpu', torch.bfloat16))
            yield


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield backbone, neck and heads, and the heads inside of a RoI head."""
    for part in model.children():
        yield part
        yield from part.children()


@contextmanager
def _returns_float32(module: nn.Module) -> Iterator[None]:
    hook = module.register_forward_hook(lambda _, inputs, output: _float32(output))
    try:
        yield
    finally:
        hook.remove()


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_float32(item) for item in value)
    return value
