"""Make tokens of an image, and merge 2x2 tokens into one."""

import math

import torch
from mmcv.ops import DeformConv2d
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..archs import PATCH_SIZE
from ..ops.deform_merge import MERGE_SIZE, deformable_merge
from ..ops.patch_conv import pad_to_patches, patch_conv2d

#: The authors' patch embedding keeps torch's default epsilon in every arch; the
#: arch's ``norm_eps`` is for the blocks' and output norms.
PATCH_NORM_EPS = 1e-5


class PatchConv2d(nn.Conv2d):
    """A convolution with a stride of its kernel's size, in the input's dtype."""

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__(in_channels, out_channels, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H//p, W//p)."""
        return patch_conv2d(x, self.weight, self.bias)


class PatchEmbed(BaseModule):
    """Each 4x4 patch of pixels becomes one token: a strided conv, then LayerNorm.

    Images whose sides are no multiples of 4 are zero-padded right and bottom, as in
    the authors' S/M/B code (their tiny crops instead).
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = PatchConv2d(in_channels, channels, PATCH_SIZE)
        self.norm = nn.LayerNorm(channels, eps=PATCH_NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, ceil(h/4), ceil(w/4), C)."""
        x = self.proj(pad_to_patches(image, PATCH_SIZE)).permute(0, 2, 3, 1)
        # Under autocast the conv is in half precision; the residual stream that
        # starts here is kept in the parameters' own precision.
        return self.norm(x.to(self.norm.weight.dtype))


class OffsetConv(PatchConv2d):
    """Predicts (dy, dx) for each of the 2x2 points that a merged token samples.

    It starts at zero, so that DTM starts as a plain strided convolution. Its output is
    (B, 8, H//2, W//2): y, x of each point, row by row.
    """

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 2 * MERGE_SIZE * MERGE_SIZE, MERGE_SIZE)

    def reset_parameters(self):
        """Set all to zero, as the authors do."""
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
    """

    #: What samples and merges; an exporter may set one made of operators it knows.
    merge = staticmethod(deformable_merge)

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, MERGE_SIZE, stride=MERGE_SIZE)
        self.conv_offset = OffsetConv(in_channels)

    def reset_parameters(self):
        """Draw Kaiming-uniformly with a = sqrt(5), as in the authors' layer."""
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
    """Predict offsets, sample and merge, normalise, activate (paper, section 3.3).

    Where a strided convolution would merge the four tokens of a fixed 2x2 cell, DTM
    samples the four at positions that it predicts from the cell.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.dconv = MergeConv2d(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H//2, W//2, C'); an odd last row or column is lost."""
        x = self.dconv(x.permute(0, 3, 1, 2))
        return self.act(self.norm(x)).permute(0, 2, 3, 1).contiguous()
