"""Compute exact attention in chunks, with memory linear in the number of tokens.

Each chunk is computed by torch's fused attention with its own bias rows; the backward
pass computes a chunk's attention weights again. Nothing of size N x N exists at any
time, in training either. Queries are taken by map column, since the bias of a whole
column is a strided view of a small strip (see ``relative_bias.unfold_columns``).
"""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .relative_bias import (
    add_columns,
    add_windows,
    bias_windows,
    grid_of,
    unfold_columns,
)
from .tracing import define_op, differentiable

#: Bytes that a chunk's attention weights, or its bias rows, may take. On the CPU they
#: should stay in the cache; a GPU wants chunks that keep all of it busy.
CPU_BUDGET = 8 * 2**20
GPU_BUDGET = 256 * 2**20


def chunked(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """Attend in chunks: a kernel of :mod:`mmlit.ops.attention`, for any device.

    Raises:
        ValueError: Dropout is asked for.
    """
    if dropout_p:
        raise ValueError(f'the chunked kernel has no dropout, got {dropout_p}')
    return _attention(q, k, v, bias_table)


class Chunk(NamedTuple):
    """Queries of some heads, in some map columns and rows."""

    heads: slice
    columns: slice
    rows: slice


def chunks(heads: int, grid: Tuple[int, int], max_queries: int) -> Iterator[Chunk]:
    """Split the queries of all heads into chunks of at most ``max_queries``.

    Whole columns of all heads while they fit, then of fewer heads, then parts of a
    column of one head.
    """
    height, width = grid
    for h in _slices(heads, max_queries // height):
        for x in _slices(width, max_queries // (heads * height)):
            for y in _slices(height, max_queries):
                yield Chunk(h, x, y)


def _slices(length: int, max_length: int) -> Iterator[slice]:
    """Cover 0..length by slices of at most ``max_length``, about equally long."""
    count = -(-length // max(1, max_length))
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


def _forward(q: Tensor, k: Tensor, v: Tensor, table: Optional[Tensor]) -> Tensor:
    out = _empty_output(q)
    forward = _forward_on_cpu if q.device.type == 'cpu' else _forward_with_masks
    with torch.autocast(q.device.type, enabled=False):  # dtypes are chosen here
        forward(q, k, v, table, _by_column(out, _grid(q, table)))
    return out


def _forward_on_cpu(q, k, v, table, out) -> None:
    """Read the bias windows where they lie, by fused attention.

    A map column takes the place of a head in its arguments, so that the mask of each
    is one strided view.
    """
    grid, dtype = _grid(q, table), _compute_dtype(q)
    batch, heads, tokens = q.shape[:3]
    q = _by_column(q.to(dtype), grid)
    k, v = (_reversed_keys(x, dtype).unsqueeze(2) for x in (k, v))
    bytes_per_column = heads * (2 * grid[0] - 1) * grid[1] * k.element_size()
    for columns in _slices(grid[1], CPU_BUDGET // bytes_per_column):
        mask = None
        if table is not None:
            strips = unfold_columns(table.to(dtype), grid[1], columns)
            mask = bias_windows(strips, grid)
        for b in range(batch):
            q_part = q[b, :, columns]
            size = (heads, q_part.shape[1], tokens, -1)
            out[b, :, columns] = F.scaled_dot_product_attention(
                q_part, k[b].expand(size), v[b].expand(size), attn_mask=mask
            )


def _forward_with_masks(q, k, v, table, out) -> None:
    """Spell a chunk's bias rows out for fused attention, on other devices."""
    grid, dtype = _grid(q, table), _compute_dtype(q)
    q = _by_column(q.to(dtype), grid)
    k, v = _reversed_keys(k, dtype), _reversed_keys(v, dtype)
    for heads, columns, rows in chunks(q.shape[1], grid, _max_queries(k)):
        q_part, mask = q[:, heads, columns, rows], None
        if table is not None:
            strips = unfold_columns(table[heads].to(dtype), grid[1], columns)
            mask = bias_windows(strips, grid, rows).flatten(1, 2)[None]
        part = F.scaled_dot_product_attention(
            q_part.flatten(2, 3), k[:, heads], v[:, heads], attn_mask=mask
        )
        out[:, heads, columns, rows] = part.view(q_part.shape)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Optional[Tensor], out: Tensor
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k, v and the table (empty where there is none).

    With S = q k^T / sqrt(d) + bias, P = softmax(S) and out = P v, each chunk gives
    dv += P^T dout; dS = P * (dout v^T - rowsum(dout * out)); dq = dS k / sqrt(d);
    dk += dS^T q / sqrt(d); and to the table dS where its bias was read.
    """
    grid, dtype = _grid(q, table), _compute_dtype(q)
    scale, sum_dtype = q.shape[-1] ** -0.5, torch.promote_types(q.dtype, torch.float32)
    inner = _by_column((grad.to(dtype) * out).sum(-1, keepdim=True), grid)
    q_, grad = (_by_column(x, grid) for x in (q.to(dtype) * scale, grad.to(dtype)))
    k_, v_ = _reversed_keys(k, dtype), _reversed_keys(v, dtype)
    dq = _empty_output(q)
    dk, dv = (torch.zeros_like(x, dtype=sum_dtype) for x in (k_, v_))
    d_table = q.new_empty(0) if table is None else torch.zeros_like(table)
    for chunk in chunks(q.shape[1], grid, _max_queries(k_)):
        heads, columns, rows = chunk
        strips = bias = None
        if table is not None:
            strips = unfold_columns(table[heads].to(dtype), grid[1], columns)
            bias = bias_windows(strips, grid, rows)
            d_strips = torch.zeros_like(strips, dtype=sum_dtype)
        for b in range(len(q)):
            q_part, grad_part, inner_part = (x[b][chunk] for x in (q_, grad, inner))
            size = q_part.shape[:3]
            q_part, grad_part = q_part.flatten(1, 2), grad_part.flatten(1, 2)
            scores = q_part @ k_[b, heads].mT
            if bias is not None:
                scores.view(bias.shape).add_(bias)
            weights = scores.softmax(-1)
            _add_product(dv[b, heads], weights.mT, grad_part)
            d_scores = grad_part @ v_[b, heads].mT
            d_scores.sub_(inner_part.flatten(1, 2)).mul_(weights)
            _add_product(dk[b, heads], d_scores.mT, q_part)
            dq_part = (d_scores @ k_[b, heads]).mul_(scale)
            _by_column(dq, grid)[b][chunk] = dq_part.unflatten(1, size[1:])
            if table is not None:
                d_bias = d_scores.unflatten(1, size[1:])
                add_windows(d_strips, d_bias, grid[1], rows)
        if table is not None:
            add_columns(d_table[heads], d_strips, grid[1], columns)
    return dq, dk.flip(2).to(q.dtype), dv.flip(2).to(q.dtype), d_table


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where the total may be kept in a better precision."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total.add_(a @ b)


def _grid(q: Tensor, table: Optional[Tensor]) -> Tuple[int, int]:
    """Return the token grid; without a bias nothing depends on it: one column."""
    return (q.shape[2], 1) if table is None else grid_of(table)


def _compute_dtype(q: Tensor) -> torch.dtype:
    """Compute half precision in float32 on the CPU, measured to be faster."""
    if q.device.type == 'cpu':
        return torch.promote_types(q.dtype, torch.float32)
    return q.dtype


def _max_queries(k: Tensor) -> int:
    budget = CPU_BUDGET if k.device.type == 'cpu' else GPU_BUDGET
    return budget // (k.shape[2] * k.element_size())


def _by_column(tokens: Tensor, grid: Tuple[int, int]) -> Tensor:
    """(B, heads, N, d) -> a view (B, heads, W, H, d)."""
    return tokens.unflatten(2, grid).transpose(2, 3)


def _reversed_keys(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return tokens.to(dtype).flip(2).contiguous()


def _empty_output(q: Tensor) -> Tensor:
    """Allocate (B, heads, N, d) such that joining the heads copies nothing."""
    batch, heads, tokens, channels = q.shape
    return q.new_empty(batch, tokens, heads, channels).transpose(1, 2)


def _fake_backward(grad, q, k, v, table, out):
    d_table = q.new_empty(0) if table is None else torch.empty_like(table)
    # dk and dv leave `_backward` with the strides of a fresh tensor.
    return _empty_output(q), q.new_empty(k.shape), q.new_empty(v.shape), d_table


_backward_op = define_op('chunked_attention_backward', _backward, _fake_backward)


def _save(ctx, inputs, output):
    ctx.has_table = inputs[3] is not None
    ctx.save_for_backward(*inputs, output)


def _gradients(ctx, grad):
    *gradients, d_table = _backward_op(grad, *ctx.saved_tensors)
    return (*gradients, d_table if ctx.has_table else None)


_attention = differentiable(
    define_op('chunked_attention', _forward, lambda q, k, v, table: _empty_output(q)),
    _gradients,
    _save,
)
