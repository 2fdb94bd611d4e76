"""Hold position parameters: relative bias tables and absolute embeddings.

:mod:`mmlit.ops.resize` says how they are resized to the map at hand.
"""

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..archs import PATCH_SIZE
from ..ops.resize import resize_bias_table, resize_embedding

#: Reference image side of the absolute embeddings; the authors pretrain at 224 and
#: resize the embeddings from there, whatever the task.
ABSOLUTE_IMG_SIZE = 224


def reference_grid(img_size: tuple, stage: int) -> tuple:
    """Compute the token grid (rows, columns) of a stage (0-3) for an image of (h, w).

    The patch embedding pads to a multiple of 4 (so: rounds up), each token merging
    drops an odd last row or column (rounds down).
    """
    return tuple(-(-side // PATCH_SIZE) >> stage for side in img_size)


class RelativePositionBias(BaseModule):
    """The learned bias table of one attention block.

    The table is kept as an image of offsets, (heads, 2*S_h - 1, 2*S_w - 1), so that
    grids need not be square (the authors keep it flat, (rows, heads)).

    Args:
        num_heads: Attention heads.
        grid: Token grid (S_h, S_w) of the block at the reference image size.
    """

    def __init__(self, num_heads: int, grid: tuple):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
        )
        self.init_weights()

    def init_weights(self):
        """Draw from a truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, grid: tuple) -> Tensor:
        """Resize the table to a token grid (H, W): (heads, 2H-1, 2W-1)."""
        return resize_bias_table(self.relative_position_bias_table, grid)


class AbsolutePosition(BaseModule):
    """A learned embedding, one vector per token, added to the tokens of a stage.

    Args:
        channels: Channels C of the stage.
        stage: Index of the stage (0-3), which gives the reference grid.
    """

    def __init__(self, channels: int, stage: int):
        super().__init__()
        grid = reference_grid((ABSOLUTE_IMG_SIZE,) * 2, stage)
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, *grid, channels))
        self.init_weights()

    def init_weights(self):
        """Draw from a truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the embedding, resized to the map: (B, H, W, C) -> (B, H, W, C)."""
        return x + resize_embedding(self.absolute_pos_embed, x.shape[1:3])
