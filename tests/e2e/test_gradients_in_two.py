"""LIT in two processes learns what it would from the joint batch in one.

DistributedDataParallel in its strict setting, which takes no parameter without a
gradient, over gloo, in float64: gradients agree to 1e-12 of the largest one.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import SyncBuffersHook
from mmengine.model import MMDistributedDataParallel
from mmengine.model.wrappers import MMFullyShardedDataParallel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

import mmlit.engine.fsdp  # noqa: F401
from mmlit import LIT
from support.archs import ABSOLUTE, RELATIVE
from support.running_tools import in_two

TOLERANCE = 1e-12
ARCHS = dict(relative=RELATIVE, absolute=ABSOLUTE)


class Detector(nn.Module):
    """A LIT with a head on some of its levels; a loss that is a mean over images."""

    def __init__(self, pos_embed='relative', levels=(0, 1, 2, 3), **options):
        super().__init__()
        torch.manual_seed(0)
        arch = ARCHS[pos_embed]
        self.backbone = LIT(arch, img_size=64, **options)
        self.levels = levels
        dims = [arch['embed_dims'][level] for level in levels]
        self.heads = nn.ModuleList([nn.Conv2d(width, 4, 1) for width in dims])
        for name, parameter in self.named_parameters():
            # Offsets start at 0, where sampling has a kink.
            if 'conv_offset' in name:
                nn.init.normal_(parameter, std=0.1)
        self.double().train()

    def forward(self, images):
        maps = dict(zip(self.backbone.out_indices, self.backbone(images)))
        pairs = zip(self.heads, self.levels)
        return sum(head(maps[level]).square().mean() for head, level in pairs)


def batch():
    return torch.randn(4, 3, 64, 96, generator=torch.manual_seed(1)).double()


def learn(model, images, steps=1):
    """Return the gradients. DDP reports in the second step what the first missed."""
    for _ in range(steps):
        model.zero_grad()
        model(images).backward()
    model = getattr(model, 'module', model)
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def difference(ours, theirs):
    """The largest, over the largest gradient."""
    assert ours.keys() == theirs.keys() and ours
    assert all(grad is not None for grad in [*ours.values(), *theirs.values()])
    largest = max(grad.abs().max() for grad in theirs.values())
    return max((ours[n] - theirs[n]).abs().max() / largest for n in ours).item()


def strict(model):
    """Wrap as mmengine does: no parameter may go without a gradient."""
    return MMDistributedDataParallel(model, broadcast_buffers=False)


def compare_with_joint_batch(rank):
    for i in range(12):  # each frozen_stages with and without with_cp
        options = dict(pos_embed=list(ARCHS)[i % 2], frozen_stages=i // 2 - 1)
        options.update(norm_eval=True, with_cp=i % 4 in (1, 2))
        joint = learn(Detector(**options), batch())
        shared = learn(strict(Detector(**options)), batch()[rank::2], steps=2)
        assert difference(shared, joint) < TOLERANCE, options


def shard(rank):
    """The same of FSDP, where each process holds a part of each parameter."""
    joint = learn(Detector(norm_eval=True), batch())
    model = MMFullyShardedDataParallel(
        Detector(norm_eval=True), auto_wrap_policy='wrap_lit_blocks', device_id='cpu'
    )
    kept = sum(p.numel() for p in model.parameters())
    assert kept < 0.6 * sum(p.numel() for p in Detector().parameters())
    model(batch()[rank::2]).backward()
    with FSDP.summon_full_params(model, with_grads=True):
        shared = {name: p.grad.clone() for name, p in model.named_parameters()}
    shared = {n.replace('_fsdp_wrapped_module.', ''): g for n, g in shared.items()}
    assert difference(shared, joint) < TOLERANCE


def train_batch_norms(rank):
    """As all detectors with plain BatchNorm do: on the process's own images."""
    model = strict(Detector())
    shared = learn(model, batch()[rank::2])
    parts = [learn(Detector(), batch()[process::2]) for process in range(2)]
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in shared}
    assert difference(shared, mean) < TOLERANCE
    assert difference(shared, learn(Detector(), batch())) > 1e-3

    norm = model.module.backbone.stages[1].downsample.norm
    own = gathered(norm.running_mean)
    assert not torch.equal(*own)
    SyncBuffersHook().before_val_epoch(SimpleNamespace(model=model))
    for after in gathered(norm.running_mean):
        torch.testing.assert_close(after, (own[0] + own[1]) / 2)
    assert norm.num_batches_tracked == 1


def gathered(tensor):
    dist.all_gather(copies := [torch.empty_like(tensor) for _ in range(2)], tensor)
    return copies


def leave_out_level_0(rank):
    """RetinaNet's pyramid starts at level 1. A norm on level 0 would go unused."""
    options = dict(levels=(1, 2, 3), norm_eval=True)
    learn(strict(Detector(**options)), batch()[rank::2], steps=2)
    options['out_norm_indices'] = (0, 1, 2, 3)
    with pytest.raises(RuntimeError, match='parameters that were not used'):
        learn(strict(Detector(**options)), batch()[rank::2], steps=2)
    # Not to emit the level is the way out.
    options['out_indices'] = (1, 2, 3)
    learn(strict(Detector(**options)), batch()[rank::2], steps=2)


def test_two_processes_learn_as_one():
    in_two(compare_with_joint_batch, shard, train_batch_norms, leave_out_level_0)
