"""Where a token is: relative bias tables and absolute embeddings, at any map size.

Both are learned at one reference size and resized to the map at hand, as the
authors do: relative tables bicubically, absolute embeddings bilinearly (both with
``align_corners=False``).
"""

from typing import Dict, List, Mapping, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from .archs import PATCH_SIZE
from .layouts import EMBEDDING, TABLE

#: Reference image side of the absolute embeddings; the authors pretrain at 224 and
#: resize the embeddings from there, whatever the task.
ABSOLUTE_IMG_SIZE = 224


def reference_grid(img_size: tuple, stage: int) -> tuple:
    """Token grid (rows, columns) of a stage (0-3) for an image of (h, w) pixels.

    The patch embedding pads to a multiple of 4 (so: rounds up), each token merging
    drops an odd last row or column (rounds down).
    """
    return tuple(-(-side // PATCH_SIZE) >> stage for side in img_size)


def resize_bias_table(table: Tensor, grid: tuple) -> Tensor:
    """Resize a bias table to a token grid, bicubically, as an image of offsets.

    Args:
        table: (heads, 2*S_h - 1, 2*S_w - 1); rows are dy, columns dx.
        grid: Target token grid (H, W).

    Returns:
        (heads, 2H-1, 2W-1) in the table's dtype, computed in float32 or better;
        the table itself where it has that size already.
    """
    size = (2 * grid[0] - 1, 2 * grid[1] - 1)
    if table.shape[-2:] == size:
        return table
    return _resize(table[None], size, 'bicubic')[0]


def resize_embedding(embed: Tensor, grid: tuple) -> Tensor:
    """Resize an absolute embedding to a token grid, bilinearly.

    Args:
        embed: (1, S_h, S_w, C).
        grid: Target token grid (H, W).

    Returns:
        (1, H, W, C) in the embedding's dtype, computed in float32 or better; the
        embedding itself where it has that size already.
    """
    if embed.shape[1:3] == tuple(grid):
        return embed
    image = _resize(embed.permute(0, 3, 1, 2), tuple(grid), 'bilinear')
    return image.permute(0, 2, 3, 1)


def fit_positions(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> Tuple[Dict[str, Tensor], List[str]]:
    """Resize the position parameters of a state dict to another reference size.

    As the authors do when they load: once, in float64 rounded to float32.

    Args:
        state: Weights under mmlit's keys.
        shapes: Wanted shapes by key, such as those of a network.

    Returns:
        The state dict with what was resized replaced, and the keys of that. Where
        heads or channels differ no resizing helps: those stay as they are.
    """
    fitted, resized = dict(state), []
    for key in shapes.keys() & state.keys():
        value, shape = state[key], tuple(shapes[key])
        if not isinstance(value, Tensor) or value.dim() != len(shape):
            continue
        if value.shape == shape:
            continue
        if key.endswith(TABLE) and value.shape[0] == shape[0]:
            grid = tuple((side + 1) // 2 for side in shape[1:])
            fitted[key] = resize_bias_table(value.double(), grid).float()
        elif key.endswith(EMBEDDING) and value.shape[::3] == shape[::3]:
            fitted[key] = resize_embedding(value.double(), shape[1:3]).float()
        else:
            continue
        resized.append(key)
    return fitted, resized


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
    heads, height, width = table.shape[0], *((n + 1) // 2 for n in table.shape[1:])
    windows = table.unfold(1, height, 1).unfold(2, width, 1)  # heads, y1, x1, ...
    tokens = height * width
    return windows.flip(3, 4).reshape(heads, tokens, tokens)


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
        laid_out[:, :, start : start + tokens] += row


def add_columns(table: Tensor, laid_out: Tensor, width: int, columns: slice) -> None:
    """The transpose of :func:`lay_out_columns`: adds to where it was read from."""
    parts = laid_out.unflatten(2, (-1, width))
    starts = range(table.shape[-1] - width + 1)
    for start, column in zip(starts[columns], parts.unbind(1)):
        table[:, :, start : start + width] += column


class RelativePositionBias(BaseModule):
    """The learned bias table of one attention block.

    The table is kept as an image of offsets, (heads, 2*S_h - 1, 2*S_w - 1), so that
    grids need not be square (the authors keep it flat, (rows, heads)).

    Args:
        num_heads: Attention heads.
        grid: Token grid (S_h, S_w) of the block at the reference image size.
    """

    def __init__(self, num_heads: int, grid: tuple):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
        )
        self.init_weights()

    def init_weights(self):
        """Truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, grid: tuple) -> Tensor:
        """The table for a token grid (H, W): (heads, 2H-1, 2W-1)."""
        return resize_bias_table(self.relative_position_bias_table, grid)


class AbsolutePosition(BaseModule):
    """A learned embedding, one vector per token, added where tokens enter a stage.

    Args:
        channels: Channels C of the stage.
        stage: Index of the stage (0-3), which gives the reference grid.
    """

    def __init__(self, channels: int, stage: int):
        super().__init__()
        grid = reference_grid((ABSOLUTE_IMG_SIZE,) * 2, stage)
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, *grid, channels))
        self.init_weights()

    def init_weights(self):
        """Truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the embedding, resized to the map: (B, H, W, C) -> (B, H, W, C)."""
        return x + resize_embedding(self.absolute_pos_embed, x.shape[1:3])


def _resize(image: Tensor, size: tuple, mode: str) -> Tensor:
    """(1, C, h, w) -> (1, C, *size); half precision is resized in float32."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    resized = F.interpolate(image.to(dtype), size=size, mode=mode, align_corners=False)
    return resized.to(image.dtype)
