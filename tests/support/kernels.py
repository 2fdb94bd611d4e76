"""Provide inputs and comparisons for attention kernels."""

import torch

from mmlit.ops.attention import KERNELS

H, W, HEADS, DIM = 5, 7, 3, 4
#: Those that run on a CPU; for flex see test_flex_attention.py.
ON_CPU = [name for name in KERNELS if name != 'flex']


def inputs(dtype=torch.float64, batch=2, grid=(H, W), dim=DIM):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.to(dtype).requires_grad_()

    tokens = grid[0] * grid[1]
    # As attention makes them: one tensor, the heads inside.
    qkv = random(batch, tokens, 3, HEADS, dim).permute(2, 0, 3, 1, 4)
    return list(qkv), random(HEADS, 2 * grid[0] - 1, 2 * grid[1] - 1)


def values_and_gradients(kernel, qkv, table):
    leaves = qkv if table is None else [*qkv, table]
    out = kernel(*qkv, table, 0.0)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


def check_close(actual, expected, tolerance):
    sizes = [other.abs().max().item() for other in expected]
    for one, other, size in zip(actual, expected, sizes, strict=True):
        assert one.dtype == other.dtype
        # A single token attends to itself: nothing to learn, zero but for rounding.
        atol = tolerance * (size or max(sizes))
        torch.testing.assert_close(one, other, rtol=0, atol=atol)
