"""Test that an MLP in chunks gives the same numbers."""

import pytest
import torch

from mmlit.models.blocks import Mlp
from mmlit.ops import chunked_mlp


@pytest.mark.parametrize('tokens', [1, 4, 7, 1000])
def test_parts_change_no_number(monkeypatch, tokens):
    torch.manual_seed(0)
    mlp = Mlp(6, 24).eval()
    x = torch.randn(2, 5, 3, 6)
    parts = []
    mlp.fc1.register_forward_hook(lambda _, inputs, output: parts.append(len(output)))
    expected = mlp(x)
    assert parts == [30]
    monkeypatch.setattr(chunked_mlp, 'HIDDEN_BYTES', tokens * 24 * 4)
    with torch.no_grad():
        actual = mlp(x)
    torch.testing.assert_close(actual, expected.detach())
    assert max(parts[1:]) <= tokens and sum(parts[1:]) == 30


def test_nothing_is_split_that_a_backward_pass_or_a_trace_needs(monkeypatch):
    monkeypatch.setattr(chunked_mlp, 'HIDDEN_BYTES', 1)
    mlp, x = Mlp(6, 24), torch.randn(2, 5, 3, 6)
    calls = []
    mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    mlp(x).sum().backward()
    with torch.no_grad():
        torch.jit.trace(mlp, x, check_trace=False)
    assert len(calls) == 2


def test_autocast_and_parts(monkeypatch):
    """The parts come out in half precision, as the whole does."""
    mlp, x = Mlp(6, 24).eval(), torch.randn(2, 5, 3, 6)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected = mlp(x)
        monkeypatch.setattr(chunked_mlp, 'HIDDEN_BYTES', 24 * 4)
        actual = mlp(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
