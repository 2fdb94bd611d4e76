"""Test every kernel against the definition, in value and gradient."""

import math

import pytest
import torch

from mmlit.ops import attention as kernels
from mmlit.ops.attention import KERNELS, auto, eager, resolve_kernel
from mmlit.ops.relative_bias import dense_bias
from support.kernels import DIM, ON_CPU, H, W, check_close, inputs, values_and_gradients

OTHERS = pytest.mark.parametrize('name', [name for name in ON_CPU if name != 'eager'])


def test_eager_is_the_formula():
    (q, k, v), table = inputs()
    out = eager(q, k, v, table, 0.0)
    bias = dense_bias(table)
    for b, h, i in [(0, 0, 0), (1, 2, 17), (0, 1, H * W - 1)]:
        logits = torch.stack([q[b, h, i] @ k[b, h, j] for j in range(H * W)])
        weights = (logits / math.sqrt(DIM) + bias[h, i]).exp()
        expected = (weights / weights.sum()) @ v[b, h]
        torch.testing.assert_close(out[b, h, i], expected, rtol=1e-12, atol=1e-12)


@OTHERS
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('grid', [(5, 7), (7, 5), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 2e-6)]
)
def test_kernel_equals_eager(name, with_bias, grid, dtype, tolerance):
    qkv, table = inputs(dtype, grid=grid)
    table = table if with_bias else None
    expected = values_and_gradients(eager, qkv, table)
    actual = values_and_gradients(KERNELS[name], qkv, table)
    check_close(actual, expected, tolerance)
    with torch.no_grad():
        check_close([KERNELS[name](*qkv, table, 0.0)], expected[:1], tolerance)


@OTHERS
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_eagers(name, dtype):
    """Against float64: no kernel may lose more than the definition does, twice over."""
    qkv, table = inputs(torch.float64, dim=16)
    expected = values_and_gradients(eager, qkv, table)
    half = [x.detach().to(dtype).requires_grad_() for x in qkv]
    table = table.detach().float().requires_grad_()
    errors = []
    for kernel in (eager, KERNELS[name]):
        actual = values_and_gradients(kernel, half, table)
        assert actual[0].dtype == dtype
        pairs = zip(actual, expected, strict=True)
        errors.append([(a - e).abs().max().item() for a, e in pairs])
    for eagers, ours in zip(*errors, strict=True):
        assert ours <= 2 * eagers


@pytest.mark.parametrize('name', ['auto', 'eager', 'sdpa'])
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


@pytest.mark.parametrize('name', kernels.WITHOUT_DROPOUT)
def test_dropout_refused(name, monkeypatch):
    monkeypatch.setattr(kernels, 'why_no_flex', lambda: None)
    with pytest.raises(ValueError, match=f'{name}.*attn_drop_rate=0.1 must be 0'):
        resolve_kernel(name, 0.1)
    assert resolve_kernel(name) is KERNELS[name]
    (q, k, v), table = inputs()
    with pytest.raises(ValueError, match='no dropout, got 0.1'):
        KERNELS[name](q, k, v, table, 0.1)


def test_resolve(monkeypatch):
    assert resolve_kernel('auto', 0.1) is auto
    assert resolve_kernel('eager') is eager
    for bad in ('flash', None):
        match = f'attn_kernel={bad!r}.*auto, eager, sdpa, chunked, flex'
        with pytest.raises(ValueError, match=match):
            resolve_kernel(bad)
    monkeypatch.setattr(kernels, 'why_no_flex', lambda: 'it needs a moon')
    with pytest.raises(ValueError, match="attn_kernel='flex' cannot run here: .* moon"):
        resolve_kernel('flex')


@pytest.mark.parametrize(
    ('grid', 'with_bias', 'dropout', 'how', 'kernel'),
    [
        ((40, 40), False, 0.0, '', 'sdpa'),  # nothing to spell out
        ((40, 40), True, 0.1, '', 'sdpa'),  # which has dropout
        ((40, 40), True, 0.0, '', 'chunked'),
        ((5, 7), True, 0.0, 'no_grad', 'sdpa'),
        ((5, 7), True, 0.0, 'deterministic', 'chunked'),
        ((5, 7), True, 0.0, 'is_compiling', 'chunked'),
        ((40, 40), True, 0.0, 'is_exporting', 'eager'),
    ],
)
def test_auto(monkeypatch, grid, with_bias, dropout, how, kernel):
    called = []
    for name in ('eager', 'sdpa', 'chunked'):
        monkeypatch.setattr(kernels, name, lambda *_, name=name: called.append(name))
    if how.startswith('is_'):
        monkeypatch.setattr(kernels, how, lambda: True)
    (q, k, v), table = inputs(grid=grid)
    torch.use_deterministic_algorithms(how == 'deterministic')
    try:
        with torch.set_grad_enabled(how != 'no_grad'):
            auto(q, k, v, table if with_bias else None, dropout)
    finally:
        torch.use_deterministic_algorithms(False)
    assert called == [kernel]
