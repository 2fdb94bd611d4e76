"""Test the bias spelt out against the lookup, and its transposes."""

from itertools import product

import pytest
import torch

from mmlit.ops.relative_bias import (
    add_columns,
    add_windows,
    bias_windows,
    dense_bias,
    unfold_columns,
)


@pytest.mark.parametrize('grid', [(1, 1), (1, 5), (4, 3), (6, 6)])
def test_dense_bias_is_the_lookup(grid):
    height, width = grid
    table = torch.randn(2, 2 * height - 1, 2 * width - 1)
    bias = dense_bias(table)
    assert bias.shape == (2, height * width, height * width)
    for y1, x1, y2, x2 in product(range(height), range(width), repeat=2):
        expected = table[:, y1 - y2 + height - 1, x1 - x2 + width - 1]
        assert torch.equal(bias[:, y1 * width + x1, y2 * width + x2], expected)


@pytest.mark.parametrize('columns', [slice(None), slice(2, 5), slice(6, 7)])
@pytest.mark.parametrize('rows', [slice(None), slice(1, 3)])
def test_windows_are_the_dense_bias_over_reversed_keys(columns, rows):
    height, width = 4, 7
    table = torch.randn(3, 2 * height - 1, 2 * width - 1)
    strips = unfold_columns(table, width, columns)
    actual = bias_windows(strips, (height, width), rows)
    expected = dense_bias(table).flip(2).unflatten(1, (height, width))
    torch.testing.assert_close(
        actual, expected.transpose(1, 2)[:, columns, rows], rtol=0, atol=0
    )
    assert actual.data_ptr() - strips.data_ptr() < strips.numel() * 4  # a view


def test_transposes_equal_autograd():
    height, width, columns, rows = 4, 7, slice(2, 6), slice(1, 4)
    table = torch.randn(3, 7, 13, dtype=torch.float64, requires_grad=True)
    strips = unfold_columns(table, width, columns)
    bias = bias_windows(strips, (height, width), rows)
    grad = torch.randn_like(bias)
    expected = torch.autograd.grad(bias, (strips, table), grad)
    d_strips, d_table = torch.zeros_like(strips), torch.zeros_like(table)
    add_windows(d_strips, grad, width, rows)
    add_columns(d_table, d_strips, width, columns)
    torch.testing.assert_close((d_strips, d_table), expected)
