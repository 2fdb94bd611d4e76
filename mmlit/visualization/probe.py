"""Record token merging offsets, attention and feature maps through forward hooks.

Fused kernels never hold the attention weights. The input of each attention is kept
instead, and the weights of chosen queries are computed from it on request.
"""

import math
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..archs import PATCH_SIZE
from ..models.attention import GlobalAttention
from ..models.lit import LIT
from ..ops.deform_merge import MERGE_SIZE
from ..ops.relative_bias import bias_windows, unfold_columns


def stride_of(stage: int) -> int:
    """Return the side of a token of a stage (0-3) in input pixels."""
    return PATCH_SIZE * MERGE_SIZE**stage


class TokenMergingRecord(NamedTuple):
    """Sampling offsets of the token merging in front of a stage.

    Args:
        stage: The stage that the merged tokens enter, 1-3.
        offsets: (rows, columns, 4, 2), dy and dx of each point, row by row, in tokens
            of the stage before.
        grid: The map (H, W) of tokens that was sampled.
    """

    stage: int
    offsets: Tensor
    grid: Tuple[int, int]

    def displacements(self) -> Tensor:
        """Return the length of each offset in tokens of the stage before."""
        return self.offsets.norm(dim=-1)

    def anchors(self) -> Tensor:
        """Return the points without their offsets; otherwise as :meth:`points`."""
        return self._pixels(torch.zeros_like(self.offsets))

    def points(self) -> Tensor:
        """Return the sampled points: (rows, columns, 4, 2), x and y in input pixels.

        Pixels are squares: the image spans 0..w and 0..h, and the centre of the first
        pixel is at (0.5, 0.5). A token is at the centre of its square of pixels.
        """
        return self._pixels(self.offsets)

    def outside(self) -> Tensor:
        """Return whether each point left the map, which is padded with zeros."""
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
        centres = regular + offsets + 0.5
        return centres.flip(-1) * stride_of(self.stage - 1)


class AttentionRecord(NamedTuple):
    """Normalised tokens (H, W, C) that enter the attention of a block of a stage."""

    stage: int
    block: int
    attn: GlobalAttention
    tokens: Tensor

    def queries_and_keys(self) -> Tuple[Tensor, Tensor]:
        """Return q and k, each (heads, H*W, d) in float32; q is divided by sqrt(d)."""
        channels, heads = self.tokens.shape[-1], self.attn.num_heads
        with torch.no_grad():
            qkv = self.attn.qkv(self.tokens.flatten(0, 1)).float()
        q, k, _ = qkv.view(-1, 3, heads, channels // heads).permute(1, 2, 0, 3)
        return q / math.sqrt(q.shape[-1]), k

    def bias_table(self) -> Optional[Tensor]:
        """Return the position bias of this map, (heads, 2H-1, 2W-1), or ``None``."""
        if self.attn.position_bias is None:
            return None
        with torch.no_grad():
            table = self.attn.position_bias(tuple(self.tokens.shape[:2]))
        return table.detach().float()

    def weights(self, queries: Sequence[Tuple[int, int]]) -> Tensor:
        """Return the attention weights of (row, column)s: (heads, queries, H, W)."""
        grid = tuple(self.tokens.shape[:2])
        q, k = self.queries_and_keys()
        chosen = [row * grid[1] + column for row, column in queries]
        scores = q[:, chosen] @ k.transpose(-2, -1)
        table = self.bias_table()
        if table is not None:
            scores += torch.stack([_bias_of(table, grid, at) for at in queries], dim=1)
        return scores.softmax(dim=-1).unflatten(-1, grid)


class ProbeResult(NamedTuple):
    """Records of one forward pass, in order, and its output maps (C, H, W) by stage."""

    token_mergings: List[TokenMergingRecord]
    attentions: List[AttentionRecord]
    feature_maps: Dict[int, Tensor]


def find_lit(model: nn.Module) -> LIT:
    """Return the only LIT in a model; raise a ValueError if there is not one."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, LIT)}
    if len(found) != 1:
        names = ', '.join(found) or 'none'
        raise ValueError(
            f'{type(model).__name__} must contain exactly one LIT; it contains: {names}'
        )
    return next(iter(found.values()))


def probe(lit: LIT, image: Tensor, attention: bool = True) -> ProbeResult:
    """Run a network on one normalised image in evaluation mode; record what it does.

    Modes, statistics and hooks of the network are restored afterwards.

    Raises:
        ValueError: The batch is not 1.
    """
    if len(image) != 1:
        raise ValueError(f'image is a batch of {len(image)}, it must be one image')
    token_mergings, attentions = [], []
    with ExitStack() as hooks, _evaluating(lit), torch.no_grad():
        for i, stage in enumerate(lit.stages):
            if stage.downsample is not None:
                record = partial(_record_token_merging, token_mergings, i)
                hook = stage.downsample.dconv.conv_offset.register_forward_hook(record)
                hooks.callback(hook.remove)
            for j, block in enumerate(stage.blocks):
                if attention and block.attn is not None:
                    record = partial(_record_attention, attentions, (i, j))
                    hook = block.attn.register_forward_pre_hook(record)
                    hooks.callback(hook.remove)
        outputs = lit(image)
    maps = {i: output[0] for i, output in zip(lit.out_indices, outputs)}
    return ProbeResult(token_mergings, attentions, maps)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _record_token_merging(
    records: List[TokenMergingRecord],
    stage: int,
    conv_offset: nn.Module,
    inputs: tuple,
    offsets: Tensor,
) -> None:
    points = offsets[0].float().unflatten(0, (MERGE_SIZE**2, 2)).permute(2, 3, 0, 1)
    records.append(TokenMergingRecord(stage, points, tuple(inputs[0].shape[2:])))


def _record_attention(
    records: List[AttentionRecord], place: tuple, attn: GlobalAttention, inputs: tuple
) -> None:
    records.append(AttentionRecord(*place, attn, inputs[0][0]))


def _bias_of(table: Tensor, grid: tuple, query: Tuple[int, int]) -> Tensor:
    """Return the position bias of one query to all keys: (heads, N)."""
    row, column = query
    strips = unfold_columns(table, grid[1], slice(column, column + 1))
    window = bias_windows(strips, grid, slice(row, row + 1))
    return window[:, 0, 0].flip(-1)
