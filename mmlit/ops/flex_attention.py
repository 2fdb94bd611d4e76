"""Look the bias up inside torch's fused FlexAttention kernel, on CUDA.

Neither bias nor scores exist in memory, the table's gradient included. The kernel is
compiled once, by torch.compile with triton, for all image sizes: the sizes of the map
reach it as tensors only.
"""

import functools
import importlib.util
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .relative_bias import grid_of

#: The first torch whose FlexAttention gives gradients of captured tensors.
MIN_TORCH = (2, 6)


def why_no_flex() -> Optional[str]:
    """Say why this kernel cannot run here, or return ``None`` if it can."""
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < MIN_TORCH:
        return f'it needs torch 2.6 or newer, this is {torch.__version__}'
    if not torch.cuda.is_available():
        return 'it needs a CUDA device, torch sees none'
    if importlib.util.find_spec('triton') is None:
        return 'it needs triton, which is not installed'
    return None


def flex(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Optional[Tensor], dropout_p: float
) -> Tensor:
    """Attend without bias or scores in memory: a kernel of :mod:`mmlit.ops.attention`.

    Raises:
        ValueError: Dropout is asked for, or tensors are not on a CUDA device.
    """
    if dropout_p:
        raise ValueError(f'the flex kernel has no dropout, got {dropout_p}')
    if q.device.type != 'cuda':
        raise ValueError(f'the flex kernel needs CUDA tensors, got {q.device}')
    if bias_table is None:
        return F.scaled_dot_product_attention(q, k, v)
    return _compiled()(q, k, v, score_mod=bias_lookup(bias_table))


def bias_lookup(bias_table: Tensor) -> Callable:
    """Return FlexAttention's ``score_mod`` that adds the relative position bias.

    Read flat, ``bias[h, i, j] = table[h, place[i] - place[j] + centre]`` with
    ``place = y * (2W-1) + x`` of a token. The places are tensors rather than
    arithmetic with W, which the compiler would bake in.
    """
    y, x = (torch.arange(n, device=bias_table.device) for n in grid_of(bias_table))
    of_key = (y[:, None] * bias_table.shape[2] + x).flatten()
    of_query = of_key + of_key[-1]  # place of the last token: the centre
    flat = bias_table.flatten(1)

    def add_bias(score, batch, head, query, key):
        return score + flat[head, of_query[query] - of_key[key]]

    return add_bias


@functools.lru_cache(maxsize=None)
def _compiled() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
