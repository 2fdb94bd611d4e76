"""A convolution whose stride is its kernel's size reads patches that do not overlap."""

import torch.nn.functional as F
from torch import Tensor, nn

from .custom_ops import is_compiling


def patch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with a stride of the kernel's size, without padding.

    Under torch.compile it is a linear layer on patches. With a convolution in the
    graph, torch 2.13 would fix the strides of what it keeps for the backward pass on a
    CPU, and so compile again for each image size.

    Args:
        x: (B, C, H, W).
        weight: (C', C, p, p).
        bias: (C',).

    Returns:
        (B, C', H//p, W//p).
    """
    size = weight.shape[-1]
    if not is_compiling():
        return F.conv2d(x, weight, bias, stride=size)
    rows, columns = x.shape[2] // size, x.shape[3] // size
    x = x[:, :, : rows * size, : columns * size]
    x = x.reshape(len(x), weight.shape[1], rows, size, columns, size)
    patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, weight[0].numel())
    out = F.linear(patches, weight.flatten(1), bias)
    return out.view(len(x), rows, columns, len(weight)).permute(0, 3, 1, 2)


class PatchConv2d(nn.Conv2d):
    """A square ``nn.Conv2d`` as :func:`patch_conv`, in the input's dtype.

    Args:
        in_channels: Channels C.
        out_channels: Channels C'.
        size: Side p of the patches.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__(in_channels, out_channels, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H//p, W//p)."""
        return patch_conv(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
