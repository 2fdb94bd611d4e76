"""Parent of the Mask R-CNN configs: what all archs share.

Recipe (the authors'): AdamW 2e-4, weight decay 1e-4, 12 epochs, batch 16 in total
(8 GPUs x 2), 1333x800, steps at 8 and 11, warm-up of 500 iterations, no clipping.
Norms and bias tables are not decayed (tiny: everything is).
All but the optimizer is what mmdet's bases say already.
"""

_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='LIT', out_indices=(0, 1, 2, 3)),
    neck=dict(num_outs=5),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
        }
    ),
)
# In several processes each has BatchNorm statistics of its own (token merging holds
# BatchNorms): averaged before they are evaluated or saved, so that both are the same.
# Checkpoints are whole whenever the training is killed, and a loss of NaN ends it.
default_hooks = dict(
    sync_buffers=dict(type='SyncBuffersHook'),
    checkpoint=dict(type='AtomicCheckpointHook'),
    finite_loss=dict(type='FiniteLossHook'),
)
