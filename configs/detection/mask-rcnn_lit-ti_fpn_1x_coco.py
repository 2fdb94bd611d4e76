"""Mask R-CNN with LIT-Ti, COCO 1x: the authors' recipe."""

_base_ = '../_base_/mask-rcnn.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_ti.pth'

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
# The authors decay every parameter of tiny.
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
