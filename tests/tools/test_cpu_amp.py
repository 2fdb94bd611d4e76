"""Mixed precision on the CPU: with real detectors, and for 200 iterations."""

import math

import pytest
import torch

from mmlit import LIT
from mmlit_tools.cpu_amp import CpuAmpOptimWrapper
from support import config_helpers
from support.archs import ABSOLUTE, RELATIVE
from support.config_helpers import build, noise, shrink
from support.kernels import ON_CPU

#: Wide enough to learn.
WIDER = dict(embed_dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), drop_path_rate=0.1)


def wrap(model):
    return CpuAmpOptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))


class Classifier(torch.nn.Module):
    """Say which of three patterns an image shows."""

    def __init__(self, arch):
        super().__init__()
        self.backbone = LIT(arch, img_size=64)
        self.head = torch.nn.Linear(128, 3)

    def forward(self, images):
        return self.head(self.backbone(images)[-1].mean((2, 3)))


def patterns(count, generator):
    """Return noisy waves of one of three lengths, in random directions."""
    kinds = torch.randint(3, (count,), generator=generator)
    angle, shift = torch.rand(2, count, 1, 1, generator=generator) * 2 * math.pi
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='ij')
    length = torch.tensor([4.0, 8.0, 16.0])[kinds][:, None, None]
    along = x * angle.cos() + y * angle.sin()
    images = (2 * math.pi * along / length + shift).sin()
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    return images[:, None].repeat(1, 3, 1, 1), kinds


@pytest.mark.slow
@pytest.mark.parametrize('arch', [RELATIVE, ABSOLUTE], ids=['relative', 'absolute'])
def test_two_hundred_iterations_stay_finite_and_learn(arch):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Classifier({**arch, **WIDER}).train()
    model.backbone.init_weights()
    wrapper, losses = wrap(model), []
    for _ in range(200):
        images, kinds = patterns(8, generator)
        with wrapper.optim_context(model):
            logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits, kinds)
        losses.append(loss.item())
        wrapper.update_params(loss)
    assert all(map(math.isfinite, losses))
    assert all(p.isfinite().all() for p in model.parameters())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ON_CPU)
def test_every_kernel_trains_and_infers_under_autocast(name, dtype):
    torch.manual_seed(0)
    model = LIT(RELATIVE, img_size=64, attn_kernel=name)
    image = torch.randn(2, 3, 96, 64)
    with torch.autocast('cpu', dtype):
        outs = model.train()(image)
        sum(out.float().square().mean() for out in outs).backward()
        with torch.no_grad():
            actual = model.eval()(image)
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
    for out, reference in zip(actual, model(image)):
        assert out.dtype == torch.float32
        difference = (out - reference).abs().max() / reference.abs().max()
        assert 0 < difference < 0.05


@pytest.mark.parametrize('name', ['mask-rcnn_lit-ti', 'retinanet_lit-s'])
def test_a_detector_trains(name):
    """mmcv's NMS and RoIAlign have no bfloat16 version for the CPU."""
    pytest.importorskip('mmdet', reason='needs mmdet')
    torch.manual_seed(0)
    config = shrink(
        config_helpers.load('detection', f'{name}_fpn_1x_coco.py'), RELATIVE
    )
    if 'rcnn' in config.model.train_cfg:
        # Each proposal goes through a head whose bfloat16 is computed in software.
        config.model.train_cfg.rcnn.sampler.num = 16
    model = build(config).train()
    model.init_weights()
    wrapper = wrap(model)
    dtypes = set()
    model.neck.fpn_convs[0].conv.register_forward_hook(
        lambda _, inputs, output: dtypes.add(output.dtype)
    )
    before = [len(module._forward_hooks) for module in model.modules()]
    data = model.data_preprocessor(noise(config), True)
    with wrapper.optim_context(model):
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert dtypes == {torch.bfloat16}
    assert loss.isfinite()
    assert before == [len(module._forward_hooks) for module in model.modules()]
    loss.backward()
    # The backbone's: on maps of a pixel, torch 2.13's bfloat16 convolution now and then
    # gives a weight of the neck a NaN gradient.
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g.isfinite().all() for g in gradients if g is not None)
