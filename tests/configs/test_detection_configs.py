"""Check the detection configs as mmengine resolves them: model, optimizer, schedule."""

import pytest

from support import config_helpers as helpers
from support.config_helpers import ARCH_OF, loaders, only

pytest.importorskip('mmdet', reason='the detection configs build on mmdet')

# The authors' table, in millions of parameters.
MILLIONS = {'retinanet': {'ti': 30, 's': 39}, 'mask-rcnn': {'ti': 40, 's': 48}}
COCO = [(method, letter) for method in MILLIONS for letter in ARCH_OF]
SHAPES = 'mask-rcnn_lit-ti_fpn_shapes.py'


@pytest.mark.parametrize(('method', 'letter'), COCO)
def test_coco_config(method, letter):
    name = f'{method}_lit-{letter}_fpn_1x_coco.py'
    cfg = helpers.load('detection', name)
    model = helpers.check_published('detection', name, letter, (50, 25))
    backbone, neck = cfg.model.backbone, cfg.model.neck
    assert set(backbone) <= {'type', 'arch', 'img_size', 'out_indices', 'init_cfg'}
    if letter in MILLIONS[method]:
        count = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(count - MILLIONS[method][letter]) < 1
    assert tuple(neck.in_channels) == model.backbone.embed_dims
    assert neck.num_outs == 5 and neck.out_channels == 256
    if method == 'retinanet':
        assert neck.start_level == 1 and neck.add_extra_convs == 'on_input'

    # optimizer
    spared, rates = helpers.without_decay(model, cfg)
    assert rates == {{'retinanet': 1e-4, 'mask-rcnn': 2e-4}[method]}
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    tables = {n for n, _ in model.named_parameters() if 'position_bias_table' in n}
    expected = helpers.norms_of(model) | tables
    assert spared == (set() if letter == 'ti' else expected)

    # schedule
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor) == ('LinearLR', 0.001)
    assert (warm_up.begin, warm_up.end, warm_up.by_epoch) == (0, 500, False)
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)
    assert steps.by_epoch and steps.end == cfg.train_cfg.max_epochs == 12
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop'

    # images: 1333x800
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    for loader in loaders(cfg):
        resize = only(loader.dataset.pipeline, 'Resize')
        assert tuple(resize.scale) == (1333, 800) and resize.keep_ratio


def test_swap_backbone_example():
    cfg = helpers.load('detection', 'swap_backbone_example.py')
    assert cfg.model.type == 'CascadeRCNN'
    model = helpers.build_without_data(cfg)
    helpers.check_metafile(model, cfg, 'detection', 'swap_backbone_example.py')
    assert type(model.backbone).__name__ == 'LIT'
    assert tuple(cfg.model.neck.in_channels) == model.backbone.embed_dims
    spared, rates = helpers.without_decay(model, cfg)
    assert rates == {2e-4}
    assert all('norm' in name or 'position_bias_table' in name for name in spared)


def test_shapes_config():
    cfg = helpers.load('detection', SHAPES)
    model = helpers.check_shapes('detection', SHAPES)
    assert cfg.shapes.val >= 60
    assert model.roi_head.bbox_head.num_classes == len(cfg.classes) >= 3
    base = cfg.optim_wrapper.optimizer.lr
    assert helpers.without_decay(model, cfg)[1] == {base, 3 * base}
