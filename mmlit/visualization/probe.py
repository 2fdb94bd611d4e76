"""What LIT does with an image, read out of it through forward hooks.

Where each merged token samples, what each query attends to, and the level maps. The
fused kernels never hold the attention weights, so they are computed anew, of chosen
queries only, from what went into the attention and with the module's own layers.
"""

import math
from contextlib import ExitStack, contextmanager
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..archs import PATCH_SIZE
from ..models.attention import GlobalAttention
from ..models.downsample import DeformableTokenMerging
from ..models.lit import LIT
from ..ops.deform_merge import MERGE_SIZE
from ..ops.relative_bias import bias_windows, lay_out_columns


def stride_of(stage: int) -> int:
    """Side in input pixels of a token of a stage (0-3)."""
    return PATCH_SIZE * MERGE_SIZE**stage


class Merging(NamedTuple):
    """Where the merged tokens that enter a stage sampled from.

    Args:
        stage: The stage that they enter, 1-3.
        offsets: (rows, columns, 4, 2), dy and dx of each point, row by row, in tokens
            of the stage before.
        grid: The map (H, W) of tokens that was sampled.
    """

    stage: int
    offsets: Tensor
    grid: Tuple[int, int]

    def displacements(self) -> Tensor:
        """Length of each offset in tokens of the stage before: (rows, columns, 4)."""
        return self.offsets.norm(dim=-1)

    def anchors(self) -> Tensor:
        """Where they would be without offsets; otherwise as :meth:`points`."""
        return self._pixels(torch.zeros_like(self.offsets))

    def points(self) -> Tensor:
        """The points that were sampled: (rows, columns, 4, 2), x and y in input pixels.

        Pixels are squares: the image spans 0..w and 0..h, and the middle of the first
        pixel is at (0.5, 0.5). A token is in the middle of its square of pixels.
        """
        return self._pixels(self.offsets)

    def outside(self) -> Tensor:
        """Which points left the map, beyond which zeros lie: (rows, columns, 4)."""
        limit = stride_of(self.stage - 1) * self.offsets.new_tensor(self.grid[::-1])
        points = self.points()
        return ((points < 0) | (points > limit)).any(dim=-1)

    def _pixels(self, offsets: Tensor) -> Tensor:
        rows, columns = offsets.shape[:2]
        inside = torch.arange(MERGE_SIZE, device=offsets.device)
        y = MERGE_SIZE * torch.arange(rows, device=offsets.device)[:, None] + inside
        x = MERGE_SIZE * torch.arange(columns, device=offsets.device)[:, None] + inside
        regular = torch.stack(
            torch.broadcast_tensors(y[:, None, :, None], x[None, :, None, :]), dim=-1
        ).flatten(2, 3)  # rows, columns, 4 points, (y, x)
        middle = regular + offsets + 0.5
        return middle.flip(-1) * stride_of(self.stage - 1)


