"""Where a token is: relative bias tables and absolute embeddings, at any map size.

Both are learned at one reference size and resized to the map at hand, as the
authors do: relative tables bicubically, absolute embeddings bilinearly (both with
``align_corners=False``).
"""

from collections import OrderedDict
from typing import Dict, List, Mapping, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..archs import PATCH_SIZE
from ..arguments import wrong_weight
from ..ops.tracing import (
    define_op,
    differentiable,
    is_compiling,
    is_exporting,
    is_traced,
)
from ..weights.families import EMBEDDING, TABLE

#: Reference image side of the absolute embeddings; the authors pretrain at 224 and
#: resize the embeddings from there, whatever the task.
ABSOLUTE_IMG_SIZE = 224


def reference_grid(img_size: tuple, stage: int) -> tuple:
    """Token grid (rows, columns) of a stage (0-3) for an image of (h, w) pixels.

    The patch embedding pads to a multiple of 4 (so: rounds up), each token merging
    drops an odd last row or column (rounds down).
    """
    return tuple(-(-side // PATCH_SIZE) >> stage for side in img_size)


def resize_bias_table(table: Tensor, grid: tuple) -> Tensor:
    """Resize a bias table to a token grid, bicubically, as an image of offsets.

    Args:
        table: (heads, 2*S_h - 1, 2*S_w - 1); rows are dy, columns dx.
        grid: Target token grid (H, W).

    Returns:
        (heads, 2H-1, 2W-1) in the table's dtype, computed in float32 or better;
        the table itself where it has that size already.
    """
    size = (2 * grid[0] - 1, 2 * grid[1] - 1)
    if is_compiling():
        return _resize_op(table, *size)
    # To compare would fix the size in an exported graph.
    if not is_exporting() and table.shape[-2:] == size:
        return table
    return _resize_table(table, *size)


def resize_embedding(embed: Tensor, grid: tuple) -> Tensor:
    """Resize an absolute embedding to a token grid, bilinearly.

    Args:
        embed: (1, S_h, S_w, C).
        grid: Target token grid (H, W).

    Returns:
        (1, H, W, C) in the embedding's dtype, computed in float32 or better; the
        embedding itself where it has that size already.
    """
    if not is_exporting() and embed.shape[1:3] == tuple(grid):
        return embed
    image = _resize(embed.permute(0, 3, 1, 2), tuple(grid), 'bilinear')
    return image.permute(0, 2, 3, 1)


def fit_positions(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> Tuple[Dict[str, Tensor], List[str]]:
    """Resize the position parameters of a state dict to another reference size.

    As the authors do when they load: once, in float64 rounded to float32.

    Args:
        state: Weights under mmlit's keys.
        shapes: Wanted shapes by key, such as those of a network.

    Returns:
        The state dict with what was resized replaced, and the keys of that. Where
        heads or channels differ no resizing helps: those stay as they are.
    """
    fitted, resized = dict(state), []
    for key in shapes.keys() & state.keys():
        value, shape = state[key], tuple(shapes[key])
        if wrong_weight(key, value) or value.dim() != len(shape):
            continue
        if value.shape == shape or 0 in value.shape:
            continue
        if key.endswith(TABLE) and value.shape[0] == shape[0]:
            grid = tuple((side + 1) // 2 for side in shape[1:])
            fitted[key] = resize_bias_table(value.double(), grid).float()
        elif key.endswith(EMBEDDING) and value.shape[::3] == shape[::3]:
            fitted[key] = resize_embedding(value.double(), shape[1:3]).float()
        else:
            continue
        resized.append(key)
    return fitted, resized


class ResizedTables:
    """A table's resized copies for the map sizes met last, for inference.

    Changed weights are noticed by where they are and by torch's count of in-place
    changes. Writing through ``.data`` escapes that count; on the CPU the weights are
    compared as well, which costs little, and elsewhere, where it would wait for the
    device, :meth:`clear` is for that. A copied or pickled module starts with none.
    """

    #: Map sizes remembered.
    MOST = 4

    def __init__(self):
        self.clear()

    def __reduce__(self):
        return type(self), ()

    def clear(self) -> None:
        """Forget all of them."""
        self._whereabouts = self._copy = None
        self._resized = OrderedDict()

    def get(self, table: Tensor, grid: tuple) -> Tensor:
        """What ``resize_bias_table(table, grid)`` gives, without a gradient."""
        if not self._is_of(table):
            self.clear()
            self._whereabouts = _whereabouts(table)
            if table.device.type == 'cpu':
                self._copy = table.detach().clone()
        held = self._resized  # another thread may clear in between
        resized = held.pop(grid, None)
        if resized is None:
            resized = resize_bias_table(table.detach(), grid)
        held[grid] = resized
        while len(held) > self.MOST:
            held.popitem(last=False)
        return resized

    def _is_of(self, table: Tensor) -> bool:
        if self._whereabouts != _whereabouts(table):
            return False
        copy = self._copy  # another thread may clear in between
        return copy is None or torch.equal(copy, table)


def _whereabouts(table: Tensor) -> tuple:
    """What changes with a tensor that is replaced, or written to in place."""
    version = None if table.is_inference() else table._version
    return table.device, table.dtype, table.data_ptr(), version


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
        self.resized = ResizedTables()
        self.init_weights()

    def init_weights(self):
        """Truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def train(self, mode: bool = True) -> 'RelativePositionBias':
        """Set the mode; weights averaged or swapped in between are noticed by it."""
        self.resized.clear()
        return super().train(mode)

    def forward(self, grid: tuple) -> Tensor:
        """The table for a token grid (H, W): (heads, 2H-1, 2W-1)."""
        table = self.relative_position_bias_table
        if torch.is_grad_enabled() or is_traced():
            return resize_bias_table(table, grid)
        return self.resized.get(table, grid)


class AbsolutePosition(BaseModule):
    """A learned embedding, one vector per token, added where tokens enter a stage.

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
        """Truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the embedding, resized to the map: (B, H, W, C) -> (B, H, W, C)."""
        return x + resize_embedding(self.absolute_pos_embed, x.shape[1:3])


def _resize(image: Tensor, size: tuple, mode: str) -> Tensor:
    """(1, C, h, w) -> (1, C, *size); half precision is resized in float32."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    resized = F.interpolate(image.to(dtype), size=size, mode=mode, align_corners=False)
    return resized.to(image.dtype)


# torch 2.13's compiler cannot work out sizes such as 2H-1 in a bicubic resize, so for
# it the resize is an operator.


def _resize_table(table: Tensor, rows: int, columns: int) -> Tensor:
    return _resize(table[None], (rows, columns), 'bicubic')[0]


def _resize_table_backward(grad: Tensor, table: Tensor) -> Tensor:
    dtype = torch.promote_types(grad.dtype, torch.float32)
    return torch.ops.aten.upsample_bicubic2d_backward(
        grad.to(dtype)[None], grad.shape[1:], (1, *table.shape), False
    )[0].to(table.dtype)


_resize_backward_op = define_op(
    'resize_bias_table_backward',
    _resize_table_backward,
    lambda grad, table: torch.empty_like(table),
)
_resize_op = differentiable(
    define_op(
        'resize_bias_table',
        _resize_table,
        lambda table, rows, columns: table.new_empty(len(table), rows, columns),
    ),
    lambda ctx, grad: (_resize_backward_op(grad, *ctx.saved_tensors), None, None),
    lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)
