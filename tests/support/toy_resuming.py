"""A training of milliseconds that draws all kinds of random numbers, in this process.

Python's and numpy's in the data, torch's in the model; evaluated after each epoch, with
the best checkpoint kept. Loops by epochs and by iterations, `EPOCH` iterations each.
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dist import is_distributed
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset, get_worker_info

from mmlit import read_checkpoint
from mmlit.engine.preemption import STOPPED
from support.comparison import equal
from support.this_stack import only_on

IMAGES, BATCH = 8, 2
EPOCH = IMAGES // BATCH


class Noisy(Dataset):
    """Augmented by both generators; says which image it is."""

    metainfo = dict(classes=('thing',))

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        noise = torch.tensor([random.random(), np.random.rand()], dtype=torch.float32)
        return dict(value=noise + i, index=i)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        layers = torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)
        self.layers, self.seen = torch.nn.Sequential(*layers), []

    def forward(self, value, index, mode):
        out = self.layers(torch.stack(list(value)))
        if mode == 'predict':
            return [out]
        self.seen.extend(int(i) for i in index)
        return {'loss': out.square().mean()}


class Score(BaseMetric):
    """The first weight, rounded: better at times, and no better at others."""

    model = None

    def process(self, data_batch, data_samples):
        self.results.append(np.random.rand())

    def compute_metrics(self, results):
        first = next(self.model.parameters()).flatten()[0].item()
        return {'score': round(first, 3), 'drawn': results[-1]}


class Act(Hook):
    """Calls `at[1]` at the moment `at[0]`: (its name, iteration)."""

    priority = 'VERY_HIGH'

    def __init__(self, at):
        self.at = at

    def _act(name):
        def act(self, runner, *args, **kwargs):
            if self.at and self.at[0] == (name, runner.iter):
                self.at[1]()

        return act

    before_train_iter, before_val_iter = _act('train'), _act('val')
    after_val_iter, after_val_epoch = _act('evaluated'), _act('after_val')


def build(work_dir, by_epoch=True, epochs=3, at=None, workers=0, resume=False, **hook):
    """A Runner; `hook` is for the checkpoint hook, `at` for `Act`."""
    kind = 'DefaultSampler' if by_epoch else 'InfiniteSampler'

    def loader(**sampler):
        options = dict(batch_size=BATCH, num_workers=workers, dataset=Noisy())
        return dict(options, sampler=sampler)

    train_cfg = dict(by_epoch=True, max_epochs=epochs)
    if not by_epoch:
        train_cfg = dict(by_epoch=False, max_iters=EPOCH * epochs, val_interval=EPOCH)
        hook = {'by_epoch': False, 'interval': EPOCH, **hook}
    torch.manual_seed(3)  # the Runner seeds later than that
    model, metric = Model(), Score()
    metric.model = model
    stop = dict(type='FiniteLossHook', in_a_row=2)
    logger = dict(type='LoggerHook', interval=1)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    hook = {'type': 'AtomicCheckpointHook', 'interval': 1, **hook}
    return Runner(
        model,
        str(work_dir),
        loader(type=kind, shuffle=True),
        train_cfg=train_cfg,
        cfg=dict(model_wrapper_cfg=dict(wrapper, broadcast_buffers=False)),
        launcher='pytorch' if is_distributed() else 'none',
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1), clip_grad=None),
        param_scheduler=[
            dict(type='CosineAnnealingLR', T_max=EPOCH * epochs, by_epoch=False),
            dict(type='MultiStepLR', milestones=[1, 2], by_epoch=True),
        ],
        val_dataloader=loader(type='DefaultSampler', shuffle=False),
        val_cfg=dict(),
        val_evaluator=[metric],
        custom_hooks=[Act(at), dict(type='EMAHook', momentum=0.1)],
        default_hooks=dict(checkpoint=hook, logger=logger, finite_loss=stop),
        randomness=dict(seed=3),
        resume=resume,
        experiment_name=f'{work_dir}',
        visualizer=dict(type='Visualizer', name=str(work_dir), vis_backends=[]),
    )


_STOCK = only_on('openmmlab', 'onedl-mmengine skips batches, and their randomness')
ITERATIONS = pytest.param(False, marks=_STOCK, id='iterations')
_LOOPS = [pytest.param(True, id='epochs'), ITERATIONS]
BY_EPOCH = pytest.mark.parametrize('by_epoch', _LOOPS)


def stopped(runner):
    """Trains until SIGTERM stops it."""
    with pytest.raises(SystemExit) as stop:
        runner.train()
    assert stop.value.code == STOPPED == 75
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    return runner


def noted(folder):
    return Path((Path(folder) / 'last_checkpoint').read_text())


def check_same_end(one, other):
    """Weights and moments, bit by bit, and what was measured."""
    one, other = (read_checkpoint(noted(r.work_dir)) for r in (one, other))
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert equal(one[key], other[key]), key
    ends = [(c['meta']['epoch'], c['meta']['iter']) for c in (one, other)]
    assert ends[0] == ends[1]
    one, other = (c['message_hub']['log_scalars'] for c in (one, other))
    for key in ('train/loss', 'train/lr', 'val/score', 'val/drawn'):
        # Curves: nothing was repeated, nothing left out.
        assert one[key].data[0].tolist() == other[key].data[0].tolist(), key


def listens(process):
    """Whether it has a handler for SIGTERM."""
    path = Path(f'/proc/{process}/status')
    if not path.exists():
        return True
    caught = path.read_text().split('SigCgt:')[1].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


class Untimely(Noisy):
    """SIGTERM to all processes comes while the training waits for these data."""

    loaded = 0

    def __getitem__(self, i):
        self.loaded += 1
        if get_worker_info() and self.loaded == BATCH + 1:
            while not listens(os.getppid()):
                time.sleep(0.1)
            time.sleep(0.5)
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGTERM)
            time.sleep(0.5)
        return super().__getitem__(i)
