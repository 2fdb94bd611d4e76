"""Test position parameters: reference sizes, resizing to a map."""

import pytest
import torch
import torch.nn.functional as F

from mmlit.models.position import AbsolutePosition, reference_grid


@pytest.mark.parametrize(
    ('img_size', 'grids'),
    [
        ((800, 800), [(200, 200), (100, 100), (50, 50), (25, 25)]),
        # no multiple of 32: rounded up to patches, then halved downwards
        ((225, 100), [(57, 25), (28, 12), (14, 6), (7, 3)]),
    ],
)
def test_reference_grid(img_size, grids):
    assert [reference_grid(img_size, stage) for stage in range(4)] == grids


@pytest.mark.parametrize('size', [(56, 56), (28, 112), (13, 57)])
def test_absolute_embedding_is_resized_per_stage(size):
    position = AbsolutePosition(8, stage=0)
    embed = position.absolute_pos_embed
    assert embed.shape == (1, 56, 56, 8)
    x = torch.randn(2, *size, 8)
    expected = embed
    if size != (56, 56):
        expected = F.interpolate(
            embed.permute(0, 3, 1, 2), size=size, mode='bilinear', align_corners=False
        ).permute(0, 2, 3, 1)
    torch.testing.assert_close(position(x), x + expected, rtol=0, atol=0)
