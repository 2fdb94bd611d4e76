"""Semantic FPN with LIT-M, ADE20K 80k: small's recipe, an extrapolation."""

_base_ = '../_base_/fpn_fpnhead.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_m.pth'

model = dict(
    backbone=dict(arch='medium', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
