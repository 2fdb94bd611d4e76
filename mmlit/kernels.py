"""Attention kernels: the same exact attention, computed in different ways.

A kernel is a function ``kernel(q, k, v, bias_table, dropout_p) -> out``:

- ``q``, ``k``, ``v`` and ``out``: (B, heads, N, d), N = H*W tokens in row order;
- ``bias_table``: (heads, 2H-1, 2W-1), the relative position bias of this very map
  (see :mod:`mmlit.position`), or ``None``;
- ``dropout_p``: dropout on the attention weights, 0 outside training.

It computes softmax(q k^T / sqrt(d) + bias) v over all N tokens. ``eager`` is the
definition, the others are tested against it. To add a kernel, write the function
and enter it in :data:`KERNELS`; blocks and backbone stay as they are.
"""

import math
from typing import Callable, Dict, Optional

import torch.nn.functional as F
from torch import Tensor

from .position import dense_bias

Kernel = Callable[[Tensor, Tensor, Tensor, Optional[Tensor], float], Tensor]


def eager(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """The definition, written plainly; materialises (B, heads, N, N) scores."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    if bias_table is not None:
        scores = scores + dense_bias(bias_table).to(scores.dtype)
    weights = F.dropout(scores.softmax(dim=-1), dropout_p).to(v.dtype)
    return weights @ v


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """torch's fused attention with the dense bias (heads, N, N) as its mask."""
    mask = None if bias_table is None else dense_bias(bias_table).to(q.dtype)[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


KERNELS: Dict[str, Kernel] = {'eager': eager, 'sdpa': sdpa}


def resolve_kernel(name: str) -> Kernel:
    """The kernel that an ``attn_kernel`` argument means; ``'auto'`` is ``sdpa``.

    Raises:
        ValueError: Unknown name.
    """
    if name == 'auto':
        return sdpa
    if not isinstance(name, str) or name not in KERNELS:
        valid = ', '.join(['auto', *KERNELS])
        raise ValueError(f'attn_kernel={name!r} is unknown; valid: {valid}')
    return KERNELS[name]
