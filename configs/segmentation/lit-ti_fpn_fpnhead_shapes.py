"""Semantic FPN with LIT-Ti on drawn shapes: the main job of `make demo-seg`.

From scratch to a useful segmentor in minutes on two CPU cores. The backbone is LIT-Ti
as it is; neck and head are slimmed to the task, and the schedule is short and hot.
`tools/train.py` draws the data first if it is not there.
"""

_base_ = 'lit-ti_fpn_fpnhead_8xb2-80k_ade20k-512x512.py'

# Independent of the working directory.
data_root = '{{ fileDirname }}/../../data/shapes/'
shapes = dict(out=data_root, train=1600, val=80, size=160, seed=0)
# The background is a class like the others: it counts in training and in the mIoU.
classes = ('background', 'circle', 'triangle', 'ring')
num_classes = len(classes)
palette = [[40, 40, 40], [230, 159, 0], [86, 180, 233], [0, 158, 115]]
max_epochs = 6

# Smaller than the images are: a step takes two thirds of the time.
scale = (128, 128)
# Crops that are not all background: more shapes for the same number of pixels. After
# 400 steps, batches of 7 have 2.5 mIoU more than as many pixels in 4 whole images.
crop_size = (96, 96)
channels = 64
model = dict(
    data_preprocessor=dict(size=crop_size),
    # Raw tokens of an untrained LIT differ in size by level: norms level them.
    backbone=dict(init_cfg=None, drop_path_rate=0.0, out_norm_indices=(0, 1, 2, 3)),
    neck=dict(out_channels=channels),
    decode_head=dict(
        in_channels=[channels] * 4,
        channels=channels,
        dropout_ratio=0.0,
        num_classes=num_classes,
        # Most pixels are background: left alone, it is all that is learned at first.
        # Triangles are the rarest, and learned last: the Lovasz loss, which
        # counts classes alike, sees to them.
        loss_decode=[
            dict(type='CrossEntropyLoss', class_weight=[0.5, 1.0, 1.2, 1.0]),
            dict(type='LovaszLoss', reduction='none'),
        ],
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=7,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler'),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train', seg_map_path='masks/train'),
        metainfo=dict(classes=classes, palette=palette),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='masks/val'),
        metainfo=dict(classes=classes, palette=palette),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=2.0),
    # Neck and head bear a higher rate than LIT, and LIT than its offsets, which at the
    # same rate move by parts of a pixel each step.
    paramwise_cfg=dict(
        custom_keys={
            'neck': dict(lr_mult=10.0),
            'decode_head': dict(lr_mult=10.0),
            'conv_offset': dict(lr_mult=0.1),
        }
    ),
)
# The same start and the same batches each time.
randomness = dict(seed=0)
train_cfg = dict(
    _delete_=True, type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    # The full rate for long. This and the offsets' low rate end 3.7 mIoU above a cosine
    # and one rate for all of LIT, after the same 1600 steps.
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.0,
        begin=4,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, save_best=None),
)
