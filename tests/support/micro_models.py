"""Build detectors and segmentors of the configs around a LIT of a few channels."""

import copy
from functools import lru_cache

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
    if 'bbox_head' in model:
        model.bbox_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
        model.bbox_head.update(stacked_convs=1, num_classes=classes)
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
        heads = model.roi_head
        heads.bbox_roi_extractor.out_channels = CHANNELS
        heads.mask_roi_extractor.out_channels = CHANNELS
        heads.bbox_head.update(
            in_channels=CHANNELS, fc_out_channels=CHANNELS, num_classes=classes
        )
        heads.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS)
        heads.mask_head.update(num_convs=1, num_classes=classes)
        model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    if 'decode_head' in model:
        pyramid = 'neck' not in model
        levels = list(MICRO['embed_dims']) if pyramid else [CHANNELS] * 4
        model.decode_head.update(
            in_channels=levels, channels=CHANNELS, num_classes=classes
        )
        model.data_preprocessor.size = (64, 64)
    if 'auxiliary_head' in model:
        model.auxiliary_head.update(
            in_channels=MICRO['embed_dims'][2], channels=CHANNELS, num_classes=classes
        )
    return model


def write_micro(path, kind, name, classes=3):
    """Write a config with a small model; return its path."""
    config = load(kind, name)
    shrink(config.model, classes)
    config.dump(path)
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
