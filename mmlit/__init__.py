"""LIT, the Less attention vIsion Transformer, for MMDetection and MMSegmentation.

Importing this package registers `LIT` in mmengine's root registry, so `type='LIT'`
builds from mmdet's and mmseg's too; neither of them is imported here. With it comes
`LITLayerDecayOptimWrapperConstructor` for layer-wise learning-rate decay, and what a
training may need: `AtomicCheckpointHook`, where it may be killed at any moment,
`FiniteLossHook`, which ends one whose loss is NaN, `PipelineGuard`, by which broken
images are named, and `OffsetVisualizationHook` for pictures of where token merging
samples.
"""

from .environment import check_environment

# First of all: the imports below would die in a foreign package where mmcv is missing
# or has no ops.
check_environment()

from .checkpoints.allowlist import allow_mmengine_checkpoints
from .engine.checkpoint_hook import AtomicCheckpointHook
from .checkpoints.reader import read_checkpoint
from .checkpoints.http_loader import register_checkpoint_schemes
from .engine.finite_loss_hook import FiniteLossHook
from .engine.pipeline_guard import PipelineGuard
from .engine.layer_decay import LITLayerDecayOptimWrapperConstructor
from .models.lit import LIT
from .engine.sync_bn import SyncBNOnGPU
from .visualization.offset_hook import OffsetVisualizationHook
from .engine.config_bases import register_configs
from .version import __version__

# So that mmengine's own and the authors' checkpoints load with torch >= 2.6.
allow_mmengine_checkpoints()
# So that no downloaded checkpoint runs code.
register_checkpoint_schemes()
# So that configs can start from `mmlit::detection/...` and `mmlit::segmentation/...`.
register_configs()

__all__ = [
    'AtomicCheckpointHook',
    'FiniteLossHook',
    'LIT',
    'LITLayerDecayOptimWrapperConstructor',
    'OffsetVisualizationHook',
    'PipelineGuard',
    'SyncBNOnGPU',
    '__version__',
    'allow_mmengine_checkpoints',
    'check_environment',
    'read_checkpoint',
    'register_checkpoint_schemes',
    'register_configs',
]
