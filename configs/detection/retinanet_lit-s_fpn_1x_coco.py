"""RetinaNet with LIT-S, COCO 1x: the authors' recipe."""

_base_ = '../_base_/retinanet.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_s.pth'

model = dict(
    backbone=dict(
        arch='small',
        img_size=800,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
