"""Train for two epochs with everything that mmengine writes into checkpoints.

AMP with its loss scale, EMA, OneCycleLR, the message hub's curves, numpy scalars and
arrays among the metrics. No mmcv, no mmdet, no LIT.
"""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner


class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, *inputs, mode):
        out = self.norm(self.linear(torch.stack(inputs)))
        return {'loss': out.square().mean()} if mode == 'loss' else [out]


class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0.5)

    def compute_metrics(self, results):
        numbers = dict(score=np.float64(np.mean(results)), count=np.int64(3))
        return {**numbers, 'curve': np.arange(4, dtype=np.float32)}


def train(work_dir, **options):
    """Train to the end; returns the Runner."""
    data = [torch.tensor([i, -i], dtype=torch.float32) for i in range(4)]
    loader = dict(dataset=data, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['batch_size'] = 2
    hook = dict(type='CheckpointHook', interval=1, save_best='score', rule='greater')
    build = partial(
        Runner,
        model=ToyModel(),
        work_dir=str(work_dir),
        experiment_name=str(work_dir).replace('/', '_'),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            **dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='bfloat16'),
            optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1),
            paramwise_cfg=dict(norm_decay_mult=0.0),
        ),
        param_scheduler=[
            dict(type='OneCycleLR', eta_max=0.1, total_steps=4, by_epoch=False),
            dict(type='MultiStepLR', milestones=[1], by_epoch=True),
        ],
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=[ToyMetric()],
        custom_hooks=[dict(type='EMAHook')],
        default_hooks=dict(checkpoint=hook, logger=dict(type='LoggerHook', interval=1)),
        **options,
    )
    # AmpOptimWrapper wants a GPU; its loss scaler has a CPU version.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        scaler = partial(torch.amp.GradScaler, 'cpu')
        patch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
        toy = build()
        toy.train()
    return toy
