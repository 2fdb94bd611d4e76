"""Every kernel against the definition, in value and gradient."""

import math

import pytest
import torch

from mmlit.kernels import KERNELS, eager, resolve_kernel
from mmlit.position import dense_bias

H, W, HEADS, DIM = 5, 7, 3, 4


def inputs(dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.to(dtype).requires_grad_()

    qkv = [random(batch, HEADS, H * W, DIM) for _ in range(3)]
    return qkv, random(HEADS, 2 * H - 1, 2 * W - 1)


def test_eager_is_the_formula():
    (q, k, v), table = inputs()
    out = eager(q, k, v, table, 0.0)
    bias = dense_bias(table)
    for b, h, i in [(0, 0, 0), (1, 2, 17), (0, 1, H * W - 1)]:
        logits = torch.stack([q[b, h, i] @ k[b, h, j] for j in range(H * W)])
        weights = (logits / math.sqrt(DIM) + bias[h, i]).exp()
        expected = (weights / weights.sum()) @ v[b, h]
        torch.testing.assert_close(out[b, h, i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', [name for name in KERNELS if name != 'eager'])
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 2e-6)]
)
def test_kernel_equals_eager(name, with_bias, dtype, tolerance):
    results = []
    for kernel in (KERNELS['eager'], KERNELS[name]):
        qkv, table = inputs(dtype)
        leaves = [*qkv, table] if with_bias else qkv
        out = kernel(*qkv, table if with_bias else None, 0.0)
        weight = torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for expected, actual in zip(*results):
        torch.testing.assert_close(
            actual, expected, rtol=0, atol=tolerance * expected.abs().max().item()
        )


@pytest.mark.parametrize('name', KERNELS)
def test_dropout_drops_weights_and_keeps_the_mean(name):
    (q, k, v), table = inputs(torch.float32, batch=400)
    torch.manual_seed(0)
    with torch.no_grad():
        q, k, v = (x[:1].expand(400, -1, -1, -1) for x in (q, k, v))
        full = KERNELS[name](q[:1], k[:1], v[:1], table, 0.0)
        dropped = KERNELS[name](q, k, v, table, 0.5)
    assert (dropped[0] - dropped[1]).abs().max() > 0.1
    spread = dropped.std(0) / math.sqrt(400)
    assert ((dropped.mean(0) - full[0]).abs() < 6 * spread + 1e-3).all()


def test_resolve():
    assert resolve_kernel('auto') is KERNELS['sdpa']
    assert resolve_kernel('eager') is eager
    for bad in ('flash', '', None):
        with pytest.raises(ValueError, match=f'attn_kernel={bad!r}.*auto, eager, sdpa'):
            resolve_kernel(bad)
