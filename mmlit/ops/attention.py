"""Compute the same exact attention by different kernels.

A kernel is a function ``kernel(q, k, v, bias_table, dropout_p) -> out``:

- ``q``, ``k``, ``v`` and ``out``: (B, heads, N, d), N = H*W tokens in row order;
- ``bias_table``: (heads, 2H-1, 2W-1), the relative position bias of this very map
  (see :class:`mmlit.models.position.RelativePositionBias`), or ``None``;
- ``dropout_p``: dropout on the attention weights, 0 outside training.

It computes softmax(q k^T / sqrt(d) + bias) v over all N tokens. ``eager`` is the
definition, the others are tested against it. To add a kernel, write the function
and enter it in :data:`KERNELS`; blocks and backbone stay as they are.
"""

import math
from typing import Callable, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked_attention import chunked
from .flex_attention import flex, why_no_flex
from .relative_bias import bias_windows, dense_bias, grid_of, unfold_columns
from .tracing import is_compiling, is_exporting

Kernel = Callable[[Tensor, Tensor, Tensor, Optional[Tensor], float], Tensor]


def eager(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """Define attention, plainly; materialises (B, heads, N, N) scores."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    if bias_table is not None:
        scores = scores + dense_bias(bias_table).to(scores.dtype)
    weights = F.dropout(scores.softmax(dim=-1), dropout_p).to(v.dtype)
    return weights @ v


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """Fuse attention by torch, with the dense bias (heads, N, N) as its mask.

    With the keys reversed, the bias is a plain copy of windows of the table.
    """
    mask = None
    if bias_table is not None:
        k, v = k.flip(2), v.flip(2)
        grid = grid_of(bias_table)
        strips = unfold_columns(bias_table.to(q.dtype), grid[1], slice(None))
        mask = bias_windows(strips, grid).transpose(1, 2).flatten(1, 2)[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


#: Up to this size of the dense bias (bytes), spelling it out costs less than chunks.
SMALL_BIAS = {'cpu': 2 * 2**20, 'cuda': 64 * 2**20}


def auto(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """Choose the best of the others for the case at hand, as measured.

    ``docs/performance.md`` shows the measurements. On a GPU, where they take about the
    same time, memory decides.
    """
    if is_exporting():
        return eager(q, k, v, bias_table, dropout_p)
    if bias_table is None or dropout_p:
        return sdpa(q, k, v, bias_table, dropout_p)
    heads, tokens = q.shape[1:3]
    bias_bytes = heads * tokens**2 * q.element_size()
    learned = torch.is_grad_enabled() and bias_table.requires_grad
    deterministic = torch.are_deterministic_algorithms_enabled()
    small = bias_bytes <= SMALL_BIAS.get(q.device.type, 0)
    if not small or is_compiling() or (learned and deterministic):
        return chunked(q, k, v, bias_table, dropout_p)
    return sdpa(q, k, v, bias_table, dropout_p)


KERNELS: Dict[str, Kernel] = dict(
    auto=auto, eager=eager, sdpa=sdpa, chunked=chunked, flex=flex
)
#: The kernels that refuse dropout on the attention weights.
WITHOUT_DROPOUT = ('chunked', 'flex')


def resolve_kernel(name: str, dropout_p: float = 0.0) -> Kernel:
    """Return the kernel that an ``attn_kernel`` argument means.

    Raises:
        ValueError: Unknown name, a kernel that cannot run here, or one without the
            dropout asked for.
    """
    if not isinstance(name, str) or name not in KERNELS:
        raise ValueError(
            f'attn_kernel={name!r} is unknown; valid: {", ".join(KERNELS)}'
        )
    reason = why_no_flex() if name == 'flex' else None
    if reason:
        raise ValueError(
            f"attn_kernel='flex' cannot run here: {reason}; take 'auto' or 'chunked'"
        )
    if dropout_p and name in WITHOUT_DROPOUT:
        raise ValueError(
            f'attn_kernel={name!r} has no dropout, so attn_drop_rate={dropout_p} must '
            "be 0; 'auto', 'sdpa' and 'eager' have it"
        )
    return KERNELS[name]
