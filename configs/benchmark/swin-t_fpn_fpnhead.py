"""Semantic FPN with mmseg's own Swin-T, for `tools/benchmark.py` to put beside LIT.

All but the backbone is LIT's. No weights: it is not to be trained.
"""

_base_ = '../_base_/fpn_fpnhead.py'

model = dict(
    # As in mmseg's `upernet_swin`, which spells out the defaults.
    backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
