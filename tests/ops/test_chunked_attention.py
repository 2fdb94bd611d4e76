"""Test attention in chunks: any budget, dtypes, memory, torch's operators."""

import pytest
import torch

from mmlit.ops import chunked_attention as module
from mmlit.ops import tracing
from mmlit.ops.attention import eager
from mmlit.ops.chunked_attention import chunked
from support.kernels import HEADS, check_close, inputs, values_and_gradients


@pytest.mark.parametrize('path', ['_forward_on_cpu', '_forward_with_masks'])
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('queries', [1, 3, 8, 20, 40])
def test_any_budget_gives_the_same(monkeypatch, queries, with_bias, path):
    """By what other devices run, too: masks spelt out chunk by chunk."""
    monkeypatch.setattr(module, '_forward_on_cpu', getattr(module, path))
    qkv, table = inputs()
    table = table if with_bias else None
    monkeypatch.setattr(module, 'CPU_BUDGET', queries * qkv[0].shape[2] * 8)
    actual = values_and_gradients(chunked, qkv, table)
    check_close(actual, values_and_gradients(eager, qkv, table), 1e-12)


def test_gradcheck():
    qkv, table = inputs(grid=(2, 3), batch=1)
    qkv = [x.detach().requires_grad_() for x in qkv]
    assert torch.autograd.gradcheck(lambda *x: chunked(*x, 0.0), (*qkv, table))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_inside(monkeypatch, dtype):
    """On the CPU half precision is computed in float32, whatever autocast says."""
    fused, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(q, *args, **kwargs):
        out = fused(q, *args, **kwargs)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(module.F, 'scaled_dot_product_attention', watched)
    qkv, table = inputs(torch.float32)
    with torch.no_grad(), torch.autocast('cpu', dtype):
        out = chunked(*(x.to(dtype) for x in qkv), table, 0.0)
    assert out.dtype == dtype and set(seen) == {torch.float32}


def test_operators_are_registered_properly():
    """torch's own check: schema, fake, autograd, compiled with dynamic shapes."""
    qkv, table = inputs(torch.float32)
    qkv = [x.detach().requires_grad_() for x in qkv]
    for bias in (table, None):
        torch.library.opcheck(torch.ops.mmlit.chunked_attention, (*qkv, bias))


def test_without_operators_of_torch(monkeypatch):
    """torch < 2.4: the same functions as a plain autograd.Function."""
    monkeypatch.setattr(tracing, 'AVAILABLE', False)
    attention = tracing.differentiable(
        tracing.define_op('unused', module._forward, None),
        module._gradients,
        module._save,
    )
    assert not hasattr(torch.ops.mmlit, 'unused')
    qkv, table = inputs()
    actual = values_and_gradients(lambda *x: attention(*x[:4]), qkv, table)
    check_close(actual, values_and_gradients(eager, qkv, table), 1e-12)


def test_no_tensor_of_all_pairs_exists():
    """Every tensor that forward and backward pass make stays far below N x N."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    stored = tensor.untyped_storage().nbytes() // tensor.itemsize
                    self.numbers = max(self.numbers, stored)
            return out

    height, width = 48, 40
    qkv, table = inputs(torch.float32, batch=1, grid=(height, width))
    counts = {}
    for kernel in (chunked, eager):
        with Largest() as largest:
            values_and_gradients(kernel, qkv, table)
        counts[kernel] = largest.numbers
    dense = HEADS * (height * width) ** 2
    assert counts[eager] >= dense
    assert counts[chunked] <= module.CPU_BUDGET // 4 < dense // 4
