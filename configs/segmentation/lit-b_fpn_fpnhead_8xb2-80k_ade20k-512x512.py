"""Semantic FPN with LIT-B, ADE20K 80k: small's recipe, an extrapolation."""

_base_ = '../_base_/fpn_fpnhead.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_b.pth'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
