"""Spell out the relative position bias of a table, densely or by map column.

A table is (heads, 2H-1, 2W-1) for an H x W map, see
:class:`mmlit.models.position.RelativePositionBias`.
"""

from typing import Tuple

import torch
from torch import Tensor

from .tracing import is_exporting


def grid_of(table: Tensor) -> Tuple[int, int]:
    """Return the token grid (H, W) that a table is for."""
    return (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2


def dense_bias(table: Tensor) -> Tensor:
    """Spell a bias table out for every pair of tokens: (heads, queries, keys).

    ``bias[h, (y1, x1), (y2, x2)] = table[h, y1 - y2 + H - 1, x1 - x2 + W - 1]``: for
    a fixed query the bias is a window of the table, read backwards, so strided views
    give it without an index tensor.
    """
    heads, (height, width) = len(table), grid_of(table)
    if is_exporting():
        return _gather_bias(table)
    windows = table.unfold(1, height, 1).unfold(2, width, 1)  # heads, y1, x1, ...
    tokens = height * width
    return windows.flip(3, 4).reshape(heads, tokens, tokens)


def _gather_bias(table: Tensor) -> Tensor:
    """Compute ``dense_bias`` in an exported graph, where a window's size is unknown."""
    heads, (height, width) = len(table), grid_of(table)
    rows, columns = _differences(height, table), _differences(width, table)
    bias = table.index_select(1, rows).index_select(2, columns)
    bias = bias.view(heads, height, height, width, width)
    return bias.transpose(2, 3).reshape(heads, height * width, height * width)


def _differences(length: int, table: Tensor) -> Tensor:
    """Index where each pair of positions on a line reads a table: (length**2,)."""
    line = torch.arange(length, device=table.device)
    return (line[:, None] - line + length - 1).flatten()


def unfold_columns(table: Tensor, width: int, columns: slice) -> Tensor:
    """Unfold a bias table into one strip for the queries of each map column.

    With the *keys* reversed, a query's window of the table reads forwards,
    ``bias[h, (y, x), reversed key (a, b)] = table[h, y + a, x + b]``, so all queries
    of map column x read ``table[:, :, x:x + W]``: (2H-1)*W numbers, where spelling
    their bias out takes H*N.

    Returns:
        (heads, columns, (2H-1)*W), for :func:`bias_windows`.
    """
    parts = table.unfold(2, width, 1)[:, :, columns]  # heads, 2H-1, columns, W
    return parts.transpose(1, 2).flatten(2)


def bias_windows(strips: Tensor, grid: tuple, rows: slice = slice(None)) -> Tensor:
    """View the bias of the queries in some map rows within the strips of their columns.

    The window of query (y, x) starts y*W numbers into the strip of column x, one of
    :func:`unfold_columns`.

    Returns:
        (heads, columns, rows, N), over reversed keys; its elements overlap.
    """
    height, width = grid
    return strips.unfold(2, height * width, width)[:, :, rows]


def add_windows(strips: Tensor, bias: Tensor, width: int, rows: slice) -> None:
    """Add to where :func:`bias_windows` reads: its transpose."""
    tokens = bias.shape[-1]
    starts = range(0, strips.shape[-1] - tokens + 1, width)
    for start, row in zip(starts[rows], bias.unbind(2)):
        strips.narrow(2, start, tokens).add_(row)


def add_columns(table: Tensor, strips: Tensor, width: int, columns: slice) -> None:
    """Add to where :func:`unfold_columns` reads: its transpose."""
    parts = strips.unflatten(2, (-1, width))
    starts = range(table.shape[-1] - width + 1)
    for start, column in zip(starts[columns], parts.unbind(1)):
        table.narrow(2, start, width).add_(column)
