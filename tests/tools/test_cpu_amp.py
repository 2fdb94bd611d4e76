"""Mixed precision on the CPU: with a real detector, and for 200 iterations."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlit import LIT
from mmlit.ops.attention import KERNELS
from support.kernels import ON_CPU

ROOT = Path(__file__).resolve().parents[2]
MICRO = dict(
    embed_dims=(16, 32, 64, 128),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=(4, 4, 4, 4),
    norm_eps=1e-5,
    drop_path_rate=0.1,
)


@pytest.fixture
def wrap(monkeypatch):
    from mmlit_tools.cpu_amp import CpuAmpOptimWrapper

    def wrap(model):
        return CpuAmpOptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))

    return wrap


class Classifier(torch.nn.Module):
    """Says which of three patterns an image shows."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = LIT(**backbone)
        self.head = torch.nn.Linear(128, 3)

    def forward(self, images):
        return self.head(self.backbone(images)[-1].mean((2, 3)))


def patterns(count, generator):
    """Noisy waves, of one of three lengths, in a random direction."""
    kinds = torch.randint(3, (count,), generator=generator)
    angle, shift = torch.rand(2, count, 1, 1, generator=generator) * 2 * math.pi
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing='ij')
    length = torch.tensor([4.0, 8.0, 16.0])[kinds][:, None, None]
    along = x * angle.cos() + y * angle.sin()
    images = (2 * math.pi * along / length + shift).sin()
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    return images[:, None].repeat(1, 3, 1, 1), kinds


@pytest.mark.parametrize('pos_embed', ['relative', 'absolute'])
def test_two_hundred_iterations_stay_finite_and_learn(wrap, pos_embed):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Classifier(arch=dict(MICRO, pos_embed=pos_embed), img_size=64).train()
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
    assert name in KERNELS
    torch.manual_seed(0)
    arch = dict(MICRO, pos_embed='relative', drop_path_rate=0.0)
    model = LIT(arch, img_size=64, attn_kernel=name)
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
def test_a_detector_trains(wrap, name):
    """mmcv's NMS and RoIAlign have no bfloat16 version for the CPU."""
    pytest.importorskip('mmdet', reason='needs mmdet')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    from mmlit_tools.benchmark.samples import detection_samples

    register_all_modules()
    torch.manual_seed(0)
    config = Config.fromfile(ROOT / f'configs/detection/{name}_fpn_1x_coco.py')
    if 'rcnn' in config.model.train_cfg:
        # Each proposal goes through a head whose bfloat16 is worked out in software.
        config.model.train_cfg.rcnn.sampler.num = 16
    model = MODELS.build(config.model).train()
    wrapper = wrap(model)
    images = torch.randn(2, 3, 96, 128)
    dtypes = set()
    model.neck.fpn_convs[0].conv.register_forward_hook(
        lambda _, inputs, output: dtypes.add(output.dtype)
    )
    before = [len(module._forward_hooks) for module in model.modules()]
    with wrapper.optim_context(model):
        losses = model(images, detection_samples(images, 3), mode='loss')
        loss, _ = model.parse_losses(losses)
    assert dtypes == {torch.bfloat16}
    assert loss.isfinite()
    assert before == [len(module._forward_hooks) for module in model.modules()]
    loss.backward()
    assert all(
        p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
    )
