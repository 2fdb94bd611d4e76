"""Semantic FPN with LIT-Ti, ADE20K 80k: the authors' recipe."""

_base_ = '../_base_/fpn_fpnhead.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_ti.pth'

model = dict(
    backbone=dict(
        arch='tiny', out_norm_indices=(), init_cfg=dict(checkpoint=pretrained)
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
