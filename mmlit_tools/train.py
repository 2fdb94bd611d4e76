"""Train a detector or segmentor from a config.

    python tools/train.py configs/detection/mask-rcnn_lit-ti_fpn_1x_coco.py

The options are those of mmdet's and mmseg's own `tools/train.py`, and two that check
the data first.
"""

from __future__ import annotations

import argparse

from mmengine.config import Config
from mmengine.device import get_device

from mmlit.errors import UserError
from mmlit_tools.cli import add_config_options, add_runner_options, check_file, command
from mmlit_tools.configs import build_runner, draw_missing_shapes, load_config
from mmlit_tools.resume import find_whole_checkpoint


@command('train.py')
def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(arguments)
    if args.resume not in (None, 'auto'):
        check_file(args.resume, 'the checkpoint to resume from,')
    config = load_config(args)
    use_amp(config, asked=args.amp)
    if args.auto_scale_lr:
        scale_lr(config)
    if args.resume is not None:
        resume(config, args.resume)
    if config.get('load_from') is not None:
        check_file(config.load_from, 'the checkpoint load_from of the config,')
    draw_missing_shapes(config)
    check_data(config, args)
    build_runner(config).train()


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'train.py', description='Train a detector or segmentor.'
    )
    add_config_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or, without a path, from the latest whole '
        'one of the work folder',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision: on a GPU with dynamic loss scaling, on the CPU '
        'in bfloat16',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size over '
        'auto_scale_lr.base_batch_size of the config',
    )
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument(
        '--check-data',
        action='store_true',
        help='check the training and validation data first, and stop at errors: see '
        'tools/check_data.py',
    )
    checks.add_argument(
        '--check-val',
        action='store_true',
        help='check the validation data alone first: an evaluation would stop at a '
        'broken image after hours of training',
    )
    add_runner_options(parser)
    return parser.parse_args(arguments)


def check_data(config: Config, args: argparse.Namespace) -> None:
    """Check the data as far as asked for; raise UserError at faults."""
    if not (args.check_data or args.check_val):
        return
    if config.launcher != 'none':
        option = '--check-data' if args.check_data else '--check-val'
        raise UserError(
            f'{option} would run in every process of a distributed training: run '
            'tools/check_data.py CONFIG before it'
        )
    from mmlit_tools.data.check import LOADERS, stop_at_errors

    stop_at_errors(config, list(LOADERS) if args.check_data else ['val_dataloader'])


def use_amp(config: Config, asked: bool) -> None:
    """Set an optimizer wrapper of mixed precision that runs on this device.

    On the CPU it also replaces a config's own AmpOptimWrapper, which refuses to run.
    """
    wrapper = config.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if not asked and kind != 'AmpOptimWrapper':
        return
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp replaces optim_wrapper.type OptimWrapper, and the config has {kind}'
        )
    if get_device() == 'cpu':
        from mmlit_tools import cpu_amp  # noqa: F401

        print('Mixed precision on the CPU: bfloat16 autocast, without loss scaling')
        wrapper.type = 'CpuAmpOptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
    elif kind == 'OptimWrapper':  # The other kind has its own loss scale.
        wrapper.type = 'AmpOptimWrapper'
        wrapper.loss_scale = 'dynamic'


def resume(config: Config, checkpoint: str) -> None:
    """Set the checkpoint to resume from; 'auto' is the latest whole one.

    If there is none yet, the config stays as it is: mmengine would drop its
    `load_from` too, and train from scratch.
    """
    if checkpoint == 'auto':
        checkpoint = find_whole_checkpoint(config)
        if checkpoint is None:
            print(f'No checkpoint to resume in {config.work_dir}: starting anew')
            return
    config.resume, config.load_from = True, checkpoint


def scale_lr(config: Config) -> None:
    """Switch on mmengine's scaling of the learning rate."""
    if config.get('auto_scale_lr', {}).get('base_batch_size') is None:
        raise UserError(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=N) in the '
            'config, N being the total batch size that its learning rate is meant for'
        )
    config.auto_scale_lr.enable = True
