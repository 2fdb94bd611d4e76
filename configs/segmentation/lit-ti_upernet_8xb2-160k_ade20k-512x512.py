"""UPerNet with LIT-Ti, ADE20K 160k: an extrapolation, see the parent."""

_base_ = '../_base_/upernet.py'
pretrained = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_ti.pth'

model = dict(
    backbone=dict(
        arch='tiny', out_norm_indices=(), init_cfg=dict(checkpoint=pretrained)
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
