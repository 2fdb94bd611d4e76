"""BatchNorm that shares its statistics between GPUs, in runs that have several."""

from typing import Union

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class SyncBNOnGPU:
    """SyncBN in a distributed run on GPUs, BN everywhere else.

    In configs, ``norm_cfg=dict(type='SyncBNOnGPU')``. The heads of segmentation train
    with few images a GPU and want the statistics of all of them, but torch's
    ``SyncBatchNorm`` has no CPU version: ``DistributedDataParallel`` refuses it there.
    (mmengine's ``Runner`` replaces it, in runs of one process only.)

    Calling this class gives one of torch's own two layers, so nothing downstream meets
    a third kind. Which one is decided when the layer is built: by whether there is a
    process group, and one over NCCL, which is what GPUs use. ``Runner`` makes the group
    before the model; do so too in a script of your own. A checkpoint written with
    either layer loads into the other.
    """

    #: What mmcv calls such a layer inside its modules, as it does BN and SyncBN.
    _abbr_ = 'bn'

    def __new__(
        cls, num_features: int, **kwargs
    ) -> Union[nn.SyncBatchNorm, nn.BatchNorm2d]:
        """The layer; the arguments are those of both."""
        layer = nn.SyncBatchNorm if _on_several_gpus() else nn.BatchNorm2d
        return layer(num_features, **kwargs)


def _on_several_gpus() -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return False
    # 'nccl', or 'cpu:gloo,cuda:nccl' for a group that serves both.
    backend = dist.get_backend()
    if backend == 'undefined':  # `init_process_group()` chose for each kind of device.
        # Some versions of torch list NCCL where there is no GPU, too.
        backend = dist.get_backend_config() if torch.cuda.is_available() else ''
    return 'nccl' in backend
