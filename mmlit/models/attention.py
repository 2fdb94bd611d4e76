"""Attend from every token to every token of a map: no windows."""

from typing import Optional, Tuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.attention import resolve_kernel
from .position import RelativePositionBias


class GlobalAttention(BaseModule):
    """Multi-head self-attention over a whole token map (paper, section 3.2).

    Args:
        channels: Channels C, split over the heads.
        num_heads: Attention heads; divides ``channels``.
        bias_grid: Token grid of the relative position bias at the reference image
            size; ``None`` for no bias (absolute archs).
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout after the output projection.
        attn_kernel: Name of the kernel, see :mod:`mmlit.ops.attention`.

    Raises:
        ValueError: Unknown kernel, or one that cannot run here or has no dropout.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        bias_grid: Optional[Tuple[int, int]] = None,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_kernel: str = 'auto',
    ):
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.kernel = resolve_kernel(attn_kernel, attn_drop_rate)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.position_bias = (
            None if bias_grid is None else RelativePositionBias(num_heads, bias_grid)
        )
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        B, H, W, C = x.shape
        qkv = self.qkv(x.flatten(0, 2))
        qkv = qkv.view(B, H * W, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, heads, N, d)
        bias_table = None if self.position_bias is None else self.position_bias((H, W))
        dropout_p = self.attn_drop_rate if self.training else 0.0
        out = self.kernel(q, k, v, bias_table, dropout_p)
        out = self.proj(out.transpose(1, 2).reshape(B * H * W, C))
        return self.proj_drop(out.view(B, H, W, C))
