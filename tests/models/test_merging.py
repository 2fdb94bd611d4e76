"""Deformable token merging against strided convolution, by hand and by gradcheck."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d

from mmlit.models.downsample import DeformableTokenMerging, MergeConv2d, OffsetConv


def random_offsets(dconv, scale=0.3):
    torch.nn.init.normal_(dconv.conv_offset.weight, std=scale)
    torch.nn.init.normal_(dconv.conv_offset.bias, std=scale)


@pytest.mark.parametrize('size', [(2, 2), (6, 8), (7, 9)])
def test_zero_offsets_equal_a_strided_convolution(size):
    torch.manual_seed(0)
    dconv = MergeConv2d(6, 10)
    x = torch.randn(3, 6, *size)
    torch.testing.assert_close(dconv(x), F.conv2d(x, dconv.weight, stride=2))


def test_worked_example():
    """One 2x2 cell at fractional offsets, every sample computed by hand.

    The map is 4x4 with value 10*y + x, which bilinear sampling reproduces exactly
    inside the map: the sample at (y, x) is 10*y + x. Kernel point (i, j) of the cell
    at (2r, 2c) samples (2r + i + dy, 2c + j + dx).
    """
    ys, xs = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing='ij')
    image = (10 * ys + xs)[None, None]
    dconv = MergeConv2d(1, 1)
    with torch.no_grad():
        dconv.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        # (dy, dx) of points (0,0), (0,1), (1,0), (1,1)
        dconv.conv_offset.bias.copy_(
            torch.tensor([0.5, 0.25, 0.0, 1.0, -0.5, 0.75, 1.5, -0.25])
        )
    out = dconv(image)[0, 0].detach()
    # Cell (0, 0): points at (0.5, 0.25), (0, 2), (0.5, 0.75), (2.5, 0.75):
    # 1*5.25 + 2*2 + 3*5.75 + 4*25.75
    assert out[0, 0] == pytest.approx(5.25 + 4 + 17.25 + 103.0)
    # Cell (1, 1) starts at (2, 2): (2.5, 2.25), (2, 4), (2.5, 2.75), (4.5, 2.75).
    # Column 4 and row 4.5 lie outside, where there are zeros.
    assert out[1, 1] == pytest.approx(27.25 + 0 + 3 * 27.75 + 0)
    # Cell (1, 0) starts at (2, 0): its last point, (4.5, 0.75), is outside as well.
    assert out[1, 0] == pytest.approx(25.25 + 2 * 22 + 3 * 25.75 + 0)
    # Cell (0, 1): (0.5, 2.25), (0, 4) outside, (0.5, 2.75), (2.5, 2.75).
    assert out[0, 1] == pytest.approx(7.25 + 0 + 3 * 7.75 + 4 * 27.75)


def test_samples_fade_out_at_the_border():
    """Half a pixel outside the map, half of the border's value is left."""
    dconv = MergeConv2d(1, 1)
    with torch.no_grad():
        dconv.weight.copy_(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
        dconv.conv_offset.bias[0] = -0.5
    image = torch.full((1, 1, 2, 2), 8.0)
    assert dconv(image).item() == pytest.approx(4.0)


def test_gradcheck_offsets_included():
    torch.manual_seed(0)
    merging = DeformableTokenMerging(2, 3).double()
    random_offsets(merging.dconv)
    x = torch.randn(2, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*merging.named_parameters())

    def function(tokens, *values):
        return torch.func.functional_call(merging, dict(zip(names, values)), (tokens,))

    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize('batch', [1, 33, 48, 64, 97, 100])
def test_any_batch_equals_its_images_one_by_one(batch):
    torch.manual_seed(0)
    merging = DeformableTokenMerging(3, 4).eval()
    random_offsets(merging.dconv)
    x = torch.randn(batch, 6, 5, 3, requires_grad=True)
    out = merging(x)
    assert out.shape == (batch, 3, 2, 4)
    single = torch.cat([merging(image[None]) for image in x])
    torch.testing.assert_close(out, single, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(single.sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_reads_like_the_paper():
    """Predict offsets, sample and merge, normalise, activate."""
    torch.manual_seed(0)
    merging = DeformableTokenMerging(4, 6).train()
    random_offsets(merging.dconv)
    x = torch.randn(2, 8, 6, 4)
    tokens = x.permute(0, 3, 1, 2)
    offsets = F.conv2d(
        tokens,
        merging.dconv.conv_offset.weight,
        merging.dconv.conv_offset.bias,
        stride=2,
    )
    assert offsets.shape == (2, 8, 4, 3)
    merged = bilinear_merge(tokens, offsets, merging.dconv.weight)
    mean, var = merged.mean((0, 2, 3)), merged.var((0, 2, 3), unbiased=False)
    normed = (merged - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    expected = F.gelu(normed).permute(0, 2, 3, 1)
    torch.testing.assert_close(merging(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merging.norm.running_mean, 0.1 * mean)


def bilinear_merge(tokens, offsets, weight):
    """The deformable convolution spelt out with loops, zeros outside."""
    batch, _, height, width = tokens.shape
    out = torch.zeros(batch, weight.shape[0], *offsets.shape[2:])
    for b in range(batch):
        for r in range(offsets.shape[2]):
            for c in range(offsets.shape[3]):
                for point in range(4):
                    i, j = divmod(point, 2)
                    y = 2 * r + i + offsets[b, 2 * point, r, c]
                    x = 2 * c + j + offsets[b, 2 * point + 1, r, c]
                    sample = torch.zeros(tokens.shape[1])
                    for yy in (int(y.floor()), int(y.floor()) + 1):
                        for xx in (int(x.floor()), int(x.floor()) + 1):
                            if 0 <= yy < height and 0 <= xx < width:
                                part = (1 - (y - yy).abs()) * (1 - (x - xx).abs())
                                sample = sample + part * tokens[b, :, yy, xx]
                    out[b, :, r, c] += weight[:, :, i, j] @ sample
    return out


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('how', ['weights', 'autocast'])
def test_half_precision_merges_in_float32(dtype, how):
    torch.manual_seed(0)
    dconv = MergeConv2d(4, 6)
    random_offsets(dconv)
    x = torch.randn(2, 4, 6, 6).to(dtype)
    if how == 'weights':
        dconv = dconv.to(dtype)
        out = dconv(x)
    else:
        with torch.autocast('cpu', dtype):
            out = dconv(x)
    assert out.dtype == dtype
    expected = dconv.float()(x.float())
    torch.testing.assert_close(out, expected.to(dtype), rtol=0, atol=0)


def test_mmengine_finds_the_offsets():
    """`dcn_offset_lr_mult` must reach the offsets' parameters, and nothing else."""
    from mmengine.optim import build_optim_wrapper

    merging = DeformableTokenMerging(4, 6)
    assert isinstance(merging.dconv, DeformConv2d)
    wrapper = build_optim_wrapper(
        merging,
        dict(
            optimizer=dict(type='AdamW', lr=1.0),
            paramwise_cfg=dict(dcn_offset_lr_mult=0.01),
        ),
    )
    names = {id(p): name for name, p in merging.named_parameters()}
    rates = {
        names[id(p)]: group['lr']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    slow = {name for name, rate in rates.items() if rate == 0.01}
    assert slow == {'dconv.conv_offset.weight', 'dconv.conv_offset.bias'}
    assert set(rates) == set(names.values())


def test_initialisation():
    conv = OffsetConv(8)
    assert not conv.weight.any() and not conv.bias.any()
    weight = MergeConv2d(64, 128).weight
    bound = (1 / (64 * 4)) ** 0.5  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(fan in)
    assert 0.98 * bound < weight.abs().max() <= bound
