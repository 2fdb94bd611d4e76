"""Apply an MLP to tokens in chunks that stay in the CPU's cache."""

from typing import Callable

import torch
from torch import Tensor

from .tracing import is_compiling, is_exporting

#: CPU inference: cap on MLP activations per chunk (bytes), sized to stay in cache.
HIDDEN_BYTES = 8 * 2**20


def apply_in_chunks(
    mlp: Callable[[Tensor], Tensor], tokens: Tensor, hidden_channels: int
) -> Tensor:
    """Apply an MLP to tokens, in CPU inference a chunk at a time.

    Elsewhere all tokens go at once: a backward pass would keep the activations of every
    chunk, and a trace must not depend on how many there are. The widest layer, of
    ``hidden_channels``, decides how many tokens make a chunk.
    """
    traced = is_compiling() or is_exporting() or torch.jit.is_tracing()
    if torch.is_grad_enabled() or tokens.device.type != 'cpu' or traced:
        return mlp(tokens)
    chunk = max(1, HIDDEN_BYTES // (hidden_channels * tokens.element_size()))
    return torch.cat([mlp(part) for part in tokens.split(chunk)])
