"""UPerNet with LIT-B, ADE20K 160k: an extrapolation, see the parent."""

_base_ = '../_base_/upernet.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_b.pth'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=pretrained)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