class Attended(NamedTuple):
    """What went into the attention of a block.

    Args:
        stage: Index of the stage.
        block: Index of the block in its stage.
        attn: The attention.
        tokens: (H, W, C), normalised.
    """

    stage: int
    block: int
    attn: GlobalAttention
    tokens: Tensor

    def queries_and_keys(self) -> Tuple[Tensor, Tensor]:
        """q and k, each (heads, H*W, d) in float32; q is divided by sqrt(d)."""
        channels, heads = self.tokens.shape[-1], self.attn.num_heads
        with torch.no_grad():
            qkv = self.attn.qkv(self.tokens.flatten(0, 1)).float()
        q, k, _ = qkv.view(-1, 3, heads, channels // heads).permute(1, 2, 0, 3)
        return q / math.sqrt(q.shape[-1]), k

    def bias_table(self) -> Optional[Tensor]:
        """The position bias of this map, (heads, 2H-1, 2W-1), or ``None``."""
        if self.attn.position_bias is None:
            return None
        with torch.no_grad():
            return self.attn.position_bias(tuple(self.tokens.shape[:2])).float()

    def weights(self, queries: Sequence[Tuple[int, int]]) -> Tensor:
        """The attention of some tokens to all: (heads, queries, H, W), each of sum 1.

        Args:
            queries: Row and column of each.
        """
        grid = tuple(self.tokens.shape[:2])
        q, k = self.queries_and_keys()
        picked = [row * grid[1] + column for row, column in queries]
        scores = q[:, picked] @ k.transpose(-2, -1)
        table = self.bias_table()
        if table is not None:
            scores += torch.stack([_bias_of(table, grid, at) for at in queries], dim=1)
        return scores.softmax(dim=-1).unflatten(-1, grid)


class Reading(NamedTuple):
    """What was read of one image.

    Args:
        size: (h, w) of the network's input, in pixels.
        mergings: One entry per token merging, in order.
        attended: One entry per attention block, in order.
        levels: The emitted maps (C, H, W), by stage.
    """

    size: Tuple[int, int]
    mergings: List[Merging]
    attended: List[Attended]
    levels: Dict[int, Tensor]


def find_lit(model: nn.Module) -> LIT:
    """The LIT in a model.

    Raises:
        ValueError: There is none, or more than one.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, LIT)}
    if len(found) != 1:
        names = ', '.join(found) or 'none'
        raise ValueError(
            f'{type(model).__name__} must hold one LIT to look into; it holds: {names}'
        )
    return next(iter(found.values()))


def read(lit: LIT, image: Tensor, attention: bool = True) -> Reading:
    """Compute an image in evaluation mode and keep what happened on the way.

    Modes, statistics and hooks of the network are afterwards what they were.

    Args:
        lit: The network.
        image: (1, in_channels, h, w), normalised.
        attention: Whether to keep what goes into the attention blocks.

    Raises:
        ValueError: The batch is not 1.
    """
    if len(image) != 1:
        raise ValueError(f'{len(image)} images: one at a time is read')
    mergings, attended = [], []
    with ExitStack() as undone, evaluating(lit), torch.no_grad():
        for i, stage in enumerate(lit.stages):
            if isinstance(stage.downsample, DeformableTokenMerging):
                keep = _merging_keeper(i, mergings)
                hook = stage.downsample.dconv.conv_offset.register_forward_hook(keep)
                undone.callback(hook.remove)
            for j, block in enumerate(stage.blocks):
                if attention and block.attn is not None:
                    keep = _attention_keeper(i, j, attended)
                    hook = block.attn.register_forward_pre_hook(keep)
                    undone.callback(hook.remove)
        levels = lit(image)
    maps = {i: level[0] for i, level in zip(lit.out_indices, levels)}
    return Reading(tuple(image.shape[2:]), mergings, attended, maps)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then each module is back in its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(model.training)  # What was remembered for inference is forgotten.
        for module, mode in modes:
            module.training = mode


def _merging_keeper(stage: int, kept: List[Merging]):
    def keep(conv_offset: nn.Module, inputs: tuple, offsets: Tensor) -> None:
        grid = tuple(inputs[0].shape[2:])
        points = offsets[0].float().unflatten(0, (MERGE_SIZE**2, 2))
        kept.append(Merging(stage, points.permute(2, 3, 0, 1), grid))

    return keep


def _attention_keeper(stage: int, block: int, kept: List[Attended]):
    def keep(attn: GlobalAttention, inputs: tuple) -> None:
        kept.append(Attended(stage, block, attn, inputs[0][0]))

    return keep


def _bias_of(table: Tensor, grid: tuple, query: Tuple[int, int]) -> Tensor:
    """The position bias of one query to all keys: (heads, N)."""
    row, column = query
    laid_out = lay_out_columns(table, grid[1], slice(column, column + 1))
    window = bias_windows(laid_out, grid, slice(row, row + 1))
    return window[:, 0, 0].flip(-1)
