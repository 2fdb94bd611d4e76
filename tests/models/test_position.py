"""Bias tables and embeddings: lookup, resizing, sizes."""

import pytest
import torch
import torch.nn.functional as F

from mmlit.models.position import (
    AbsolutePosition,
    RelativePositionBias,
    reference_grid,
)
from mmlit.ops.resize import resize_bias_table
from mmlit.weights.load import resize_positions


@pytest.mark.parametrize(
    ('img_size', 'grids'),
    [
        ((800, 800), [(200, 200), (100, 100), (50, 50), (25, 25)]),
        ((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        # no multiple of 32: rounded up to patches, then halved downwards
        ((225, 100), [(57, 25), (28, 12), (14, 6), (7, 3)]),
    ],
)
def test_reference_grid(img_size, grids):
    assert [reference_grid(img_size, stage) for stage in range(4)] == grids


def test_table_is_resized_as_an_image_of_offsets():
    bias = RelativePositionBias(3, (4, 6))
    table = bias.relative_position_bias_table
    assert table.shape == (3, 7, 11)
    assert bias((4, 6)) is table  # no interpolation, no copy at the reference size
    resized = bias((9, 5))
    expected = F.interpolate(
        table[None], size=(17, 9), mode='bicubic', align_corners=False
    )[0]
    assert torch.equal(resized, expected)
    # rows are dy and columns dx: a table that varies along dx only stays so
    columns = torch.arange(11.0).expand(3, 7, 11)
    assert torch.allclose(
        resize_bias_table(columns, (9, 6)), columns[:, :1].expand(3, 17, 11), atol=1e-5
    )


def test_half_precision_tables_are_resized_in_float32():
    table = torch.randn(2, 7, 7).bfloat16()
    resized = resize_bias_table(table, (9, 9))
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, resize_bias_table(table.float(), (9, 9)).bfloat16())


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


def test_initialised_with_small_numbers():
    for parameter in [
        RelativePositionBias(4, (20, 20)).relative_position_bias_table,
        AbsolutePosition(64, 1).absolute_pos_embed,
    ]:
        assert 0.018 < parameter.std() < 0.022
        assert abs(parameter.mean()) < 0.002


def test_positions_are_resized_in_float64():
    table, embed = torch.randn(3, 13, 13), torch.randn(1, 7, 7, 5)
    state = {
        'x.attn.position_bias.relative_position_bias_table': table,
        'x.stages.3.pos_embed.absolute_pos_embed': embed,
    }
    shapes = dict(zip(state, [(3, 9, 31), (1, 4, 12, 5)]))
    fitted, resized = resize_positions({**state, 'y': embed}, {**shapes, 'y': (1, 2)})
    assert sorted(resized) == sorted(state)
    assert fitted['y'] is embed

    def by_torch(image, size, mode):
        return torch.nn.functional.interpolate(
            image.double(), size=size, mode=mode, align_corners=False
        ).float()

    one, two = (fitted[key] for key in state)
    assert torch.equal(one, by_torch(table[None], (9, 31), 'bicubic')[0])
    image = by_torch(embed.permute(0, 3, 1, 2), (4, 12), 'bilinear')
    assert torch.equal(two, image.permute(0, 2, 3, 1))
    # What has the right size stays the very same; other heads or channels stay, too.
    others = dict(zip(state, [(4, 9, 9), (1, 4, 4, 6)]))
    for shapes in ({}, others, {key: value.shape for key, value in state.items()}):
        fitted, resized = resize_positions(state, shapes)
        assert resized == [] and all(fitted[key] is state[key] for key in state)
