"""Parent of the Semantic FPN configs: what all archs share.

Recipe (the authors'): AdamW 1e-4, weight decay 1e-4 on everything, 80k iterations,
batch 16 in total (8 GPUs x 2), 512x512, polynomial decay of power 0.9 down to 1e-6, no
warm-up, no clipping. (mmseg's own 80k schedule ends at 1e-4, where this one starts.)
"""

_base_ = 'lit_ade20k.py'

# SyncBN in distributed runs on GPUs, plain BN elsewhere: mmlit/engine/sync_bn.py.
norm_cfg = dict(type='SyncBNOnGPU', requires_grad=True)
model = dict(
    neck=dict(type='FPN', out_channels=256, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
)
max_iters = 80_000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=8000)
param_scheduler = [
    dict(
        type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=max_iters, by_epoch=False
    ),
]
