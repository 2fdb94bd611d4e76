"""Parent of the UPerNet configs: what all archs share.

An extrapolation: the authors published no UPerNet. The heads and the schedule are those
that mmseg uses for Swin: AdamW 6e-5, weight decay 0.01 but not on LIT's norms and
position tables, 160k iterations, batch 16 in total (8 GPUs x 2), 512x512, warm-up of
1500 iterations, then linear decay to 0. Nobody has run it to the end yet.
"""

_base_ = 'lit_ade20k.py'

# SyncBN in distributed runs on GPUs, plain BN elsewhere: mmlit/engine/sync_bn.py.
norm_cfg = dict(type='SyncBNOnGPU', requires_grad=True)
model = dict(
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'absolute_pos_embed': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
        }
    ),
)
warm_up = 1500
max_iters = 160_000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=16_000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=warm_up, by_epoch=False),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        begin=warm_up,
        end=max_iters,
        by_epoch=False,
    ),
]
default_hooks = dict(checkpoint=dict(interval=16_000))
