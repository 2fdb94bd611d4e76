"""Bias tables and embeddings: lookup, resizing, sizes."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F

from mmlit.models.position import (
    AbsolutePosition,
    RelativePositionBias,
    fit_positions,
    reference_grid,
    resize_bias_table,
)


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
    fitted, resized = fit_positions({**state, 'y': embed}, {**shapes, 'y': (1, 2)})
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
        fitted, resized = fit_positions(state, shapes)
        assert resized == [] and all(fitted[key] is state[key] for key in state)


class TestResizedTables:
    """Inference resizes a table once per map size, until the weights change."""

    @pytest.fixture
    def bias(self):
        return RelativePositionBias(3, (4, 6)).eval()

    @pytest.fixture
    def resizes(self, monkeypatch):
        grids = []

        def counted(table, grid):
            grids.append(grid)
            return resize_bias_table(table, grid)

        monkeypatch.setattr('mmlit.models.position.resize_bias_table', counted)
        return grids

    @torch.no_grad()
    def test_once_per_size(self, bias, resizes):
        first = bias((9, 5))
        assert bias((9, 5)) is first
        bias((5, 9))
        assert bias((9, 5)) is first
        assert resizes == [(9, 5), (5, 9)]
        table = bias.relative_position_bias_table
        assert torch.equal(first, resize_bias_table(table, (9, 5)))

    @torch.no_grad()
    def test_bounded(self, bias, resizes):
        grids = [(5, width) for width in range(5, 25)]
        for grid in grids:
            bias(grid)
        held = list(bias.resized._resized)
        assert held == grids[-bias.resized.MOST :]
        bias(grids[-1])
        assert len(resizes) == len(grids)

    @pytest.mark.parametrize(
        'change',
        [
            lambda b: b.relative_position_bias_table.mul_(2),
            lambda b: b.relative_position_bias_table.data.mul_(2),
            lambda b: b.load_state_dict({k: v * 2 for k, v in b.state_dict().items()}),
            lambda b: torch.optim.SGD(b.parameters(), lr=1.0).step(),
            lambda b: b.double(),
            lambda b: b.bfloat16(),
            lambda b: setattr(
                b.relative_position_bias_table,
                'data',
                b.relative_position_bias_table + 1,
            ),
            lambda b: setattr(
                b,
                'relative_position_bias_table',
                torch.nn.Parameter(torch.ones(3, 7, 11)),
            ),
        ],
        ids='in_place data load step double half new_data replaced'.split(),
    )
    def test_notices_changed_weights(self, bias, change):
        table = bias.relative_position_bias_table
        with torch.no_grad():
            before = bias((9, 5)).clone()
            table.grad = torch.ones_like(table)
            change(bias)
            after = bias((9, 5))
            table = bias.relative_position_bias_table
            assert torch.equal(after, resize_bias_table(table, (9, 5)))
        assert after.dtype != before.dtype or not torch.equal(after, before)

    def test_training_mode_starts_anew(self, bias):
        """What `.data` changed on a GPU is noticed here at the latest."""
        with torch.no_grad():
            bias((9, 5))
        bias.train()
        assert not bias.resized._resized
        with torch.no_grad():
            bias((9, 5))
        bias.eval()
        assert not bias.resized._resized

    def test_not_with_gradients(self, bias, resizes):
        for _ in range(2):
            assert bias((9, 5)).requires_grad
        assert resizes == [(9, 5)] * 2 and not bias.resized._resized

    def test_neither_saved_nor_copied(self, bias):
        with torch.no_grad():
            bias((9, 5))
        assert list(bias.state_dict()) == ['relative_position_bias_table']
        for other in (copy.deepcopy(bias), pickle.loads(pickle.dumps(bias))):
            assert not other.resized._resized
            assert other.resized is not bias.resized

    def test_what_inference_mode_left_serves_later(self, bias):
        with torch.inference_mode():
            bias((9, 5))
        with torch.no_grad():
            first = bias((9, 5))
        torch.testing.assert_close(first, bias((9, 5)).detach(), rtol=0, atol=0)

    @torch.no_grad()
    def test_another_thread_may_clear_at_any_time(self, bias):
        """As one does that sees the model for the first time, while others run it."""

        class Cleared(OrderedDict):
            def __len__(self):
                bias.resized.clear()
                return super().__len__()

        bias((5, 5))
        bias.resized._resized = Cleared({(1, n): None for n in range(5)})
        expected = resize_bias_table(bias.relative_position_bias_table, (9, 5))
        assert torch.equal(bias((9, 5)), expected)
