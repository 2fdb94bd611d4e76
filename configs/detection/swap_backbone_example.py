"""LIT in a stock MMDetection config: the minimum a user writes.

Any config with a feature pyramid will do in place of the first line. Each other line
is needed, and says why. Train it as any config of mmdet:

    python <mmdet>/tools/train.py swap_backbone_example.py
"""

# The stock config to change, here out of the installed mmdet. A path works as well.
_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'

# Registers `LIT`. mmdet imports this before it builds the model.
custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        # Drop the ResNet's arguments: merged into LIT's they would be refused.
        _delete_=True,
        type='LIT',
        # 'tiny', 'small', 'medium' or 'base'.
        arch='small',
        # What size of image the position tables are made for; the longer you train
        # at about 800 px, the more it is worth. Any image size runs, whatever this is.
        img_size=800,
        # ImageNet weights of the authors. None trains from scratch.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/ziplab/LIT/releases/download/v1.0/lit_s.pth',
        ),
    ),
    # The channels of the four levels that LIT emits: `mmlit.archs.ARCHS['small']`.
    neck=dict(in_channels=[96, 192, 384, 768]),
)

# Do not keep the stock SGD with lr 0.02: a transformer does not learn with it, and the
# result is an mAP of 0. This is the authors' setting for Mask R-CNN at batch 16.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
    # Norms and position tables are better off without weight decay.
    paramwise_cfg=dict(
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
        }
    ),
)

# On several GPUs: the statistics of LIT's BatchNorms differ from process to process.
# This averages them before they are evaluated or saved.
default_hooks = dict(sync_buffers=dict(type='SyncBuffersHook'))
