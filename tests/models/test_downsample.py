"""Test patch embedding, and token merging as layers."""

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


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('how', ['weights', 'autocast'])
def test_half_precision_merges_in_float32(dtype, how):
    torch.manual_seed(0)
    dconv = MergeConv2d(4, 6)
    random_offsets(dconv)
    x = torch.randn(2, 4, 6, 6).to(dtype)
    if how == 'weights':
        dconv = dconv.to(dtype)
    with torch.autocast('cpu', dtype, enabled=how == 'autocast'):
        out = dconv(x)
    assert out.dtype == dtype
    expected = dconv.float()(x.float())
    torch.testing.assert_close(out, expected.to(dtype), rtol=0, atol=0)


def test_mmengine_finds_the_offsets():
    """`dcn_offset_lr_mult` must reach the offsets' parameters, and nothing else."""
    from mmengine.optim import build_optim_wrapper

    merging = DeformableTokenMerging(4, 6)
    assert isinstance(merging.dconv, DeformConv2d)
    config = dict(optimizer=dict(type='AdamW', lr=1.0))
    config['paramwise_cfg'] = dict(dcn_offset_lr_mult=0.01)
    groups = build_optim_wrapper(merging, config).optimizer.param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    for name, parameter in merging.named_parameters():
        assert rates[id(parameter)] == (0.01 if 'conv_offset' in name else 1.0)


def test_initialisation():
    conv = OffsetConv(8)
    assert not conv.weight.any() and not conv.bias.any()
    weight = MergeConv2d(64, 128).weight
    bound = (1 / (64 * 4)) ** 0.5  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(fan in)
    assert 0.98 * bound < weight.abs().max() <= bound
