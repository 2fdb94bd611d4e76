"""Build detectors and segmentors of the configs around a LIT of a few channels."""

import copy
from functools import lru_cache

from support.archs import RELATIVE
from support.config_helpers import build, load

#: Width of stages and blocks in them, as little as there can be.
MICRO = dict(embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
MICRO.update(mlp_ratios=(2, 2, 2, 2), norm_eps=1e-5, drop_path_rate=0.0)
MICRO.update(pos_embed='relative')
CHANNELS = 16
MASK_RCNN = ('detection', 'mask-rcnn_lit-ti_fpn_1x_coco.py')
MASK_RCNN_SHAPES = ('detection', 'mask-rcnn_lit-ti_fpn_shapes.py')
RETINANET = ('detection', 'retinanet_lit-s_fpn_1x_coco.py')
FPN = ('segmentation', 'lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512.py')
FPN_SHAPES = ('segmentation', 'lit-ti_fpn_fpnhead_shapes.py')
UPERNET = ('segmentation', 'lit-s_upernet_8xb2-160k_ade20k-512x512.py')


def shrink(model, classes=3):
    """Change the model of a config; its parts stay the same."""
    model.backbone.update(arch=MICRO, img_size=64)
    model.backbone.pop('drop_path_rate', None)
    if 'neck' in model:
        model.neck.update(in_channels=list(MICRO['embed_dims']), out_channels=CHANNELS)
    narrow, counted = dict(in_channels=CHANNELS), dict(num_classes=classes)
    if 'bbox_head' in model:
        model.bbox_head.update(narrow, feat_channels=CHANNELS, stacked_convs=1)
        model.bbox_head.update(counted)
    if 'rpn_head' in model:
        model.rpn_head.update(narrow, feat_channels=CHANNELS)
        heads = model.roi_head
        heads.bbox_roi_extractor.out_channels = CHANNELS
        heads.mask_roi_extractor.out_channels = CHANNELS
        heads.bbox_head.update(narrow, fc_out_channels=CHANNELS, **counted)
        heads.mask_head.update(narrow, conv_out_channels=CHANNELS, num_convs=1)
        heads.mask_head.update(counted)
        model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    if 'decode_head' in model:
        levels = [CHANNELS] * 4 if 'neck' in model else list(MICRO['embed_dims'])
        model.decode_head.update(counted, in_channels=levels, channels=CHANNELS)
        model.data_preprocessor.size = (64, 64)
    if 'auxiliary_head' in model:
        model.auxiliary_head.update(counted, channels=CHANNELS)
        model.auxiliary_head.in_channels = MICRO['embed_dims'][2]
    return model


def write_micro(path, kind, name, classes=3):
    """Write a config with a small model; return its path."""
    config = load(kind, name)
    shrink(config.model, classes)
    config.dump(path)
    return path


def write_mini(path, base, pos_embed):
    """Write a config with a micro LIT in the place of `base`'s."""
    arch = dict(RELATIVE, pos_embed=pos_embed, _delete_=True)
    channels = list(RELATIVE['embed_dims'])
    path.write_text(
        f'_base_ = {str(base)!r}\n'
        f'model = dict(backbone=dict(arch={arch}, img_size=64),\n'
        f'             neck=dict(in_channels={channels}))\n'
    )
    return path


def micro(kind, name):
    """Build a small model of a config, in training mode, on the CPU."""
    return copy.deepcopy(_built(kind, name))


@lru_cache(maxsize=None)
def _built(kind, name):
    config = load(kind, name)
    shrink(config.model)
    model = build(config)
    model.init_weights()
    return model.train()
