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

from .checkpoint import allow_mmengine_checkpoints
from .checkpoint_hook import AtomicCheckpointHook
from .checkpoint_reader import read_checkpoint
from .checkpoint_schemes import register_checkpoint_schemes
from .finite_loss_hook import FiniteLossHook
from .guard import PipelineGuard
from .layer_decay import LITLayerDecayOptimWrapperConstructor
from .lit import LIT
from .norm import SyncBNOnGPU
from .offset_hook import OffsetVisualizationHook
from .registry import register_configs
from .version import __version__

# So that checkpoints mmengine wrote load again with torch >= 2.6 (see the function).
allow_mmengine_checkpoints()
# So that no checkpoint runs code, and the authors' load without their packages.
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
