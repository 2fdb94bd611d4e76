"""DistributedDataParallel in its strict setting: no parameter without a gradient."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from support import config_helpers
from support.config_helpers import CONFIGS, build, noise, train_on
from support.two_processes import in_two

pytest.importorskip('mmdet', reason='the detection configs build on mmdet')
pytest.importorskip('mmseg', reason='the segmentation configs are for mmseg')

TINY = dict(
    embed_dims=(8, 16, 24, 32),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(2, 2, 2, 2),
    pos_embed='relative',
    norm_eps=1e-5,
    drop_path_rate=0.1,
)
TRAINED = sorted(
    f'{path.parent.name}/{path.name}'
    for path in CONFIGS.glob('*/*.py')
    if path.parent.name in ('detection', 'segmentation')
)
# One of each method.
METHODS = (
    'detection/mask-rcnn_lit-s_fpn_1x_coco.py',
    'detection/retinanet_lit-s_fpn_1x_coco.py',
    'detection/swap_backbone_example.py',
    'segmentation/lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512.py',
    'segmentation/lit-s_upernet_8xb2-160k_ade20k-512x512.py',
)


def load(name):
    cfg = config_helpers.load(*name.split('/'))
    if 'segmentation' in name:
        cfg.model.data_preprocessor.size = (64, 64)
    return cfg


@pytest.mark.parametrize('name', TRAINED)
def test_every_parameter_of_a_config_gets_a_gradient(name):
    cfg = load(name)
    # A block that is dropped for both images would get zeros by chance.
    cfg.model.backbone.drop_path_rate = 0.0
    model = build(cfg)
    train_on(model, noise(cfg))
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n, grad in trained.items() if grad is None]
    # Heads may: of a class that no box has, of boxes where none fits.
    zeros = [n for n, grad in trained.items() if grad.count_nonzero() == 0]
    assert not [n for n in zeros if n.startswith('backbone.')]


def train_methods(rank):
    """A LIT of a few channels, and on process 1 no objects in the first step."""
    for name in METHODS:
        cfg = load(name)
        cfg.model.backbone.arch = TINY
        holder = cfg.model.get('neck') or cfg.model.decode_head
        holder.in_channels = list(TINY['embed_dims'])
        if 'auxiliary_head' in cfg.model:
            cfg.model.auxiliary_head.in_channels = TINY['embed_dims'][2]
        torch.manual_seed(rank)
        model = build(cfg)
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        for objects in ((0, 0) if rank == 1 else (3, 2), (3, 2), (1, 0)):
            wrapped.zero_grad()
            train_on(model, noise(cfg, objects), wrapped)
        assert all(p.grad is not None for p in model.parameters()), name


def test_each_method_trains_in_two_processes():
    in_two(train_methods)
