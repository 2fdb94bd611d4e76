"""Test the gathered convolution of the CPU against mmcv's, and mmcv's operator."""

from functools import partial

import pytest
import torch
from mmcv.ops import deform_conv2d

from mmlit.ops import deform_merge as module
from mmlit.ops.deform_merge import deformable_merge


def mmcv_merge(tokens, offsets, weight):
    return deform_conv2d(tokens, offsets, weight, 2, 0, 1, 1, 1, False, 1)


def inputs(batch=2, channels=3, height=6, width=9, scale=2.0, dtype=torch.float64):
    """Random offsets this large sample across each other's cells and far outside."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    offsets = random(batch, 8, height // 2, width // 2) * scale
    # Every fifth is a whole number: samples on a token and on the border.
    flat = offsets.view(-1)
    flat[::5] = flat[::5].round()
    tensors = random(batch, channels, height, width), offsets, random(5, channels, 2, 2)
    return [x.requires_grad_() for x in tensors]


def values_and_gradients(merge, tensors):
    out = merge(*tensors)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)
    return out, *torch.autograd.grad((out * weight).sum(), tensors)


@pytest.mark.parametrize('size', [(6, 9), (2, 2), (3, 2), (8, 5)])
@pytest.mark.parametrize('scale', [0.0, 0.4, 3.0])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)
def test_gathered_equals_mmcv(size, scale, dtype, tolerance):
    tensors = inputs(height=size[0], width=size[1], scale=scale, dtype=dtype)
    actual = values_and_gradients(deformable_merge, tensors)
    expected = values_and_gradients(mmcv_merge, tensors)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
@pytest.mark.parametrize('strides', [torch.contiguous_format, torch.channels_last])
def test_cuda_equals_cpu(strides):
    """mmcv's kernels against the gathered tokens, of any strides."""
    tensors = [x.detach().to(memory_format=strides) for x in inputs()]
    results = []
    for device in ('cpu', 'cuda'):
        leaves = [x.to(device).requires_grad_() for x in tensors]
        results.append(values_and_gradients(deformable_merge, leaves))
    actual = [x.cpu() for x in results[1]]
    torch.testing.assert_close(actual, list(results[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('value', [-1e6, 1e30])
@pytest.mark.parametrize('merge', [deformable_merge, module._merge_by_mmcv])
def test_wild_offsets_sample_nothing(merge, value):
    """As in mmcv: outside the map there are zeros, and nothing to learn."""
    tokens, offsets, weight = inputs()
    with torch.no_grad():
        offsets[0, :, 1, 1] = value
    actual = values_and_gradients(merge, (tokens, offsets, weight))
    expected = values_and_gradients(mmcv_merge, (tokens, offsets, weight))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert not actual[0][0, :, 1, 1].any() and not actual[2][0, :, 1, 1].any()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('merge', [deformable_merge, module._merge_by_mmcv])
def test_offsets_that_are_no_numbers_show(merge, value, dtype):
    """mmcv's own backward pass reads out of bounds here, and ends the process."""
    tokens, offsets, weight = inputs(dtype=dtype)
    with torch.no_grad():
        expected = merge(tokens, offsets, weight)
        offsets[0, 3, 1, 1] = value
    actual, *gradients = values_and_gradients(merge, (tokens, offsets, weight))
    assert actual[0, :, 1, 1].isnan().all()
    spoilt = actual.isnan()
    assert spoilt.sum() == actual.shape[1]  # one token, and no other
    torch.testing.assert_close(actual[~spoilt], expected[~spoilt])
    assert len(gradients) == 3


def test_mmcv_as_an_operator():
    """What torch.compile takes on a GPU: the same values, and mmcv's own gradients."""
    tensors = inputs(batch=3)
    actual = values_and_gradients(module._mmcv_op, tensors)
    expected = values_and_gradients(mmcv_merge, tensors)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.library.opcheck(torch.ops.mmlit.deform_conv2d, tensors, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('strides', [torch.contiguous_format, torch.channels_last])
def test_devices_other_than_the_cpu_run_mmcv(monkeypatch, strides):
    """Without a GPU at hand: tensors on torch's device without data.

    mmcv's kernels for GPUs refuse tensors that are not contiguous.
    """
    called = []

    def merge(name, *tensors):
        assert all(x.is_contiguous() for x in tensors)
        called.append(name)
        return tensors[0].new_empty(2, 5, 3, 4)

    for name in ('_mmcv', '_mmcv_op'):
        monkeypatch.setattr(module, name, partial(merge, name))
    tensors = [x.detach().to('meta', memory_format=strides) for x in inputs()]
    deformable_merge(*tensors)
    monkeypatch.setattr(module, 'is_compiling', lambda: True)
    deformable_merge(*tensors)
    assert called == ['_mmcv', '_mmcv_op']
    assert deformable_merge(*inputs()).shape == (2, 5, 3, 4)
    assert len(called) == 2  # on the CPU neither


@pytest.mark.parametrize('batch', [1, 31, 32, 33, 48, 64, 97])
def test_any_batch_with_mmcv(batch):
    """mmcv asserts that its step divides the batch."""
    step = module._im2col_step(batch)
    assert batch % step == 0 and step <= 32
    tokens, offsets, weight = (x.detach() for x in inputs(batch=batch))
    out = module._mmcv(tokens, offsets, weight)
    torch.testing.assert_close(out, deformable_merge(tokens, offsets, weight))
