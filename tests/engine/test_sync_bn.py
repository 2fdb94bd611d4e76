"""SyncBNOnGPU is SyncBN in distributed runs on GPUs and BN elsewhere."""

import pytest
import torch
import torch.distributed as dist
from mmcv.cnn import ConvModule, build_norm_layer
from torch import nn

from mmlit.engine.sync_bn import SyncBNOnGPU

CFG = dict(type='SyncBNOnGPU', requires_grad=True)


def conv(norm):
    torch.manual_seed(0)
    return ConvModule(3, 4, 3, norm_cfg=dict(type=norm))


def group(monkeypatch, backend, config='', gpu=True):
    """Pretend that there is a process group over `backend`."""
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_backend', lambda: backend)
    # For `init_process_group()` without a backend, which is 'undefined'.
    monkeypatch.setattr(dist, 'get_backend_config', lambda: config)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)


def test_alone_it_is_bn():
    name, norm = build_norm_layer(dict(CFG, requires_grad=False), 8, postfix=1)
    assert type(norm) is nn.BatchNorm2d and name == 'bn1'
    assert not any(p.requires_grad for p in norm.parameters())
    with pytest.raises(TypeError, match='epsilon'):
        SyncBNOnGPU(8, epsilon=1e-3)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(conv('SyncBNOnGPU')(x), conv('BN')(x))


SYNCED = [('nccl',), ('cpu:gloo,cuda:nccl',), ('undefined', 'cpu:gloo,cuda:nccl')]
ALONE = [('gloo',), ('undefined', 'cpu:gloo'), ('undefined', 'cuda:nccl', False)]


@pytest.mark.parametrize('backend', [*SYNCED, *ALONE])
def test_the_process_group_decides(monkeypatch, backend):
    group(monkeypatch, *backend)
    name, norm = build_norm_layer(dict(CFG, eps=1e-3, momentum=0.2), 8)
    kind = nn.SyncBatchNorm if backend in SYNCED else nn.BatchNorm2d
    assert type(norm) is kind and name == 'bn'
    assert (norm.num_features, norm.eps, norm.momentum) == (8, 1e-3, 0.2)


def test_a_group_without_a_named_backend(tmp_path):
    """Why the configuration is read: torch does not say what it chose."""
    dist.init_process_group(init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        assert dist.get_backend() == 'undefined'
        gpu = torch.cuda.is_available()
        assert type(SyncBNOnGPU(8)) is (nn.SyncBatchNorm if gpu else nn.BatchNorm2d)
    finally:
        dist.destroy_process_group()
