"""Mask R-CNN with LIT-B, COCO 1x, sharded between the processes (FSDP).

Parameters, gradients and the optimizer's state are split: for GPUs that DDP's full copy
of each does not fit. docs/multi_gpu.md says what is different then.

    tools/dist_train.sh configs/detection/mask-rcnn_lit-b_fpn_fsdp_1x_coco.py 8
"""

_base_ = 'mask-rcnn_lit-b_fpn_1x_coco.py'
custom_imports = dict(
    imports=['mmlit', 'mmlit.engine.fsdp'], allow_failed_imports=False
)

runner_type = 'FlexibleRunner'
strategy = dict(type='LITFSDPStrategy')
