"""Merge 2x2 tokens by a deformable convolution of stride 2, without padding.

On a GPU mmcv's operator computes it. mmcv's loops for the CPU run on one thread and in
scattered order, and cost more than all of LIT's linear layers; here the CPU gathers
the four neighbours of each sampling point as whole tokens instead, with torch's
``embedding_bag``, to the same values and gradients.
"""

from types import SimpleNamespace
from typing import Tuple

import torch
import torch.nn.functional as F
from mmcv.ops.deform_conv import DeformConv2dFunction, deform_conv2d
from torch import Tensor

from .tracing import define_op, differentiable, is_compiling, is_exporting

MERGE_SIZE = 2
MAX_IM2COL_STEP = 32
FAR = 1e6  # tokens; larger than any map


def deformable_merge(tokens: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Sample 2x2 points around each merged token and join them.

    Args:
        tokens: (B, C, H, W), of any strides.
        offsets: (B, 8, H//2, W//2), y and x of each point, row by row, in tokens.
        weight: (C', C, 2, 2).

    Returns:
        (B, C', H//2, W//2). Bilinear samples; zeros lie outside the map. Non-finite
        offsets yield NaN outputs: mmcv would return zeros, hiding diverged weights
        behind finite losses.
    """
    if tokens.device.type == 'cpu':
        return _merge_gathered(tokens, offsets, weight)
    return _merge_by_mmcv(tokens, offsets, weight)


def _merge_by_mmcv(tokens: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    merge = _mmcv_op if is_compiling() or is_exporting() else _mmcv
    # mmcv turns offsets into integers unchecked: at a NaN its backward pass on a CPU
    # reads beyond the map, and ends the process.
    finite = offsets.nan_to_num(nan=FAR).clamp(-FAR, FAR)
    # Its kernels read memory in order: those of the GPU refuse any other, those of the
    # CPU do not look.
    merged = merge(*(x.contiguous() for x in (tokens, finite, weight)))
    return merged + (offsets * 0).sum(1, keepdim=True)


def _merge_gathered(tokens: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    corners, shares = _corners(offsets, tokens.shape[2:])
    channels = tokens.shape[1]
    samples = F.embedding_bag(
        corners,
        tokens.permute(0, 2, 3, 1).reshape(-1, channels),
        mode='sum',
        per_sample_weights=shares.to(tokens.dtype),
    )
    rows, columns = offsets.shape[2:]
    samples = samples.view(-1, MERGE_SIZE**2 * channels)  # points, then channels
    merged = F.linear(samples, weight.permute(0, 2, 3, 1).flatten(1))
    merged = merged.view(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)
    # torch 2.13's compiler fails to put the strides of a view in order where they
    # depend on an unknown size and the backward pass reads the view.
    return merged.contiguous() if is_compiling() else merged


def _corners(offsets: Tensor, grid: Tuple[int, int]) -> Tuple[Tensor, Tensor]:
    """Find the four tokens around each sampling point, and their bilinear shares.

    Both are (B * H//2 * W//2 * points, 4).
    """
    batch, _, rows, columns = offsets.shape
    points = torch.arange(MERGE_SIZE, device=offsets.device)
    cells = torch.arange(max(rows, columns), device=offsets.device) * MERGE_SIZE
    offsets = offsets.unflatten(1, (MERGE_SIZE, MERGE_SIZE, 2))
    y, x = offsets.permute(3, 0, 4, 5, 1, 2)  # B, rows, columns, points, points
    y = y + cells[:rows, None, None, None] + points[:, None]
    x = x + cells[:columns, None, None] + points
    top, top_shares = _neighbours(y, grid[0])
    left, left_shares = _neighbours(x, grid[1])
    image = torch.arange(batch, device=offsets.device) * (grid[0] * grid[1])
    indices = image.view(-1, 1, 1, 1, 1, 1, 1) + (
        top.unsqueeze(-1) * grid[1] + left.unsqueeze(-2)
    )
    shares = top_shares.unsqueeze(-1) * left_shares.unsqueeze(-2)
    return indices.reshape(-1, 4), shares.reshape(-1, 4)


def _neighbours(position: Tensor, length: int) -> Tuple[Tensor, Tensor]:
    """Find the two tokens beside a position on a line: indices and shares, (..., 2).

    Outside the line the share is 0. As in mmcv's operator, -1 itself is excluded:
    nothing to read there, but a gradient. A NaN position has NaN shares.
    """
    low = position.detach().floor()
    high_share = position - low
    indices = torch.stack([low, low + 1], -1)
    shares = torch.stack([1 - high_share, high_share], -1)
    valid = (indices >= 0) & (indices < length) & (position > -1).unsqueeze(-1)
    counted = valid | high_share.isnan().unsqueeze(-1)
    return torch.where(valid, indices, 0).long(), torch.where(counted, shares, 0)


def _im2col_step(batch: int) -> int:
    """Choose images per call of mmcv's kernel, which asserts a divisor of the batch."""
    return max(n for n in range(1, MAX_IM2COL_STEP + 1) if batch % n == 0)


def _mmcv(tokens: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    step = _im2col_step(len(tokens))
    return deform_conv2d(tokens, offsets, weight, MERGE_SIZE, 0, 1, 1, 1, False, step)


def _mmcv_backward(
    grad: Tensor, tokens: Tensor, offsets: Tensor, weight: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """Call mmcv's own backward pass with what its forward pass would have kept.

    In an operator nothing is recorded for autograd, so mmcv's function cannot be
    differentiated here in the usual way.
    """
    kept = SimpleNamespace(
        saved_tensors=(tokens, offsets, weight),
        needs_input_grad=(True, True, True),
        device=tokens.device.type,
        stride=(MERGE_SIZE, MERGE_SIZE),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        deform_groups=1,
        im2col_step=_im2col_step(len(tokens)),
        bufs_=[tokens.new_empty(0), tokens.new_empty(0)],
    )
    return DeformConv2dFunction.backward(kept, grad)[:3]


def _fake(tokens, offsets, weight):
    return tokens.new_empty(len(tokens), len(weight), *offsets.shape[2:])


_backward_op = define_op(
    'deform_conv2d_backward',
    _mmcv_backward,
    lambda grad, *inputs: tuple(torch.empty_like(x) for x in inputs),
)
_mmcv_op = differentiable(
    define_op('deform_conv2d', _mmcv, _fake),
    lambda ctx, grad: _backward_op(grad, *ctx.saved_tensors),
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
