"""Deformable token merging (paper, section 3.3): 2x2 tokens become one.

Where a strided convolution would merge the four tokens of a fixed 2x2 cell, DTM
samples the four at positions that it predicts from the cell.
"""

import math

import torch
from mmcv.ops import DeformConv2d
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..ops.deform_merge import MERGE_SIZE, deformable_merge
from ..ops.patches import PatchConv2d
from ..ops.tracing import without_strides


class OffsetConv(PatchConv2d):
    """Predicts (dy, dx) for each of the 2x2 points that a merged token samples.

    It starts at zero, so that DTM starts as a plain strided convolution. Its output is
    (B, 8, H//2, W//2): y, x of each point, row by row.

    Args:
        in_channels: Channels C of the tokens.
    """

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 2 * MERGE_SIZE * MERGE_SIZE, MERGE_SIZE)

    def reset_parameters(self):
        """All zeros, as the authors start it."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class MergeConv2d(DeformConv2d):
    """mmcv's deformable convolution as a 2x2 merge that predicts its own offsets.

    It stays an instance of mmcv's ``DeformConv2d`` with a child ``conv_offset``, by
    which mmengine's ``dcn_offset_lr_mult`` finds the offsets' parameters. mmcv's own
    ``DeformConv2dPack`` would do but for its fixed ``im2col_step``, its dtypes and a
    log line per layer on loading.

    There is no bias: the authors' has one right before a BatchNorm, which subtracts
    it again in training; for evaluation it folds into the running mean.

    Args:
        in_channels: Channels C.
        out_channels: Channels C' of the merged tokens.
    """

    #: What samples and merges; an exporter may set one made of operators it knows.
    merge = staticmethod(deformable_merge)

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, MERGE_SIZE, stride=MERGE_SIZE)
        self.conv_offset = OffsetConv(in_channels)

    def reset_parameters(self):
        """Kaiming-uniform with a = sqrt(5), as in the authors' layer."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H//2, W//2), in the dtype of ``x``.

        mmcv has no bfloat16 kernel, and positions deserve float32 anyway: half
        precision inputs are computed in float32, outside autocast.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(dtype)
            offsets = self.conv_offset(tokens)
            merged = self.merge(tokens, offsets, self.weight.to(dtype))
        return merged.to(x.dtype)


class DeformableTokenMerging(BaseModule):
    """Predict offsets, sample and merge, normalise, activate.

    Args:
        in_channels: Channels C.
        out_channels: Channels C' of the merged tokens.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.dconv = MergeConv2d(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H//2, W//2, C'); an odd last row or column is lost."""
        x = without_strides(self.dconv(x.permute(0, 3, 1, 2)))
        return self.act(self.norm(x)).permute(0, 2, 3, 1).contiguous()
