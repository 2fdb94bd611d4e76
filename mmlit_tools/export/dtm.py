"""Write deformable token merging in ONNX's own operators, in two forms.

mmlit gathers (CPU) or calls mmcv's kernel (GPU); neither is an operator of ONNX. Both
forms here give the same numbers at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlit.models.downsample import MergeConv2d
from mmlit.ops.deform_merge import MERGE_SIZE


def deform_conv(tokens: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Write `deformable_merge` as one node; works in an export only."""
    return torch.onnx.ops.symbolic(
        'DeformConv',
        (tokens, weight, offsets),
        dict(
            kernel_shape=[MERGE_SIZE] * 2, strides=[MERGE_SIZE] * 2, pads=[0, 0, 0, 0]
        ),
        dtype=tokens.dtype,
        shape=(tokens.shape[0], weight.shape[0], *offsets.shape[2:]),
        version=FORMS['deform-conv'].opset,
    )


def grid_sample(tokens: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Compute `deformable_merge` by sampling a map of all points, and merging it 2x2.

    The map has twice the rows and columns of the merged tokens, a point each.
    """
    rows, columns = offsets.shape[2:]
    offsets = offsets.unflatten(1, (MERGE_SIZE, MERGE_SIZE, 2))
    y, x = offsets.permute(3, 0, 4, 1, 5, 2)  # B, rows, points, columns, points
    y = y.flatten(3).flatten(1, 2) + _line(rows, tokens)[:, None]
    x = x.flatten(3).flatten(1, 2) + _line(columns, tokens)
    height, width = tokens.shape[2:]
    # In grid_sample's coordinates the map reaches from -1 to 1, edge to edge.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    samples = F.grid_sample(tokens, grid, padding_mode='zeros', align_corners=False)
    return F.conv2d(samples, weight, stride=MERGE_SIZE)


def _line(cells: int, like: Tensor) -> Tensor:
    """Return the positions of all points on a line of this many cells."""
    return torch.arange(MERGE_SIZE * cells, device=like.device).to(like.dtype)


@dataclass(frozen=True)
class Form:
    """Describe a form of token merging.

    Args:
        merge: Replaces `deformable_merge`.
        opset: The first version of ONNX's operators that has the operator.
        operator: The operator of ONNX.
        onnxruntime: The first version that computes the operator on a CPU.
    """

    merge: Callable[[Tensor, Tensor, Tensor], Tensor]
    opset: int
    operator: str
    onnxruntime: tuple[int, int]


FORMS = {
    'deform-conv': Form(deform_conv, 19, 'DeformConv', (1, 25)),
    'grid-sample': Form(grid_sample, 16, 'GridSample', (1, 11)),
}


def set_form(network: nn.Module, name: str) -> None:
    """Replace every token merging of a network by a form of `FORMS`."""
    for module in network.modules():
        if isinstance(module, MergeConv2d):
            module.merge = FORMS[name].merge
