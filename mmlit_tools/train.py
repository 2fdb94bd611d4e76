#!/usr/bin/env python3
"""Trains a detector or segmentor from a config.

    python tools/train.py configs/detection/mask-rcnn_lit-ti_fpn_1x_coco.py

The options are those of mmdet's and mmseg's own `tools/train.py`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmengine.config import Config
from mmengine.device import get_device

from mmlit_tools.configs import (
    add_common_options,
    add_config_options,
    build_runner,
    check_file,
    load_config,
    make_data,
    stop,
)
from mmlit_tools.data.validation import check_validation
from mmlit_tools.resume import find_whole_checkpoint

if TYPE_CHECKING:
    from mmengine.runner import Runner  # takes seconds to import


def main() -> None:
    """Trains what the command line asks for."""
    args = parse_args()
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
    make_data(config)
    if args.check_data:
        check_data(config)
    check_validation(config)
    train(build_runner(config))


def train(runner: Runner) -> None:
    """Trains; what its user can mend ends with one line instead of a traceback."""
    from mmlit.errors import (
        BrokenCheckpointError,
        BrokenSampleError,
        CheckpointWriteError,
        NonFiniteLossError,
        UnsafeCheckpointError,
    )

    try:
        runner.train()
    except BrokenSampleError as error:
        # From a data worker it comes with a traceback in front.
        stop(str(error).strip().splitlines()[-1].split('BrokenSampleError: ')[-1])
    except (
        BrokenCheckpointError,
        CheckpointWriteError,
        NonFiniteLossError,
        UnsafeCheckpointError,
    ) as error:
        stop(str(error))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Train a detector or segmentor.')
    add_config_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or, without a path, from the latest whole '
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
    parser.add_argument(
        '--check-data',
        action='store_true',
        help='check the training and validation data first, and stop at errors: see '
        'tools/check_data.py',
    )
    add_common_options(parser)
    return parser.parse_args()


def check_data(config: Config) -> None:
    """Reads the data through, and stops at errors."""
    if config.launcher != 'none':
        stop(
            '--check-data would run in every process of a distributed training: run '
            'tools/check_data.py CONFIG before it'
        )
    from mmlit_tools.data.check import stop_at_errors

    stop_at_errors(config)


def use_amp(config: Config, asked: bool) -> None:
    """Makes the config's optimizer wrapper one of mixed precision that runs here.

    On the CPU a config's own AmpOptimWrapper is replaced too: mmengine refuses it.
    """
    wrapper = config.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if not asked and kind != 'AmpOptimWrapper':
        return
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        stop(
            f'--amp replaces optim_wrapper.type OptimWrapper, and the config has {kind}'
        )
    if get_device() == 'cpu':
        from mmlit_tools import cpu_amp  # noqa: F401

        print('Mixed precision on the CPU: bfloat16 autocast, without loss scaling')
        wrapper.type = 'CpuAmpOptimWrapper'
        for name in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(name, None)
    elif kind == 'OptimWrapper':  # else the config has chosen its loss scale already
        wrapper.type = 'AmpOptimWrapper'
        wrapper.loss_scale = 'dynamic'


def resume(config: Config, checkpoint: str) -> None:
    """Has the run go on from a checkpoint: 'auto' is the latest whole one.

    Where there is none yet, the config stays as it is: mmengine would drop its
    `load_from` too, and train from scratch.
    """
    if checkpoint != 'auto':
        config.resume, config.load_from = True, checkpoint
        return
    checkpoint = find_whole_checkpoint(config)
    if checkpoint is None:
        print(f'No checkpoint to resume in {config.work_dir}: starting anew')
    else:
        config.resume, config.load_from = True, checkpoint


def scale_lr(config: Config) -> None:
    """Switches on mmengine's scaling of the learning rate."""
    if config.get('auto_scale_lr', {}).get('base_batch_size') is None:
        stop(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=N) in the '
            'config, N being the total batch size that its learning rate is meant for'
        )
    config.auto_scale_lr.enable = True


if __name__ == '__main__':
    main()
