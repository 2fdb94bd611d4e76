"""From an image to tokens."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..archs import PATCH_SIZE
from ..ops.patches import PatchConv2d
from ..ops.tracing import is_exporting

#: The authors' patch embedding keeps torch's default epsilon in every arch; the
#: arch's ``norm_eps`` is for the blocks' and output norms.
PATCH_NORM_EPS = 1e-5


class PatchEmbed(BaseModule):
    """Each 4x4 patch of pixels becomes one token: a strided conv, then LayerNorm.

    Images whose sides are no multiples of 4 are zero-padded right and bottom, as in
    the authors' S/M/B code (their tiny crops instead).

    Args:
        in_channels: Image channels.
        channels: Token channels C.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = PatchConv2d(in_channels, channels, PATCH_SIZE)
        self.norm = nn.LayerNorm(channels, eps=PATCH_NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, ceil(h/4), ceil(w/4), C)."""
        height, width = image.shape[-2:]
        pad = (0, -width % PATCH_SIZE, 0, -height % PATCH_SIZE)
        if is_exporting():
            # For any size: the convolution leaves out what makes no whole patch.
            pad = (0, PATCH_SIZE - 1) * 2
        if any(pad):
            image = F.pad(image, pad)
        x = self.proj(image).permute(0, 2, 3, 1)
        # Under autocast the conv is in half precision; the residual stream that
        # starts here is kept in the parameters' own precision.
        return self.norm(x.to(self.norm.weight.dtype))
