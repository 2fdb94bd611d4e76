"""Check the segmentation configs as mmengine resolves them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS
from torch import nn

from mmlit import LIT
from mmlit.archs import ARCHS
from support import config_helpers as helpers
from support.archs import ABSOLUTE
from support.config_helpers import ARCH_OF, loaders, norms_of, only

pytest.importorskip('mmseg', reason='the segmentation configs are for mmseg')

SCHEDULE = {'fpn_fpnhead': '80k', 'upernet': '160k'}
ADE = [(method, letter) for method in SCHEDULE for letter in ARCH_OF]
SHAPES = 'lit-ti_fpn_fpnhead_shapes.py'


def name_of(method, letter):
    return f'lit-{letter}_{method}_8xb2-{SCHEDULE[method]}_ade20k-512x512.py'


def load(name):
    return helpers.load('segmentation', name)


@pytest.mark.parametrize(('method', 'letter'), ADE)
def test_model_and_training_of_ade_config(method, letter):
    name, arch = name_of(method, letter), ARCHS[ARCH_OF[letter]]
    cfg = load(name)
    # The drop path rate is the arch's own.
    options = 'type arch img_size out_indices out_norm_indices init_cfg'
    assert set(cfg.model.backbone) == set(options.split())
    model = helpers.check_published('segmentation', name, letter, (32, 16))
    # The authors' table, in millions of parameters.
    authors = {('fpn_fpnhead', 'ti'): 24, ('fpn_fpnhead', 's'): 32}
    if (method, letter) in authors:
        count = sum(p.numel() for p in model.parameters()) / 1e6
        assert round(count) == authors[method, letter]
    assert type(model.backbone) is LIT
    normed = [stage.out_norm is not None for stage in model.backbone.stages]
    assert normed == [letter != 'ti'] * 4
    rates = [getattr(m, 'drop_prob', 0) for m in model.backbone.modules()]
    expected = {'ti': 0.1, 's': 0.2, 'm': 0.3, 'b': 0.5}[letter]
    assert max(rates) == pytest.approx(expected) == arch.drop_path_rate

    heads = [cfg.model.decode_head]
    if method == 'fpn_fpnhead':
        assert tuple(cfg.model.neck.in_channels) == arch.embed_dims
        assert (cfg.model.neck.out_channels, cfg.model.neck.num_outs) == (256, 4)
        assert (heads[0].type, heads[0].channels) == ('FPNHead', 128)
        assert 'auxiliary_head' not in cfg.model
    else:
        assert tuple(heads[0].in_channels) == arch.embed_dims
        assert (heads[0].type, heads[0].channels) == ('UPerHead', 512)
        heads.append(cfg.model.auxiliary_head)
        assert heads[1].in_channels == arch.embed_dims[heads[1].in_index]
        assert heads[1].loss_decode.loss_weight == 0.4
    for head in heads:
        assert head.num_classes == 150 and head.dropout_ratio == 0.1
        assert head.norm_cfg.type == 'SyncBNOnGPU'
    # Nothing of a distributed run on GPUs is here, so it is BN that was built.
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert any(type(m) is nn.BatchNorm2d for m in model.decode_head.modules())

    # optimizer and schedule
    spared, rates = helpers.without_decay(model, cfg)
    optimizer = cfg.optim_wrapper.optimizer
    if method == 'fpn_fpnhead':
        assert rates == {1e-4} and optimizer.weight_decay == 1e-4
        assert spared == set()
    else:
        assert rates == {6e-5} and optimizer.weight_decay == 0.01
        backbone = {f'backbone.{name}' for name in norms_of(model.backbone)}
        ends = 'relative_position_bias_table', 'absolute_pos_embed'
        tables = {n for n, _ in model.named_parameters() if n.endswith(ends)}
        assert len(tables) == (4 if letter == 'ti' else sum(arch.depths[2:]))
        assert spared == backbone | tables
        # The norms of the heads are decayed.
        assert norms_of(model.decode_head)

    length = {'80k': 80_000, '160k': 160_000}[SCHEDULE[method]]
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert cfg.train_cfg.max_iters == length
    assert length % cfg.train_cfg.val_interval == 0
    hook = cfg.default_hooks.checkpoint
    assert (hook.by_epoch, hook.save_best) == (False, 'mIoU')
    assert hook.interval == cfg.train_cfg.val_interval
    assert cfg.val_evaluator == cfg.test_evaluator
    assert cfg.val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])


@pytest.mark.parametrize(
    ('method', 'letter'), [('fpn_fpnhead', 'ti'), ('upernet', 's')]
)
def test_data_of_ade_config(method, letter):
    cfg = load(name_of(method, letter))
    for loader, split in zip(loaders(cfg), ('training', 'validation', 'validation')):
        assert loader.dataset.type == 'ADE20KDataset'
        assert loader.dataset.data_root == 'data/ade/ADEChallengeData2016'
        assert loader.dataset.data_prefix == dict(
            img_path=f'images/{split}', seg_map_path=f'annotations/{split}'
        )
        assert only(loader.dataset.pipeline, 'LoadAnnotations').reduce_zero_label
    train, val, test = (loader.dataset.pipeline for loader in loaders(cfg))
    resize = only(train, 'RandomResize')
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert resize.keep_ratio
    crop = only(train, 'RandomCrop')
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    assert cfg.model.data_preprocessor.size == crop.crop_size
    assert only(train, 'RandomFlip').prob == 0.5
    assert only(train, 'PhotoMetricDistortion')
    for pipeline in (val, test):
        assert only(pipeline, 'Resize').scale == (2048, 512)
        assert only(pipeline, 'Resize').keep_ratio
    assert cfg.model.test_cfg.mode == 'whole'


def rates_of(cfg):
    """The learning rate of every iteration of a config's schedule."""
    start = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=start)
    owner = dict(optimizer=OptimWrapper(optimizer))
    schedulers = [PARAM_SCHEDULERS.build({**s, **owner}) for s in cfg.param_scheduler]
    rates = []
    for _ in range(cfg.train_cfg.max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    return np.array([*rates, optimizer.param_groups[0]['lr']])


def test_semantic_fpn_decays_to_a_hundredth():
    rates = rates_of(load(name_of('fpn_fpnhead', 's')))
    done = np.arange(len(rates)) / 80_000
    assert rates == pytest.approx((1e-4 - 1e-6) * (1 - done) ** 0.9 + 1e-6, abs=1e-8)
    assert rates[0] == 1e-4 and rates[-1] == pytest.approx(1e-6, rel=1e-3)


def test_upernet_warms_up_and_decays_to_nothing():
    rates = rates_of(load(name_of('upernet', 's')))
    assert rates[0] == pytest.approx(6e-11)
    assert rates.argmax() in range(1490, 1510)
    assert rates.max() == pytest.approx(6e-5, rel=1e-3)
    assert (np.diff(rates[:1490]) > 0).all() and (np.diff(rates[1510:-1]) < 0).all()
    middle = (1500 + 160_000) // 2
    assert rates[middle] == pytest.approx(3e-5, rel=0.01)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_shapes_config():
    cfg, model = load(SHAPES), helpers.check_shapes('segmentation', SHAPES)
    length = (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval)
    assert length == (cfg.max_epochs, 2)
    detection = helpers.load('detection', 'mask-rcnn_lit-ti_fpn_shapes.py')
    # One dataset serves both demos.
    resolved = [Path(c.shapes.pop('out')).resolve() for c in (cfg, detection)]
    assert resolved[0] == resolved[1] and cfg.shapes == detection.shapes
    assert cfg.classes == ('background', *detection.classes)
    assert len(cfg.palette) == cfg.model.decode_head.num_classes == len(cfg.classes)
    for loader in loaders(cfg):
        assert loader.dataset.type == 'BaseSegDataset'
        # 0 is a class here.
        step = only(loader.dataset.pipeline, 'LoadAnnotations')
        assert 'reduce_zero_label' not in step
        assert loader.dataset.metainfo.classes == cfg.classes
    spared, rates = helpers.without_decay(model, cfg)
    base = cfg.optim_wrapper.optimizer.lr
    assert spared == set() and rates == {base, 10 * base, 0.1 * base}
    entropy, _ = cfg.model.decode_head.loss_decode
    assert len(entropy.class_weight) == len(cfg.classes)


@pytest.mark.parametrize('name', [name_of('fpn_fpnhead', 'ti'), SHAPES])
def test_test_time_augmentation(tmp_path, name):
    """What `tools/test.py --tta` of mmseg makes of a config, which must name it."""
    cfg = helpers.shrink(load(name), ABSOLUTE)
    drawn = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), drawn)
    cv2.imwrite(str(tmp_path / 'mask.png'), np.full((48, 64), 3, dtype=np.uint8))
    reduce = only(cfg.train_dataloader.dataset.pipeline, 'LoadAnnotations')
    reduce = bool(reduce.get('reduce_zero_label'))
    image = {'img_path': str(tmp_path / 'image.png'), 'reduce_zero_label': reduce}
    image.update(seg_map_path=str(tmp_path / 'mask.png'), seg_fields=[])
    with TRANSFORMS.switch_scope_and_registry('mmseg'):
        augmented = Compose(cfg.tta_pipeline)(image)
    shapes = [tuple(inputs.shape[1:]) for inputs in augmented['inputs']]
    factors = (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    assert shapes == [(round(48 * f), round(64 * f)) for f in factors for _ in 'ab']
    model = MODELS.build(dict(cfg.tta_model, module=cfg.model, _scope_='mmseg')).eval()
    with torch.no_grad():
        (result,) = model.test_step(pseudo_collate([augmented]))
    assert result.pred_sem_seg.data.shape == (1, 48, 64)
    assert (result.gt_sem_seg.data == 3 - reduce).all()
