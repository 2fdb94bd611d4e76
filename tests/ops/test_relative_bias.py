"""Test the bias spelt out against the lookup."""

from itertools import product

import pytest
import torch

from mmlit.ops.relative_bias import dense_bias


@pytest.mark.parametrize('grid', [(1, 1), (1, 5), (4, 3), (6, 6)])
def test_dense_bias_is_the_lookup(grid):
    height, width = grid
    table = torch.randn(2, 2 * height - 1, 2 * width - 1)
    bias = dense_bias(table)
    assert bias.shape == (2, height * width, height * width)
    for y1, x1, y2, x2 in product(range(height), range(width), repeat=2):
        expected = table[:, y1 - y2 + height - 1, x1 - x2 + width - 1]
        assert torch.equal(bias[:, y1 * width + x1, y2 * width + x2], expected)
