"""Test patch embedding, and token merging against sums by hand and gradcheck."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d

from mmlit.models.downsample import (
    DeformableTokenMerging,
    MergeConv2d,
    OffsetConv,
    PatchEmbed,
)


def random_offsets(dconv, scale=0.3):
    torch.nn.init.normal_(dconv.conv_offset.weight, std=scale)
    torch.nn.init.normal_(dconv.conv_offset.bias, std=scale)


def test_padding_is_zeros_right_and_bottom():
    embed = PatchEmbed(3, 8)
    small = torch.randn(1, 3, 30, 45)
    padded = torch.zeros(1, 3, 32, 48)
    padded[:, :, :30, :45] = small
    assert torch.equal(embed(small), embed(padded))


@pytest.mark.parametrize('size', [(2, 2), (6, 8), (7, 9)])
def test_zero_offsets_equal_a_strided_convolution(size):
    torch.manual_seed(0)
    dconv = MergeConv2d(6, 10)
    x = torch.randn(3, 6, *size)
    torch.testing.assert_close(dconv(x), F.conv2d(x, dconv.weight, stride=2))


def test_gradcheck_offsets_included():
    torch.manual_seed(0)
    merging = DeformableTokenMerging(2, 3).double()
    random_offsets(merging.dconv)
    x = torch.randn(2, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*merging.named_parameters())

    def function(tokens, *values):
        return torch.func.functional_call(merging, dict(zip(names, values)), (tokens,))

    assert torch.autograd.gradcheck(function, (x, *parameters))


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
