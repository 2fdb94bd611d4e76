"""Test FlexAttention's bias lookup, and the kernel where there is CUDA."""

import functools
import sys

import pytest
import torch

from mmlit.ops import flex_attention as module
from mmlit.ops.attention import eager
from mmlit.ops.flex_attention import bias_lookup, flex, why_no_flex
from support.kernels import check_close, inputs, values_and_gradients

needs_flex = pytest.mark.skipif(
    torch.__version__ < '2.6', reason='FlexAttention needs torch 2.6'
)


def detached(**how):
    """On a CPU FlexAttention wants tensors without gradient."""
    qkv, table = inputs(torch.float32, **how)
    return [x.detach() for x in qkv], table.detach()


@pytest.mark.parametrize('grid', [(5, 7), (7, 5), (1, 6), (6, 1)])
def test_lookup_equals_eager_in_value_and_gradient(grid):
    """The score_mod applied to a dense score matrix, as its compiled form would be."""

    def dense(q, k, v, table, dropout_p):
        batch, heads, tokens = (torch.arange(n) for n in q.shape[:3])
        scores = bias_lookup(table)(
            (q @ k.mT) * q.shape[-1] ** -0.5,
            batch[:, None, None, None],
            heads[:, None, None],
            tokens[:, None],
            tokens,
        )
        return scores.softmax(-1) @ v

    qkv, table = inputs(grid=grid)
    expected = values_and_gradients(eager, qkv, table)
    check_close(values_and_gradients(dense, qkv, table), expected, 1e-12)


@pytest.mark.slow
@needs_flex
def test_one_compilation_for_all_sizes(monkeypatch):
    """Traced, but not turned into C++: torch's own kernel for CPUs, which mmlit does
    not use, now and then returns NaN for maps whose tokens fill no whole block.
    """
    from torch._dynamo.utils import counters

    traced = functools.partial(torch.compile, backend='aot_eager')
    monkeypatch.setattr(torch, 'compile', traced)
    module._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for grid in [(5, 7), (6, 4), (12, 10), (3, 17)]:
        qkv, table = detached(grid=grid, dim=16)
        with torch.no_grad():
            actual = module._compiled()(*qkv, score_mod=bias_lookup(table))
            check_close([actual], [eager(*qkv, table, 0.0)], 2e-6)
        graphs.append(counters['frames']['total'])
    module._compiled.cache_clear()
    assert graphs[0] and len(set(graphs)) == 1, graphs


def test_reasons(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.5.1')
    assert 'needs torch 2.6 or newer, this is 2.5.1' in why_no_flex()
    monkeypatch.setattr(torch, '__version__', '2.13.0+cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'CUDA device' in why_no_flex()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'triton' in why_no_flex()


def test_refuses_other_devices():
    qkv, table = inputs()
    with pytest.raises(ValueError, match='needs CUDA tensors, got cpu'):
        flex(*qkv, table, 0.0)


@pytest.mark.skipif(bool(why_no_flex()), reason=f'flex: {why_no_flex()}')
@pytest.mark.parametrize('with_bias', [True, False])
def test_kernel_equals_eager_on_cuda(with_bias):
    for grid in [(5, 7), (16, 9)]:
        qkv, table = inputs(torch.float32, grid=grid, dim=32)
        qkv = [x.detach().cuda().requires_grad_() for x in qkv]
        table = table.detach().cuda().requires_grad_() if with_bias else None
        expected = values_and_gradients(eager, qkv, table)
        check_close(values_and_gradients(flex, qkv, table), expected, 1e-4)
