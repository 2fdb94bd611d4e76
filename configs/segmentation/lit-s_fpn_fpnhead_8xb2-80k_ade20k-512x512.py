"""Semantic FPN with LIT-S, ADE20K 80k: the authors' recipe."""

_base_ = '../_base_/fpn_fpnhead.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_s.pth'

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
