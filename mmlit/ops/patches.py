"""A convolution whose stride is its kernel's size reads patches that do not overlap."""

import torch.nn.functional as F
from torch import Tensor, nn

from .tracing import is_compiling


class PatchConv2d(nn.Conv2d):
    """A convolution with a stride of its kernel's size, in the input's dtype.

    Under torch.compile it is a linear layer on patches. With a convolution in the
    graph, torch 2.13 would fix the strides of what it keeps for the backward pass on a
    CPU, and so compile again for each image size.

    Args:
        in_channels: Channels C.
        out_channels: Channels C'.
        size: Side p of the patches.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__(in_channels, out_channels, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H//p, W//p)."""
        weight, bias, size = self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride
        if not is_compiling():
            return self._conv_forward(x, weight, bias)
        rows, columns = x.shape[2] // size[0], x.shape[3] // size[1]
        x = x[:, :, : rows * size[0], : columns * size[1]]
        x = x.reshape(len(x), self.in_channels, rows, size[0], columns, size[1])
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, weight[0].numel())
        out = F.linear(patches, weight.flatten(1), bias)
        return out.view(len(x), rows, columns, self.out_channels).permute(0, 3, 1, 2)
