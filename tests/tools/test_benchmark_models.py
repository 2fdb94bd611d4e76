"""The benchmark's models: words of the command line, peers, steps, counts."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from mmlit import LIT
from mmlit.archs import ARCHS
from mmlit.errors import UserError
from mmlit.models.attention import GlobalAttention
from mmlit.models.downsample import MergeConv2d
from mmlit_tools.benchmark import models
from mmlit_tools.benchmark.macs import count_macs
from mmlit_tools.benchmark.steps import Step
from support.micro_models import MASK_RCNN, UPERNET, write_micro

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
BENCHMARK = CONFIGS / 'benchmark'
PEERS = sorted(path.stem for path in BENCHMARK.glob('*.py'))
#: mmseg's own configs of the same backbones.
STOCK = {'r50': 'fpn_r50.py', 'swin-t': 'upernet_swin.py'}
SCHEDULES = {'fpn_fpnhead': '80k', 'upernet': '160k'}


def lit_path(method, letter='s'):
    name = f'lit-{letter}_{method}_8xb2-{SCHEDULES[method]}_ade20k-512x512.py'
    return CONFIGS / 'segmentation' / name


def make_step(text, shape=(64, 96), mode='forward', batch=1, with_cp=False):
    settings = models.Settings(mode, batch, 'float32', 'cpu', 1, with_cp)
    spec = models.parse_model(str(text))
    model = models.build_model(spec, settings)
    return Step(model, spec.scope, shape, settings)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('lit-xl', "model 'lit-xl' is unknown; valid: lit-ti, lit-s"),
        ('lit-s:fast', "kernel 'fast' is unknown; valid: auto, eager"),
        ('lit-s@int8', "dtype 'int8' is unknown; valid: float32, bfloat16"),
        ('r50:sdpa', 'only LIT has kernels'),
        (f'{BENCHMARK / "r50_upernet.py"}:sdpa', 'LIT has kernels, ResNetV1c has none'),
        ('no/such.py', 'there is no such file'),
        ('pose.py', "'mmpose'"),
        ('baseless.py', 'the config cannot be read'),
    ],
)
def test_models_that_are_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('pose.py').write_text("default_scope = 'mmpose'\nmodel = dict(backbone={})")
    Path('baseless.py').write_text("_base_ = 'no_such_base.py'")
    with pytest.raises(UserError) as error:
        models.parse_model(text)
    assert words in str(error.value)


@pytest.mark.parametrize('name', ['lit-ti:eager', 'swin-t', 'pvt-s', 'r50'])
def test_counts_are_those_of_torchs_counter(name):
    step = make_step(name)
    macs = count_macs(step.model, step.forward)
    with FlopCounterMode(display=False) as counter:
        step.forward()
    # On the CPU torch sees the deformable convolutions too: their products are its own.
    assert sum(macs.values()) == counter.get_total_flops() / 2
    assert (macs['deformable'] > 0) == name.startswith('lit')
    assert (macs['attention'] > 0) == (name != 'r50')


def macs_by_hand(arch, height, width):
    """The paper's network, term by term: (all, token merging alone)."""
    arch = ARCHS[arch]
    tokens = [height * width // 16 // 4**i for i in range(4)]
    merging = total = 0
    for i, (n, c) in enumerate(zip(tokens, arch.embed_dims)):
        block = 2 * n * c * c * arch.mlp_ratios[i]
        if i >= 2:
            block += 4 * n * c * c + 2 * n * n * c
        total += arch.depths[i] * block
        if i > 0:  # Four points of the tokens before: weights, and offsets (y, x).
            merging += n * 4 * arch.embed_dims[i - 1] * (c + 2 * 4)
    return total + tokens[0] * 4 * 4 * 3 * arch.embed_dims[0] + merging, merging


@pytest.mark.parametrize(
    ('arch', 'gflop', 'merging'), [('small', 336.1, 7.6), ('tiny', 290.0, 4.0)]
)
def test_counts_at_the_size_of_detection(monkeypatch, arch, gflop, merging):
    def merge(self, x):
        """On the meta device, of which mmcv's operator knows nothing."""
        grid = self.conv_offset(x).shape[-2:]
        return x.new_empty(x.shape[0], self.out_channels, *grid)

    monkeypatch.setattr(MergeConv2d, 'forward', merge)
    with torch.device('meta'):
        model = LIT(arch, img_size=800).eval()
        images = torch.empty(2, 3, 800, 1344)
    for kernel in ('eager', 'sdpa'):
        for module in model.modules():
            if isinstance(module, GlobalAttention):
                module.kernel = models.KERNELS[kernel]
        macs = count_macs(model, lambda: model(images))
        # Two images are counted, and two FLOP make a multiply-accumulate.
        figures = sum(macs.values()), macs['deformable']
        assert figures == tuple(2 * n for n in macs_by_hand(arch, 800, 1344))
        assert [round(n / 1e9, 1) for n in figures] == [gflop, merging]


@pytest.mark.parametrize(
    'name',
    [
        f'{lit_path("fpn_fpnhead", "ti")}:eager',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                f'{lit_path("upernet")}:eager',
                *(BENCHMARK / f'{peer}.py' for peer in PEERS),
            )
        ),
    ],
    ids=lambda name: Path(name).stem,
)
def test_a_segmentor_gives_logits_of_the_image_and_is_counted(name):
    step = make_step(name)
    predict, logits = step.model.encode_decode, []
    step.model.encode_decode = lambda *args: logits.append(predict(*args))
    macs = count_macs(step.model, step.forward)
    assert [tuple(output.shape) for output in logits] == [(1, 150, 64, 96)]
    assert not logits[0].requires_grad
    with FlopCounterMode(display=False) as counter:
        step.forward()
    assert sum(macs.values()) == counter.get_total_flops() / 2
    assert (macs['deformable'] > 0) == Path(name).name.startswith('lit')


def test_training_reaches_all_parts(tmp_path):
    trained = []
    for base, batch in ((UPERNET, 2), (MASK_RCNN, 1)):
        path = write_micro(tmp_path / 'micro.py', *base)
        step = make_step(path, (64, 64), mode='train', batch=batch)
        loss = step.forward()
        loss.backward()
        assert loss.isfinite()
        trained.append(step.model)
    segmentor, detector = trained
    assert all(p.grad.abs().sum() > 0 for p in segmentor.parameters())
    head = detector.roi_head
    for module in (detector.backbone, head.bbox_head, head.mask_head):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert sum(grad.abs().sum() for grad in grads) > 0


@pytest.mark.parametrize('name', PEERS)
def test_a_peer_differs_in_the_backbone_alone(name):
    peer, method = name.split('_', 1)
    config, lit = (
        Config.fromfile(path).to_dict()
        for path in (BENCHMARK / f'{name}.py', lit_path(method))
    )
    del lit['pretrained']
    theirs, ours = (c['model'].pop('backbone') for c in (config, lit))
    assert ours['type'] == 'LIT' and 'init_cfg' not in theirs
    channels = {'r50': [256, 512, 1024, 2048], 'swin-t': [96, 192, 384, 768]}[peer]
    # Channels as each backbone has them; all else is LIT's.
    if method == 'upernet':
        taken = [c['model']['decode_head'].pop('in_channels') for c in (config, lit)]
        third = [c['model']['auxiliary_head'].pop('in_channels') for c in (config, lit)]
        assert third[0] == channels[2]
    else:
        taken = [c['model']['neck'].pop('in_channels') for c in (config, lit)]
    assert taken[0] == channels
    assert config == lit
