"""Test that NaN, infinity and overflows in images, weights and offsets show.

Nothing crashes, and nothing goes on with finite losses and a dead network.
"""

import pytest
import torch

from mmlit import LIT
from support.kernels import ON_CPU
from support.micro_models import MICRO

WRONG = [float('nan'), float('inf'), -float('inf')]


def lit(**options):
    torch.manual_seed(0)
    return LIT(MICRO, img_size=64, **options).train()


def images(batch=2):
    return torch.randn(batch, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def finite(outs):
    return [out.isfinite().all().item() for out in outs]


def backward(outs):
    sum(out.float().square().mean() for out in outs).backward()


@pytest.mark.parametrize('value', WRONG)
@pytest.mark.parametrize('name', ON_CPU)
def test_a_pixel_that_is_no_number_shows_at_all_levels(name, value):
    model = lit(attn_kernel=name)
    image = images()
    image[0, 1, 50, 30] = value
    outs = model(image)
    assert not any(finite(outs))
    backward(outs)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('stage', range(4))
@pytest.mark.parametrize('value', WRONG)
def test_a_weight_that_is_no_number_shows_at_all_later_levels(value, stage, training):
    """Offsets too: mmcv takes what is no number for a point outside of the map."""
    model = lit()
    for name, parameter in model.stages[stage].named_parameters():
        if parameter.dim() < 2:
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] = value
        outs = model.train(training)(images())
        # A stage's norms and those behind it make a NaN of an infinity.
        assert not any(finite(outs[stage:])), name
        assert all(finite(outs[:stage])), name
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize('value', [-1e6, 1e6])
def test_offsets_far_outside(value):
    model = lit()
    for stage in model.stages[1:]:
        torch.nn.init.constant_(stage.downsample.dconv.conv_offset.bias, value)
    image = images().requires_grad_()
    outs = model(image)
    assert all(finite(outs))
    # All points lie outside of the map: the image is not seen from stage 2 on.
    (gradient,) = torch.autograd.grad(outs[3].square().sum(), image, retain_graph=True)
    assert not gradient.any()
    backward(outs)
    assert all(finite(p.grad for p in model.parameters()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_an_overflow_of_autocast_shows(dtype):
    """float16 ends at 65504, bfloat16 where float32 does."""
    model, image = lit(), images() * 1e6
    assert all(finite(model(image)))
    with torch.autocast('cpu', dtype):
        outs = model(image)
        backward(outs)
    shown = dtype == torch.float16
    assert finite(outs) == [not shown] * 4
    assert all(out.dtype == torch.float32 for out in outs)
