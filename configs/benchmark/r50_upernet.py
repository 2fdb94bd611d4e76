"""UPerNet with mmseg's own ResNet-50, for `tools/benchmark.py` to put beside LIT.

All but the backbone is LIT's. No weights: it is not to be trained.
"""

_base_ = '../_base_/upernet.py'

model = dict(
    # As in mmseg's `upernet_r50`, which spells out the defaults.
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        norm_cfg=dict(type='SyncBNOnGPU', requires_grad=True),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
