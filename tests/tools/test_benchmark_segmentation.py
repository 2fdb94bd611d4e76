"""The benchmark of whole segmentors, and the configs of LIT's peers among them."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from mmlit_tools.benchmark import models
from mmlit_tools.benchmark.macs import count_macs
from mmlit_tools.benchmark.steps import Step
from support import running_tools
from support.this_stack import STACK

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

pytest.importorskip('mmseg', reason='segmentors are measured with mmseg')

CONFIGS = ROOT / 'configs'
PEERS = ['r50_fpn_fpnhead', 'r50_upernet', 'swin-t_fpn_fpnhead', 'swin-t_upernet']
#: mmseg's own configs of the same backbones.
STOCK = {'r50': 'fpn_r50.py', 'swin-t': 'upernet_swin.py'}


def peer_path(name):
    return CONFIGS / 'benchmark' / f'{name}.py'


def lit_path(method, letter='s'):
    schedule = {'fpn_fpnhead': '80k', 'upernet': '160k'}[method]
    name = f'lit-{letter}_{method}_8xb2-{schedule}_ade20k-512x512.py'
    return CONFIGS / 'segmentation' / name


def make_step(path, kernel='', mode='forward', batch=1, shape=(64, 96)):
    settings = models.Settings(
        mode, batch, dtype='float32', device='cpu', threads=1, with_cp=False
    )
    spec = models.parse_model(f'{path}{kernel}')
    return Step(models.build_model(spec, settings), spec.scope, shape, settings)


# --- the peers --------------------------------------------------------------------


@pytest.mark.parametrize('name', PEERS)
def test_a_peer_differs_in_the_backbone_alone(name):
    peer, method = name.split('_', 1)
    config, lit = (
        Config.fromfile(path).to_dict() for path in (peer_path(name), lit_path(method))
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


@pytest.mark.parametrize('peer', STOCK)
def test_a_peer_is_mmsegs_own(peer):
    import mmseg
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    bases = Path(mmseg.__file__).parent / '.mim' / 'configs' / '_base_' / 'models'
    if not bases.is_dir():
        pytest.skip(f'this mmseg comes without its configs ({bases.name} is missing)')
    register_all_modules()
    ours = Config.fromfile(peer_path(f'{peer}_upernet')).model.backbone
    stock = Config.fromfile(bases / STOCK[peer]).model.backbone
    # SyncBN where there are several GPUs, so the same.
    stock.norm_cfg = ours.get('norm_cfg', stock.norm_cfg)
    ours, stock = (MODELS.build(config) for config in (ours, stock))
    assert str(ours) == str(stock)
    rates = [
        [getattr(module, 'drop_prob', None) for module in model.modules()]
        for model in (ours, stock)
    ]
    assert rates[0] == rates[1]


def test_every_config_is_tested_here():
    names = {path.stem for path in (CONFIGS / 'benchmark').glob('*.py')}
    assert names == set(PEERS)


# --- a step -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'kernel'),
    [
        *((peer_path(name), '') for name in PEERS),
        (lit_path('fpn_fpnhead', 'ti'), ':eager'),
        (lit_path('upernet'), ':eager'),
    ],
    ids=lambda value: getattr(value, 'stem', value),
)
def test_forward_gives_logits_of_the_image_and_is_counted(path, kernel):
    step = make_step(path, kernel)
    predict, logits = step.model.encode_decode, []
    step.model.encode_decode = lambda *args: logits.append(predict(*args))
    macs = count_macs(step.model, step.forward)
    assert [tuple(output.shape) for output in logits] == [(1, 150, 64, 96)]
    assert not logits[0].requires_grad
    with FlopCounterMode(display=False) as counter:
        step.forward()
    assert sum(macs.values()) == counter.get_total_flops() / 2
    assert (macs['deformable'] > 0) == path.name.startswith('lit')


def test_a_training_step_reaches_all_parts():
    step = make_step(lit_path('upernet', 'ti'), mode='train', batch=2, shape=(64, 64))
    loss = step.forward()
    loss.backward()
    assert loss.isfinite()
    unreached = [
        name for name, p in step.model.named_parameters() if not p.grad.abs().sum() > 0
    ]
    assert unreached == []


def test_labels_fit_the_classes():
    from mmlit_tools.benchmark.segmentation import make_samples

    images = torch.zeros(2, 3, 64, 96)
    first, second = (
        [sample.gt_sem_seg.data for sample in make_samples(images, 7, 0.25)]
        for _ in range(2)
    )
    for labels, again in zip(first, second):
        assert labels.shape == (1, 64, 96) and labels.dtype == torch.long
        assert labels.unique().tolist() == [*range(7), 255]
        assert (labels == 255).float().mean() == pytest.approx(0.25, abs=0.03)
        assert torch.equal(labels, again)
    assert not torch.equal(*first)


# --- the command ------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_the_command(mode, tmp_path):
    paths = [lit_path('fpn_fpnhead', 'ti'), peer_path('r50_upernet')]
    options = ['--models', f'{paths[0]}:eager', paths[1], '--mode', mode, '--batch', 2]
    options += ['--shape', 64, 96, '--matmul-size', 64, '--repeat', 1, '--threads', 1]
    options += ['--no-memory'] if mode == 'train' else []
    options += ['--out-dir', tmp_path / 'out']
    said = running_tools.run(TOOLS / 'benchmark.py', *options, cwd=tmp_path)
    report = json.loads((tmp_path / 'out/benchmark.json').read_text())
    assert report['notes'] == []
    rows = report['rows']
    labels = [f'{paths[0].stem}:eager', paths[1].stem]
    assert [row['model'] for row in rows] == labels
    for row in rows:
        assert len(row['seconds']) == 1 and row['gmac_per_image'] > 0
        assert bool(row['memory']) == (mode == 'forward')
    mmseg = 'onedl-mmsegmentation' if STACK == 'onedl' else 'mmsegmentation'
    assert mmseg in report['machine']['versions']
    assert f'{rows[0]["gmac_per_image"]:.2f}' in said


def test_a_kernel_of_a_peer_is_refused():
    with pytest.raises(ValueError, match='only LIT has kernels, ResNetV1c has none'):
        models.parse_model(f'{peer_path("r50_upernet")}:sdpa')


def test_without_mmseg_it_is_told(monkeypatch):
    monkeypatch.setattr(models, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'mmseg is not .*"mmlit\[seg]"'):
        make_step(peer_path('r50_upernet'))
