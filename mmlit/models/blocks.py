"""Define the residual block: an MLP, in late stages after global attention."""

from typing import Optional

from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.chunked_mlp import apply_in_chunks
from .attention import GlobalAttention


class Mlp(BaseModule):
    """Linear, GELU, Linear on every token by itself, with dropout after either."""

    def __init__(self, channels: int, hidden_channels: int, drop_rate: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        tokens = x.flatten(0, -2)
        out = apply_in_chunks(self._layers, tokens, self.fc1.out_features)
        return out.view(x.shape)

    def _layers(self, tokens: Tensor) -> Tensor:
        hidden = self.drop(self.act(self.fc1(tokens)))
        return self.drop(self.fc2(hidden))


class Block(BaseModule):
    """A pre-norm residual block (paper, section 3.1, equations 1 to 3).

    Without ``attn`` it is an MLP block, with it a standard transformer block.

    Args:
        channels: Channels C.
        mlp_ratio: Hidden width of the MLP over C.
        norm_eps: Epsilon of the LayerNorms.
        drop_rate: Dropout in the MLP.
        drop_path_rate: Probability of skipping a residual branch for a sample.
        attn: The attention, or ``None`` for an MLP block.
    """

    def __init__(
        self,
        channels: int,
        mlp_ratio: float,
        norm_eps: float,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attn: Optional[GlobalAttention] = None,
    ):
        super().__init__()
        self.norm1 = None if attn is None else nn.LayerNorm(channels, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels, eps=norm_eps)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.attn is not None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
