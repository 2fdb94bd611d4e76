"""Resize position parameters to another token grid.

Both kinds are learned at one reference size and resized to the map at hand as the
authors do, with ``align_corners=False``: relative bias tables bicubically, absolute
embeddings bilinearly. Half precision is resized in float32 and rounded back; what has
the right size already is returned as it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import define_op, differentiable, is_compiling, is_exporting


def resize_bias_table(table: Tensor, grid: tuple) -> Tensor:
    """Resize a table, (heads, dy, dx), to a token grid (H, W): (heads, 2H-1, 2W-1)."""
    size = (2 * grid[0] - 1, 2 * grid[1] - 1)
    if is_compiling():
        return _resize_op(table, *size)
    # A comparison would fix the size in an exported graph.
    if not is_exporting() and table.shape[-2:] == size:
        return table
    return _resize_table(table, *size)


def resize_embedding(embed: Tensor, grid: tuple) -> Tensor:
    """Resize an embedding, (1, S_h, S_w, C), to a token grid: (1, H, W, C)."""
    if not is_exporting() and embed.shape[1:3] == tuple(grid):
        return embed
    image = _interpolate(embed.permute(0, 3, 1, 2), tuple(grid), 'bilinear')
    return image.permute(0, 2, 3, 1)


def _interpolate(image: Tensor, size: tuple, mode: str) -> Tensor:
    """(1, C, h, w) -> (1, C, *size)."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    resized = F.interpolate(image.to(dtype), size=size, mode=mode, align_corners=False)
    return resized.to(image.dtype)


# An operator for torch.compile: torch 2.13's compiler cannot work out sizes such as
# 2H-1 in a bicubic resize.


def _resize_table(table: Tensor, rows: int, columns: int) -> Tensor:
    return _interpolate(table[None], (rows, columns), 'bicubic')[0]


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
