"""A two-epoch training with everything that mmengine writes into checkpoints.

    python tests/toy_training.py train|resume|load WORK_DIR [--allow]

AMP with its loss scale, EMA, OneCycleLR, the message hub's curves, numpy scalars and
arrays among the metrics. `resume` continues from epoch 1, `load` reads epoch 2;
--allow calls `allow_mmengine_checkpoints` first. No mmcv, no mmdet, no mmlit.LIT.
"""

import argparse
import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parents[2]


def allow():
    """Calls the function, twice, without `import mmlit`, which calls it itself."""
    path = ROOT / 'mmlit' / 'checkpoints' / 'allowlist.py'
    spec = importlib.util.spec_from_file_location('mmlit_checkpoint', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.allow_mmengine_checkpoints()
    module.allow_mmengine_checkpoints()


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
        return {
            'score': np.float64(np.mean(results)),
            'count': np.int64(3),
            'curve': np.arange(4, dtype=np.float32),
        }


def use_amp_on_cpu():
    """mmengine's AmpOptimWrapper wants a GPU; its loss scaler has a CPU version."""
    amp_optimizer_wrapper.is_cuda_available = lambda: True
    amp_optimizer_wrapper.GradScaler = partial(torch.amp.GradScaler, 'cpu')


def runner(work_dir, **options):
    use_amp_on_cpu()
    data = [torch.tensor([i, -i], dtype=torch.float32) for i in range(4)]
    loader = dict(
        batch_size=2, dataset=data, sampler=dict(type='DefaultSampler', shuffle=False)
    )
    return Runner(
        model=ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            type='AmpOptimWrapper',
            loss_scale='dynamic',
            dtype='bfloat16',
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
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='score', rule='greater'
            ),
            logger=dict(type='LoggerHook', interval=1),
        ),
        **options,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['train', 'resume', 'load'])
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('--allow', action='store_true')
    args = parser.parse_args()
    if args.allow:
        allow()
    if args.what == 'load':
        checkpoint = torch.load(args.work_dir / 'epoch_2.pth', weights_only=True)
        curve = checkpoint['message_hub']['log_scalars']['train/loss']
        print('loaded', type(curve).__name__, curve.mean(), len(curve.data[0]))
        return
    options = {}
    if args.what == 'resume':
        options = dict(load_from=str(args.work_dir / 'epoch_1.pth'), resume=True)
    toy = runner(args.work_dir, **options)
    toy.train()
    curve = toy.message_hub.get_scalar('train/loss').data[0]
    scale = toy.optim_wrapper.loss_scaler.get_scale()
    print('done', toy.epoch, toy.iter, len(curve), scale)


if __name__ == '__main__':
    main()
