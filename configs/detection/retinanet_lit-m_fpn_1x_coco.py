"""RetinaNet with LIT-M, COCO 1x.

An extrapolation of the authors' recipe for small: they published none for medium.
"""

_base_ = '../_base_/retinanet.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_m.pth'

model = dict(
    backbone=dict(
        arch='medium',
        img_size=800,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
