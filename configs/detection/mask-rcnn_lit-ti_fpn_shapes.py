"""Mask R-CNN with LIT-Ti on drawn shapes: the main job of `make demo`.

From scratch to a useful detector in minutes on two CPU cores. The backbone is LIT-Ti
as it is; neck and heads are slimmed to the task, and the schedule is short and hot.
`tools/train.py` draws the data first if it is not there.
"""

_base_ = 'mask-rcnn_lit-ti_fpn_1x_coco.py'

# Independent of the working directory.
data_root = '{{ fileDirname }}/../../data/shapes/'
shapes = dict(out=data_root, train=1600, val=80, size=160, seed=0)
classes = ('circle', 'triangle', 'ring')
num_classes = len(classes)
max_epochs = 3

channels = 96
model = dict(
    # Raw tokens of an untrained LIT differ in size by level: norms level them.
    backbone=dict(init_cfg=None, drop_path_rate=0.0, out_norm_indices=(0, 1, 2, 3)),
    neck=dict(out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # Objects of about 20 to 80 px: spread them over the levels, and one sample
        # per bin is enough.
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=channels, finest_scale=28
        ),
        bbox_head=dict(
            in_channels=channels,
            fc_out_channels=256,
            num_classes=num_classes,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1), out_channels=channels
        ),
        mask_head=dict(
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            norm_cfg=dict(type='BN'),
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=64),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=64)),
)

# Smaller than the images are: a step takes two thirds of the time.
scale = (128, 128)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=2.0),
    # Masks are the last to come, and their head bears a higher rate than LIT does.
    paramwise_cfg=dict(custom_keys={'mask_head': dict(lr_mult=3.0)}),
)
# The same start and the same batches each time.
randomness = dict(seed=0)
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        end=max_epochs,
        eta_min=0.0,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=1, max_keep_ckpts=2),
)
