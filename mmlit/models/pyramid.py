"""One level of the pyramid; what happens in it, in order."""

from typing import Optional, Sequence

import torch
import torch.utils.checkpoint
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .blocks import Block


class Stage(BaseModule):
    """One level of the pyramid: patch embedding or token merging, then blocks.

    The output norm lives here, but only the emitted map goes through it: the next
    stage reads the tokens as they are.

    Args:
        patch_embed: Makes tokens of the image; in stage 0 only.
        downsample: Merges the tokens of the stage before; in later stages only.
        pos_embed: Absolute embedding, or ``None``.
        drop_rate: Dropout after the position embedding.
        blocks: The blocks.
        out_norm: LayerNorm of the emitted map, or ``None``.
        with_cp: Recompute each block in the backward pass instead of storing it.
    """

    def __init__(
        self,
        patch_embed: Optional[nn.Module],
        downsample: Optional[nn.Module],
        pos_embed: Optional[nn.Module],
        drop_rate: float,
        blocks: Sequence[Block],
        out_norm: Optional[nn.Module],
        with_cp: bool,
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.downsample = downsample
        self.pos_embed = pos_embed
        self.drop = nn.Dropout(drop_rate)
        self.blocks = ModuleList(blocks)
        self.out_norm = out_norm
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Image or previous tokens -> this stage's tokens (B, H, W, C)."""
        x = self.patch_embed(x) if self.downsample is None else self.downsample(x)
        if self.pos_embed is not None:
            x = self.pos_embed(x)
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
