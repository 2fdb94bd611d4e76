"""The relative position bias, spelt out from its table: views, copies, transposes.

A table is (heads, 2H-1, 2W-1) for an H x W map, see :mod:`mmlit.models.position`.
"""

from typing import Tuple

import torch
from torch import Tensor

from .tracing import is_exporting


def grid_of(table: Tensor) -> Tuple[int, int]:
    """The token grid (H, W) that a table is for."""
    return (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2


def dense_bias(table: Tensor) -> Tensor:
    """Spell a bias table out for every pair of tokens.

    ``bias[h, (y1, x1), (y2, x2)] = table[h, y1 - y2 + H - 1, x1 - x2 + W - 1]``: for
    a fixed query the bias is a window of the table, read backwards, so strided views
    give it without an index tensor.

    Args:
        table: (heads, 2H-1, 2W-1).

    Returns:
        (heads, H*W, H*W), queries before keys.
    """
    heads, (height, width) = len(table), grid_of(table)
    if is_exporting():
        return _gather_bias(table)
    windows = table.unfold(1, height, 1).unfold(2, width, 1)  # heads, y1, x1, ...
    tokens = height * width
    return windows.flip(3, 4).reshape(heads, tokens, tokens)


def _gather_bias(table: Tensor) -> Tensor:
    """``dense_bias`` for an exported graph, where a window's size may be unknown."""
    heads, (height, width) = len(table), grid_of(table)
    rows, columns = _differences(height, table), _differences(width, table)
    bias = table.index_select(1, rows).index_select(2, columns)
    bias = bias.view(heads, height, height, width, width)
    return bias.transpose(2, 3).reshape(heads, height * width, height * width)


def _differences(length: int, table: Tensor) -> Tensor:
    """(length**2,): where each pair of positions on a line reads a table."""
    line = torch.arange(length, device=table.device)
    return (line[:, None] - line + length - 1).flatten()


def lay_out_columns(table: Tensor, width: int, columns: slice) -> Tensor:
    """What queries of some map columns need of a bias table, as one row each.

    With the *keys* reversed, a query's window of the table reads forwards,
    ``bias[h, (y, x), reversed key (a, b)] = table[h, y + a, x + b]``, so all queries
    of map column x read ``table[:, :, x:x + W]``: (2H-1)*W numbers, where spelling
    their bias out takes H*N.

    Args:
        table: (heads, 2H-1, 2W-1).
        width: Map width W.
        columns: The map columns x.

    Returns:
        (heads, columns, (2H-1)*W), for :func:`bias_windows`.
    """
    parts = table.unfold(2, width, 1)[:, :, columns]  # heads, 2H-1, columns, W
    return parts.transpose(1, 2).flatten(2)


def bias_windows(laid_out: Tensor, grid: tuple, rows: slice = slice(None)) -> Tensor:
    """The bias of the queries in some map rows of :func:`lay_out_columns`, as a view.

    The window of query (y, x) starts y*W numbers into its column's row.

    Args:
        laid_out: (heads, columns, (2H-1)*W).
        grid: Token grid (H, W).
        rows: The map rows y.

    Returns:
        (heads, columns, rows, N), over reversed keys; its elements overlap.
    """
    height, width = grid
    return laid_out.unfold(2, height * width, width)[:, :, rows]


def add_windows(laid_out: Tensor, bias: Tensor, width: int, rows: slice) -> None:
    """The transpose of :func:`bias_windows`: adds bias to where it was read from."""
    tokens = bias.shape[-1]
    starts = range(0, laid_out.shape[-1] - tokens + 1, width)
    for start, row in zip(starts[rows], bias.unbind(2)):
        laid_out.narrow(2, start, tokens).add_(row)


def add_columns(table: Tensor, laid_out: Tensor, width: int, columns: slice) -> None:
    """The transpose of :func:`lay_out_columns`: adds to where it was read from."""
    parts = laid_out.unflatten(2, (-1, width))
    starts = range(table.shape[-1] - width + 1)
    for start, column in zip(starts[columns], parts.unbind(1)):
        table.narrow(2, start, width).add_(column)
