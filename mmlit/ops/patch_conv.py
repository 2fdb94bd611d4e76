"""Convolve patches that do not overlap."""

import torch.nn.functional as F
from torch import Tensor

from .tracing import is_compiling, is_exporting


def pad_to_patches(image: Tensor, size: int) -> Tensor:
    """Zero-pad an image, right and bottom, to whole patches of size x size pixels.

    Under an export the padding must serve any image: it is one pixel short of a whole
    patch, and :func:`patch_conv2d` leaves out what makes no whole one.
    """
    pad = (0, -image.shape[3] % size, 0, -image.shape[2] % size)
    if is_exporting():
        pad = (0, size - 1) * 2
    return F.pad(image, pad) if any(pad) else image


def patch_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with a stride of the kernel's size, in the input's dtype.

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
    weight, bias, size = weight.to(x.dtype), bias.to(x.dtype), weight.shape[2]
    if not is_compiling():
        return F.conv2d(x, weight, bias, stride=size)
    batch, channels, height, width = x.shape
    rows, columns = height // size, width // size
    x = x[:, :, : rows * size, : columns * size]
    x = x.reshape(batch, channels, rows, size, columns, size)
    patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, weight[0].numel())
    out = F.linear(patches, weight.flatten(1), bias)
    return out.view(batch, rows, columns, len(weight)).permute(0, 3, 1, 2)
