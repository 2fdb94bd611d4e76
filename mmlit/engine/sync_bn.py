"""Choose between SyncBN and BN by the process group that a run has."""

from typing import Union

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class SyncBNOnGPU:
    """SyncBN in a distributed run on GPUs, BN everywhere else.

    In configs, ``norm_cfg=dict(type='SyncBNOnGPU')``. Segmentation heads train with few
    images per GPU and want the statistics of all of them, but torch's ``SyncBatchNorm``
    has no CPU version: ``DistributedDataParallel`` refuses it there.

    Calling this class returns one of torch's own two layers: SyncBN if there is a
    process group over NCCL, which is what GPUs use. ``Runner`` makes the group before
    the model; a script of your own must do so too. Checkpoints fit either layer.
    """

    #: Prefix that mmcv gives such a layer inside its modules, as to BN and SyncBN.
    _abbr_ = 'bn'

    def __new__(
        cls, num_features: int, **kwargs
    ) -> Union[nn.SyncBatchNorm, nn.BatchNorm2d]:
        """Return the layer; the arguments are those of both."""
        layer = nn.SyncBatchNorm if _on_several_gpus() else nn.BatchNorm2d
        return layer(num_features, **kwargs)


def _on_several_gpus() -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return False
    # 'nccl', or 'cpu:gloo,cuda:nccl' for a group that serves both.
    backend = dist.get_backend()
    if backend == 'undefined':  # `init_process_group()` chose one per kind of device.
        # Some versions of torch list NCCL where there is no GPU, too.
        backend = dist.get_backend_config() if torch.cuda.is_available() else ''
    return 'nccl' in backend
