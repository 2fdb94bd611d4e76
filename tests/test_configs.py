"""The detection configs, as mmengine resolves them: model, optimizer, schedule."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from mmlit.archs import ARCHS

pytest.importorskip('mmdet', reason='the detection configs build on mmdet')
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'detection'
ARCH_OF = {'ti': 'tiny', 's': 'small', 'm': 'medium', 'b': 'base'}
COCO = [(method, letter) for method in ('retinanet', 'mask-rcnn') for letter in ARCH_OF]
RELEASES = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_'
MMDET_2_KEYS = {'optimizer', 'optimizer_config', 'lr_config', 'runner', 'data',
                'evaluation', 'total_epochs'}  # fmt: skip


def load(name):
    return Config.fromfile(CONFIGS / name)


def build(cfg):
    register_all_modules()
    init_default_scope(cfg.default_scope)
    import_modules_from_strings(**cfg.custom_imports)
    # Configs name weights by URL: nothing here may reach for the network.
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


def without_decay(model, cfg):
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper.optimizer) is torch.optim.AdamW
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared, rates = set(), set(), set()
    for group in wrapper.optimizer.param_groups:
        chosen = spared if group['weight_decay'] == 0 else decayed
        chosen.update(names[id(p)] for p in group['params'])
        rates.add(group['lr'])
        assert group['weight_decay'] in (0, cfg.optim_wrapper.optimizer.weight_decay)
    assert decayed | spared == set(names.values()) and not decayed & spared
    return spared, rates


@pytest.mark.parametrize(('method', 'letter'), COCO)
def test_coco_config(method, letter):
    cfg = load(f'{method}_lit-{letter}_fpn_1x_coco.py')
    arch = ARCH_OF[letter]
    backbone = cfg.model.backbone
    assert backbone.init_cfg.checkpoint == f'{RELEASES}{letter}.pth'
    assert set(backbone) <= {'type', 'arch', 'img_size', 'out_indices', 'init_cfg'}
    assert not MMDET_2_KEYS & set(cfg)

    model = build(cfg)
    assert model.backbone.embed_dims == ARCHS[arch].embed_dims
    assert tuple(cfg.model.neck.in_channels) == ARCHS[arch].embed_dims
    assert model.backbone.out_indices == (0, 1, 2, 3)
    for stage, side in zip(model.backbone.stages[2:], (50, 25)):
        for block in stage.blocks:
            if ARCHS[arch].pos_embed == 'relative':
                table = block.attn.position_bias.relative_position_bias_table
                assert table.shape[1:] == (2 * side - 1,) * 2

    # optimizer
    learning_rate = {'retinanet': 1e-4, 'mask-rcnn': 2e-4}[method]
    spared, rates = without_decay(model, cfg)
    assert rates == {learning_rate}
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    assert cfg.optim_wrapper.get('clip_grad') is None
    norms = (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)
    expected = {
        f'{name}.{kind}'
        for name, module in model.named_modules()
        if isinstance(module, norms)
        for kind in ('weight', 'bias')
    } | {n for n, _ in model.named_parameters() if 'position_bias_table' in n}
    assert spared == (set() if letter == 'ti' else expected)

    # schedule
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor) == ('LinearLR', 0.001)
    assert (warm_up.begin, warm_up.end, warm_up.by_epoch) == (0, 500, False)
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)
    assert steps.by_epoch and steps.end == cfg.train_cfg.max_epochs == 12
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop'

    # batch and images: 8 GPUs x 2 images, 1333x800
    assert (
        8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
    )
    assert not cfg.auto_scale_lr.enable
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        (resize,) = (t for t in loader.dataset.pipeline if t.type == 'Resize')
        assert tuple(resize.scale) == (1333, 800) and resize.keep_ratio

    # neck
    neck = cfg.model.neck
    assert neck.num_outs == 5 and neck.out_channels == 256
    if method == 'retinanet':
        assert neck.start_level == 1 and neck.add_extra_convs == 'on_input'


@pytest.mark.parametrize(
    ('method', 'letter', 'millions'),
    # The authors' table, in millions of parameters.
    [('retinanet', 'ti', 30), ('retinanet', 's', 39), ('mask-rcnn', 'ti', 40),
     ('mask-rcnn', 's', 48)],
)  # fmt: skip
def test_whole_detectors_have_the_authors_size(method, letter, millions):
    model = build(load(f'{method}_lit-{letter}_fpn_1x_coco.py'))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(count - millions) < 1


@pytest.mark.parametrize(
    ('name', 'own_key'),
    [('retinanet_lit-s_fpn_1x_coco.py', 'bbox_head'),
     ('mask-rcnn_lit-ti_fpn_1x_coco.py', 'roi_head')],
)  # fmt: skip
def test_detector_trains_and_predicts(name, own_key):
    """Loss, gradients of every used parameter, and a prediction, on noise."""
    from mmdet.testing import demo_mm_inputs

    model = build(load(name))
    model.init_weights()
    with_mask = own_key == 'roi_head'
    data = demo_mm_inputs(
        2, [[3, 96, 128], [3, 128, 64]], num_items=[3, 2], with_mask=with_mask
    )
    losses = model.forward(**model.data_preprocessor(data, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    # Level 0 of the pyramid feeds no neck in RetinaNet, but stage 0 feeds stage 1.
    assert all(p.grad is not None for p in model.backbone.parameters())
    model.eval()
    with torch.no_grad():
        results = model.forward(**model.data_preprocessor(data, False), mode='predict')
    assert len(results) == 2 and 'scores' in results[0].pred_instances


def test_swap_backbone_example():
    cfg = load('swap_backbone_example.py')
    assert cfg.model.type == 'CascadeRCNN'
    model = build(cfg)
    assert type(model.backbone).__name__ == 'LIT'
    assert tuple(cfg.model.neck.in_channels) == model.backbone.embed_dims
    spared, rates = without_decay(model, cfg)
    assert rates == {2e-4}
    assert all('norm' in name or 'position_bias_table' in name for name in spared)


def test_shapes_config():
    cfg = load('mask-rcnn_lit-ti_fpn_shapes.py')
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop'
    assert Path(cfg.data_root).is_absolute()
    assert Path(cfg.data_root).resolve() == CONFIGS.parents[1] / 'data' / 'shapes'
    assert Path(cfg.shapes.out) == Path(cfg.data_root)
    assert cfg.shapes.val >= 60
    assert cfg.model.backbone.init_cfg is None
    model = build(cfg)
    # Slimmed are the neck and the heads, never the backbone.
    assert model.backbone.embed_dims == ARCHS['tiny'].embed_dims
    assert [len(stage.blocks) for stage in model.backbone.stages] == [3, 4, 6, 3]
    assert model.roi_head.bbox_head.num_classes == len(cfg.classes) >= 3
    _, rates = without_decay(model, cfg)
    base = cfg.optim_wrapper.optimizer.lr
    assert rates == {base, 3 * base}


def test_every_config_is_tested_here():
    named = {f'{m}_lit-{a}_fpn_1x_coco.py' for m, a in COCO}
    named |= {'swap_backbone_example.py', 'mask-rcnn_lit-ti_fpn_shapes.py'}
    parents = {'retinanet_lit.py', 'mask-rcnn_lit.py'}
    assert {path.name for path in CONFIGS.glob('*.py')} == named | parents
