"""BatchNorm that shares its statistics between GPUs and runs without any."""

from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@MODELS.register_module()
class SyncBNOnGPU(nn.SyncBatchNorm):
    """SyncBN for tensors on a GPU, BN for those on the CPU.

    In configs, ``norm_cfg=dict(type='SyncBNOnGPU')``. The heads of dense prediction
    train with few images a GPU, so they want the statistics of all of them; torch's
    ``SyncBatchNorm`` has no CPU version, though, and raises there as soon as there is a
    process group (``Runner`` replaces it in a run of one process only). Here the device
    of the input decides, call by call: a model can be built first and moved or
    distributed later. On the CPU each process takes the statistics of its own images,
    as BN does.

    Arguments, parameters, buffers and their names are those of ``BatchNorm2d``, so a
    checkpoint written with any of the three loads into the others.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape, normalised over all but C."""
        if x.device.type == 'cpu':
            return _BatchNorm.forward(self, x)
        return super().forward(x)
