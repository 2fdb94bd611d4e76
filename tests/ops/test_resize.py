"""Test the resizing of position parameters."""

import torch
import torch.nn.functional as F

from mmlit.models.position import RelativePositionBias
from mmlit.ops.resize import resize_bias_table


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
