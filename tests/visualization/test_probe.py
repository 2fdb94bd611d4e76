"""Records of a LIT are what it computes, and probing leaves it as it was."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmlit import LIT
from mmlit.visualization.offsets import draw_offsets, offset_statistics, render
from mmlit.visualization.probe import TokenMergingRecord, find_lit, probe
from support.looking_helpers import PIPELINE, SCALE, open_image, small_lit, write_noise


@pytest.fixture
def image(tmp_path):
    return open_image(write_noise(tmp_path / 'a.png'))


def dots_of(axis):
    (dots,) = [c for c in axis.collections if type(c).__name__ == 'PathCollection']
    return dots


def test_image_as_the_pipeline_reads_it(tmp_path):
    path = write_noise(tmp_path / 'a.png')
    image = open_image(path)
    assert image.picture.shape == (60, 100, 3) and image.size == (100, 60)
    assert image.scale == (SCALE, SCALE)
    assert image.inputs.shape == (1, 3, 128, 224)
    # RGB, as in the file; the input is the same, larger, normalised, padded with 0.
    assert (image.picture == np.asarray(Image.open(path))).all()
    shown = image.inputs[0, :, :120, :200] * 60 + 120
    means = shown.mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(means, image.picture.mean(axis=(0, 1)), atol=0.3)
    assert not image.inputs[0, :, 120:].any() and not image.inputs[..., 200:].any()
    assert image.token_at(99.5, 59.5, stride=16) == (7, 12)
    assert image.extent(16, (8, 14)) == (0, 112, 64, 0)


NARROW = cv2.imencode('.png', np.zeros((1, 3000, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize('content', [b'', b'text', NARROW], ids=len)
def test_an_image_that_cannot_be_read_is_a_value_error(tmp_path, content):
    path = tmp_path / 'a.png'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'of the test pipeline fails: \w+: [^\n]+$'):
        open_image(path)


def test_a_pipeline_that_moves_pixels_is_refused(tmp_path):
    path = write_noise(tmp_path / 'a.png')
    flipped = [*PIPELINE, dict(type='RandomFlip', prob=0.5)]
    for steps in (flipped, [dict(type='PipelineGuard', transforms=flipped)]):
        with pytest.raises(ValueError, match='has a RandomFlip'):
            open_image(path, steps)
    with pytest.raises(ValueError, match='no LoadImageFromFile'):
        open_image(path, [])
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / 'no.png')


def test_points_lie_where_the_offsets_put_them(image):
    lit = small_lit()
    # (dy, dx) in tokens of 4 input pixels, of points (0,0), (0,1), (1,0), (1,1).
    offsets = [0.5, -0.25, 0.0, 1.0, -3.0, 0.0, 0.0, 0.0]
    conv = lit.stages[1].downsample.dconv.conv_offset
    torch.nn.init.zeros_(conv.weight)
    conv.bias.data = torch.tensor(offsets)
    result = probe(lit, image.inputs)
    assert [m.stage for m in result.token_mergings] == [1, 2, 3]
    merging = result.token_mergings[0]
    assert merging.grid == (32, 56) and merging.offsets.shape == (16, 28, 4, 2)
    # Cell (3, 5) holds tokens (6, 10) to (7, 11); the middle of token (6, 10) is at
    # input pixel x = 42, y = 26, pixel x = 21, y = 13 of the picture.
    points, anchors = (f()[3, 5] for f in (merging.points, merging.anchors))
    expected = [[20.5, 14], [25, 13], [21, 9], [23, 15]]
    np.testing.assert_allclose(image.to_picture(points), expected)
    expected = [[21, 13], [23, 13], [21, 15], [23, 15]]
    np.testing.assert_allclose(image.to_picture(anchors), expected)
    # There the convolution itself reads: the tokens with a gradient are beside them.
    tokens = torch.randn(1, 8, 32, 56, requires_grad=True)
    dconv = lit.stages[1].downsample.dconv
    dconv(tokens)[0, :, 3, 5].sum().backward()
    read_there = {tuple(at) for at in tokens.grad[0].abs().sum(0).nonzero().tolist()}
    beside = set()
    for x, y in (points / 4 - 0.5).tolist():
        for row in {int(np.floor(y)), int(np.ceil(y))}:
            beside |= {(row, int(np.floor(x))), (row, int(np.ceil(x)))}
    assert read_there == beside


def test_the_picture_shows_the_points(image):
    merging = probe(small_lit(), image.inputs).token_mergings[1]
    cells = [(2, 3), (0, 7)]
    axis = draw_offsets(merging, image, cells).axes[0]
    dots = dots_of(axis)
    expected = image.to_picture(torch.stack([merging.points()[c] for c in cells]))
    lengths = torch.stack([merging.displacements()[c] for c in cells]).flatten()
    order = lengths.argsort().numpy()
    drawn = np.asarray(dots.get_offsets())[np.argsort(dots.get_array())]
    np.testing.assert_allclose(drawn, expected.reshape(-1, 2)[order], rtol=1e-5)
    np.testing.assert_allclose(sorted(dots.get_array()), sorted(lengths), rtol=1e-5)
    assert axis.get_xlim() == (0, 100) and axis.get_ylim() == (60, 0)
    corners = sorted(patch.get_xy() for patch in axis.patches)
    assert corners == [(24, 16), (56, 0)]  # Squares of 16 input pixels.
    # Without a choice: the cells whose middle shows the picture, not those of padding.
    dots = dots_of(draw_offsets(merging, image).axes[0])
    assert len(dots.get_offsets()) == 4 * 7 * 12  # of 8 x 14


def test_statistics_by_hand(image):
    offsets = torch.zeros(16, 28, 4, 2)
    offsets[0, 0, 0] = torch.tensor([-3.0, 4.0])  # 5 tokens, above the map
    offsets[1, 1, 2] = torch.tensor([0.0, -1.0])  # 1 token, inside
    offsets[15, 27, 3] = 100.0  # in the padding: not counted
    merging = TokenMergingRecord(1, offsets, (32, 56))
    points = 15 * 25 * 4
    assert offset_statistics(merging, image) == dict(
        mean_displacement=pytest.approx(6 / points),
        max_displacement=5.0,
        outside=pytest.approx(1 / points),
    )
    # Zeros have statistics and a picture, too.
    merging = TokenMergingRecord(1, torch.zeros(16, 28, 4, 2), (32, 56))
    assert set(offset_statistics(merging, image).values()) == {0.0}
    assert render(draw_offsets(merging, image)).dtype == np.uint8


@pytest.mark.parametrize('kind', ['relative', 'absolute'])
def test_weights_are_those_of_the_forward_pass(image, kind):
    """With them, the module's values and projection give the module's output."""
    arch = dict(small_lit().arch.__dict__, pos_embed=kind)
    torch.manual_seed(0)
    lit = LIT(arch, img_size=96).eval()
    for name, parameter in lit.named_parameters():
        if 'qkv.weight' in name or 'bias_table' in name:
            torch.nn.init.normal_(parameter, std=0.5)
    attended = probe(lit, image.inputs).attentions
    assert [(a.stage, a.block) for a in attended] == [(2, 0), (2, 1), (3, 0)]
    for one in attended:
        height, width, channels = one.tokens.shape
        weights = one.weights([(y, x) for y in range(height) for x in range(width)])
        values = one.attn.qkv(one.tokens)[..., 2 * channels :].flatten(0, 1)
        values = values.unflatten(1, (one.attn.num_heads, -1)).transpose(0, 1)
        joined = (weights.flatten(2) @ values).transpose(0, 1).flatten(1)
        expected = one.attn(one.tokens[None])[0].flatten(0, 1)
        torch.testing.assert_close(one.attn.proj(joined), expected)
        assert weights.std() > 1e-3


def test_the_network_is_left_as_it_was(image):
    lit = small_lit(norm_eval=True, frozen_stages=1)
    lit.train()
    lit.stages[2].blocks[0].eval()
    modes = [module.training for module in lit.modules()]
    state = {key: value.clone() for key, value in lit.state_dict().items()}
    random = torch.random.get_rng_state()
    levels = probe(lit, image.inputs).feature_maps
    with pytest.raises(ValueError, match='too small'):
        probe(lit, image.inputs[..., :8])
    with pytest.raises(ValueError, match='a batch of 2'):
        probe(lit, image.inputs.repeat(2, 1, 1, 1))
    assert [module.training for module in lit.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(v, state[key]) for key, v in lit.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lit.modules())
    with torch.no_grad():
        expected = lit.eval()(image.inputs)
    assert list(levels) == [0, 1, 2, 3]
    assert all(torch.equal(level, e[0]) for level, e in zip(levels.values(), expected))


def test_find_lit_needs_exactly_one():
    with pytest.raises(ValueError, match='Linear must contain exactly one LIT.*: none'):
        find_lit(torch.nn.Linear(1, 1))
    two = torch.nn.ModuleDict(dict(student=small_lit(), teacher=small_lit()))
    with pytest.raises(ValueError, match='student, teacher'):
        find_lit(two)
    assert find_lit(two['student']) is two['student']
