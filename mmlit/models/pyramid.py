"""One level of the pyramid; what happens in it, in order."""

from typing import Optional, Sequence

import torch
import torch.utils.checkpoint
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .blocks import Block


class Stage(BaseModule):
    """One level of the pyramid: enter, position, blocks.

    The output norm lives here, but only the emitted map goes through it: the next
    stage reads the tokens as they are.

    Args:
        enter: What makes this stage's tokens: patch embedding or token merging.
        position: Absolute embedding, or ``None``.
        drop_rate: Dropout after the position step.
        blocks: The blocks.
        out_norm: LayerNorm of the emitted map, or ``None``.
        with_cp: Recompute each block in the backward pass instead of storing it.
    """

    def __init__(
        self,
        enter: nn.Module,
        position: Optional[nn.Module],
        drop_rate: float,
        blocks: Sequence[Block],
        out_norm: Optional[nn.Module],
        with_cp: bool,
    ):
        super().__init__()
        self.enter = enter
        self.position = position
        self.drop = nn.Dropout(drop_rate)
        self.blocks = ModuleList(blocks)
        self.out_norm = out_norm
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Image or previous tokens -> this stage's tokens (B, H, W, C)."""
        x = self.enter(x)
        if self.position is not None:
            x = self.position(x)
        x = self.drop(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def emit(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W), normalised where this level has a norm."""
        if self.out_norm is not None:
            x = self.out_norm(x)
        return x.permute(0, 3, 1, 2).contiguous()
