"""SyncBNOnGPU is SyncBN in distributed runs on GPUs and BN elsewhere."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from mmlit.engine.sync_bn import SyncBNOnGPU
from support.running_tools import in_two

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


def test_checkpoints_fit_from_either_to_the_other(monkeypatch):
    alone = conv('SyncBNOnGPU')
    group(monkeypatch, 'nccl')
    several = conv('SyncBNOnGPU')
    assert type(several.bn) is nn.SyncBatchNorm
    assert list(alone.state_dict()) == list(several.state_dict())
    several.load_state_dict(alone.state_dict())
    reverted = revert_sync_batchnorm(several)
    assert not isinstance(reverted.bn, nn.SyncBatchNorm)
    assert list(reverted.state_dict()) == list(alone.state_dict())


def train_on_own_images(folder, rank):
    model = MMDistributedDataParallel(conv('SyncBNOnGPU'))
    torch.manual_seed(rank)
    x = torch.randn(2, 3, 8, 8) + rank
    model(x).square().mean().backward()
    mean, grad = model.module.bn.running_mean, model.module.conv.weight.grad
    torch.save(dict(x=x, mean=mean, grad=grad.contiguous()), f'{folder}/{rank}.pth')


@pytest.mark.slow
def test_two_cpu_processes_train_on_their_own_statistics(tmp_path):
    in_two(partial(train_on_own_images, tmp_path))
    grads = []
    for rank in range(2):
        saved = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        alone = conv('BN')
        alone(saved['x']).square().mean().backward()
        grads.append(alone.conv.weight.grad)
        assert torch.allclose(saved['mean'], alone.bn.running_mean)
    assert torch.allclose(saved['grad'], (grads[0] + grads[1]) / 2)
