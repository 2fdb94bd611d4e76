"""Train every kind of config for one step: a gradient for each parameter.

DistributedDataParallel in its strict setting stops at a parameter without one.
"""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from support import config_helpers
from support.archs import ABSOLUTE, RELATIVE
from support.config_helpers import build, noise, shrink, train_on
from support.running_tools import in_two

pytest.importorskip('mmdet', reason='the detection configs build on mmdet')
pytest.importorskip('mmseg', reason='the segmentation configs are for mmseg')

# One of each method.
METHODS = (
    'detection/mask-rcnn_lit-s_fpn_1x_coco.py',
    'detection/retinanet_lit-s_fpn_1x_coco.py',
    'detection/swap_backbone_example.py',
    'segmentation/lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512.py',
    'segmentation/lit-s_upernet_8xb2-160k_ade20k-512x512.py',
)
SHAPES = (
    'detection/mask-rcnn_lit-ti_fpn_shapes.py',
    'segmentation/lit-ti_fpn_fpnhead_shapes.py',
)


def load(name, arch=RELATIVE):
    cfg = shrink(config_helpers.load(*name.split('/')), arch)
    if 'segmentation' in name:
        cfg.model.data_preprocessor.size = (64, 64)
    if 'roi_head' in cfg.model:  # Few proposals: their heads take most of the time.
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        cfg.model.test_cfg.rpn.max_per_img = 20
    return cfg


@pytest.mark.parametrize('name', [*METHODS, *SHAPES])
def test_a_config_trains_and_predicts(name):
    cfg = load(name, ABSOLUTE if name in SHAPES else RELATIVE)
    # A block that is dropped for both images would get zeros by chance.
    cfg.model.backbone.drop_path_rate = 0.0
    model = build(cfg)
    model.init_weights()
    data = noise(cfg)
    assert torch.isfinite(train_on(model, data))
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, grad in trained.items() if grad is None]
    # Heads may: of a class that no box has, of boxes where none fits.
    zeros = [n for n, grad in trained.items() if grad.count_nonzero() == 0]
    assert not [n for n in zeros if n.startswith('backbone.')]

    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(noise(cfg), False)
        results = model.forward(**data, mode='predict')
    assert len(results) == 2
    for result in results:
        if 'segmentation' in name:
            assert result.pred_sem_seg.data.shape == (1, 64, 64)
        else:
            assert 'scores' in result.pred_instances


def train_methods(rank):
    """Train each method; process 1 has no objects in the first step."""
    for name in METHODS:
        cfg = load(name)
        torch.manual_seed(rank)
        model = build(cfg)
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        for objects in ((0, 0) if rank == 1 else (3, 2), (3, 2), (1, 0)):
            wrapped.zero_grad()
            train_on(model, noise(cfg, objects), wrapped)
        assert all(p.grad is not None for p in model.parameters()), name


@pytest.mark.slow
def test_each_method_trains_in_two_processes():
    in_two(train_methods)
