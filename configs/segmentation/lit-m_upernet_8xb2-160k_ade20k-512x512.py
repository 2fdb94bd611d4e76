"""UPerNet with LIT-M, ADE20K 160k: an extrapolation, see the parent."""

_base_ = '../_base_/upernet.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_m.pth'

model = dict(
    backbone=dict(arch='medium', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
