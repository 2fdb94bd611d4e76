"""NaN, infinity and numbers too large: in images, weights, offsets, under autocast.

What is wrong stays visible, as a loss that is no number: nothing crashes, and nothing
goes on with finite losses and a dead network.
"""

import pytest
import torch

from mmlit import LIT
from support.kernels import ON_CPU
from support.micro_models import FPN, MASK_RCNN, MICRO, RETINANET, UPERNET, micro

SCOPES = {'detection': 'mmdet', 'segmentation': 'mmseg'}
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


# --- the backbone -----------------------------------------------------------------


@pytest.mark.parametrize('value', [0.0, 1.0, -1e4])
def test_images_of_one_colour(value):
    model = lit()
    outs = model(torch.full((2, 3, 64, 64), value))
    backward(outs)
    assert all(finite(outs))
    assert all(finite(p.grad for p in model.parameters()))
    assert all(finite(model.eval()(torch.full((2, 3, 64, 64), value))))


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


# --- detectors and segmentors -----------------------------------------------------


def ground_truth(kind, count=2, sides=(64, 64)):
    """Samples with an object each; without objects, or all ignored, for count=0."""
    if kind == 'segmentation':
        return [segments(count, sides) for _ in range(2)]
    return [objects(count, sides) for _ in range(2)]


def segments(count, sides):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=sides, ori_shape=sides))
    labels = torch.arange(sides[0] * sides[1]).reshape(1, *sides) // 64 % 3
    labels = labels if count else torch.full_like(labels, 255)
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def objects(count, sides, crowds=0):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sample = DetDataSample(
        metainfo=dict(
            img_shape=sides,
            ori_shape=sides,
            pad_shape=sides,
            batch_input_shape=sides,
            scale_factor=(1.0, 1.0),
        )
    )
    box = torch.tensor([[8.0, 8.0, 40.0, 48.0]])

    def instances(number):
        masks = torch.zeros(number, *sides, dtype=torch.uint8)
        masks[:, 8:48, 8:40] = 1
        return InstanceData(
            bboxes=box.repeat(number, 1),
            labels=torch.arange(number) % 3,
            masks=BitmapMasks(masks.numpy(), *sides),
        )

    sample.gt_instances = instances(count)
    sample.ignored_instances = instances(crowds)
    return sample


def loss_of(model, inputs, samples):
    """The total loss after its backward pass, as a training step computes it."""
    losses = model(inputs, samples, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    return loss.item()


MODELS = [MASK_RCNN, RETINANET, FPN, UPERNET]


@pytest.fixture(params=MODELS, ids=lambda name: name[1].split('_lit')[0][:9])
def kind_and_model(request):
    kind, name = request.param
    pytest.importorskip(SCOPES[kind], reason=f'the {kind} is that of {SCOPES[kind]}')
    torch.manual_seed(0)
    return kind, micro(kind, name)


def test_batches_without_anything_to_find(kind_and_model):
    """No boxes in any image, or every pixel ignored.

    Each parameter has a gradient: else a distributed training would stop, or hang.
    """
    kind, model = kind_and_model
    loss = loss_of(model, torch.randn(2, 3, 64, 64), ground_truth(kind, count=0))
    assert 0 <= loss < 1e3
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize('name', [MASK_RCNN, RETINANET], ids=lambda name: name[1][:9])
def test_batches_of_crowds_alone(name):
    pytest.importorskip('mmdet', reason='the detectors are those of mmdet')
    model = micro(*name)
    samples = [objects(0, (64, 64), crowds=2), objects(1, (64, 64), crowds=1)]
    loss = loss_of(model, torch.randn(2, 3, 64, 64), samples)
    assert 0 < loss < 1e3
    loss = loss_of(model, torch.randn(2, 3, 64, 64), [samples[0]] * 2)
    assert 0 <= loss < 1e3


def test_images_without_light(kind_and_model):
    kind, model = kind_and_model
    assert 0 < loss_of(model, torch.zeros(2, 3, 64, 64), ground_truth(kind)) < 1e3


@pytest.mark.parametrize('value', WRONG)
@pytest.mark.parametrize('where', ['pixel', 'first weight', 'offsets', 'last level'])
def test_losses_tell_of_what_is_no_number(kind_and_model, where, value):
    kind, model = kind_and_model
    inputs = torch.randn(2, 3, 64, 64)
    stages = model.backbone.stages
    with torch.no_grad():
        if where == 'pixel':
            inputs[0, 0, 20, 20] = value
        elif where == 'first weight':
            stages[0].patch_embed.proj.weight.view(-1)[0] = value
        elif where == 'offsets':
            stages[1].downsample.dconv.conv_offset.weight.view(-1)[0] = value
        else:
            stages[3].blocks[-1].mlp.fc2.weight.view(-1)[0] = value
    loss = loss_of(model, inputs, ground_truth(kind))
    assert not torch.tensor(loss).isfinite()
