"""Check the detection configs as mmengine resolves them: model, optimizer, schedule."""

from pathlib import Path

import pytest

from mmlit.archs import ARCHS
from support import config_helpers
from support.config_helpers import (
    ARCH_OF,
    OLD_KEYS,
    RELEASES,
    build_without_data,
    check_metafile,
    check_tables,
    norms_of,
    without_decay,
)

pytest.importorskip('mmdet', reason='the detection configs build on mmdet')

CONFIGS = config_helpers.CONFIGS / 'detection'
# The authors' table, in millions of parameters.
MILLIONS = {
    ('retinanet', 'ti'): 30,
    ('retinanet', 's'): 39,
    ('mask-rcnn', 'ti'): 40,
    ('mask-rcnn', 's'): 48,
}
COCO = [(method, letter) for method in ('retinanet', 'mask-rcnn') for letter in ARCH_OF]


def load(name):
    return config_helpers.load('detection', name)


@pytest.mark.parametrize(('method', 'letter'), COCO)
def test_coco_config(method, letter):
    name = f'{method}_lit-{letter}_fpn_1x_coco.py'
    cfg = load(name)
    arch = ARCH_OF[letter]
    backbone = cfg.model.backbone
    assert backbone.init_cfg.checkpoint == f'{RELEASES}{letter}.pth'
    assert set(backbone) <= {'type', 'arch', 'img_size', 'out_indices', 'init_cfg'}
    assert not OLD_KEYS & set(cfg)

    model = build_without_data(cfg)
    check_metafile(model, cfg, 'detection', name)
    if (method, letter) in MILLIONS:
        count = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(count - MILLIONS[method, letter]) < 1
    assert model.backbone.embed_dims == ARCHS[arch].embed_dims
    assert tuple(cfg.model.neck.in_channels) == ARCHS[arch].embed_dims
    assert model.backbone.out_indices == (0, 1, 2, 3)
    check_tables(model.backbone, ARCHS[arch], (50, 25))

    # optimizer
    learning_rate = {'retinanet': 1e-4, 'mask-rcnn': 2e-4}[method]
    spared, rates = without_decay(model, cfg)
    assert rates == {learning_rate}
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    assert cfg.optim_wrapper.get('clip_grad') is None
    tables = {n for n, _ in model.named_parameters() if 'position_bias_table' in n}
    expected = norms_of(model) | tables
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


def test_swap_backbone_example():
    cfg = load('swap_backbone_example.py')
    assert cfg.model.type == 'CascadeRCNN'
    model = build_without_data(cfg)
    check_metafile(model, cfg, 'detection', 'swap_backbone_example.py')
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
    model = build_without_data(cfg)
    check_metafile(model, cfg, 'detection', 'mask-rcnn_lit-ti_fpn_shapes.py')
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
    named |= {'mask-rcnn_lit-b_fpn_fsdp_1x_coco.py'}  # in tests/engine/test_fsdp.py
    assert {path.name for path in CONFIGS.glob('*.py')} == named
