"""RetinaNet with LIT-B, COCO 1x.

An extrapolation of the authors' recipe for small: they published none for base.
"""

_base_ = '../_base_/retinanet.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_b.pth'

model = dict(
    backbone=dict(
        arch='base',
        img_size=800,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
