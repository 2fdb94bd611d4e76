"""Draw data, train LIT on it, evaluate, and draw the results.

    python tools/demo.py [CONFIG] [--out DIR] [--epochs N] [--fresh] [--goal 0.40]

The config's `default_scope` says what kind of task it is. Run again after an
interruption, it goes on from the last finished epoch; after a finished training, it
evaluates and draws again. It ends with an error where the model stays below the goal,
so that a script can rely on it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config

from mmlit.errors import UserError
from mmlit_tools.cli import command
from mmlit_tools.demo.detection import DETECTION
from mmlit_tools.demo.pictures import draw_comparisons, draw_history
from mmlit_tools.demo.records import (
    fingerprint,
    note_config,
    one_demo_in,
    plan_training,
    read_history,
    read_metrics,
    remove_run,
)
from mmlit_tools.demo.segmentation import SEGMENTATION
from mmlit_tools.demo.task import Task
from mmlit_tools.paths import ASSETS, OUTPUTS
from mmlit_tools.shapes.dataset import ensure_shapes

CONFIG = ASSETS / 'configs/detection/mask-rcnn_lit-ti_fpn_shapes.py'
TASKS = {'mmdet': DETECTION, 'mmseg': SEGMENTATION}
STEPS = 5


@command('demo.py')
def main(arguments: list[str] | None = None) -> None:
    """Run the demo that the command line asks for."""
    args = _parse(arguments)
    # A plain `kill` then stops the training as well, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('demo.py: told to stop'))
    started = time.monotonic()
    try:
        config = Config.fromfile(args.config)
        task = _task_of(config)
        goal = task.goal if args.goal is None else args.goal
        with one_demo_in(args.out):
            figures = run_demo(args, config, task, goal)
    except KeyboardInterrupt:
        raise UserError('interrupted; the same command resumes the demo') from None
    print(f'\nTotal time: {_spell(time.monotonic() - started)}')
    text = ' and '.join(f'{name} {value:.3f}' for name, value in figures.items())
    if min(figures.values()) < goal:
        raise UserError(f'{text}: below the goal of {goal:.2f}')
    print(f'{text}: the goal of {goal:.2f} is reached')


def run_demo(
    args: argparse.Namespace, config: Config, task: Task, goal: float
) -> dict[str, float]:
    """Run all steps; return the figures that the goal is for."""
    shapes = config.shapes
    epochs = args.epochs or config.train_cfg.max_epochs

    with _step(1, 'Device (seconds)'):
        sentence, environment = choose_device()
        print(sentence)
    with _step(2, f'Data: {shapes.train} + {shapes.val} drawn images (seconds)'):
        try:
            data = ensure_shapes(**shapes)
        except (ValueError, OSError) as error:
            raise UserError(error) from error
        print(f'The data is in {data}')
    with _step(3, f'Training: {epochs} epochs ({task.duration})'):
        checkpoint = train(args, config, epochs, environment)
    with _step(4, f'Evaluation on {shapes.val} images (under a minute)'):
        metrics = evaluate(args, task, checkpoint, environment)
    with _step(5, 'Pictures (seconds)'):
        figures = task.figures(metrics)
        title = f'{args.config.stem} after {epochs} epochs'
        scores = ', '.join(f'{name} {value:.3f}' for name, value in figures.items())
        pictures = args.out / 'predictions.png', args.out / 'curves.png'
        comparisons = task.read(data, args.out / task.results, 8)
        draw_comparisons(comparisons, f'{title}: {scores}', pictures[0])
        history = read_history(args.out, task.figures)
        draw_history(history, task.axis, goal, title, pictures[1])

    print(f'\nPredictions beside the ground truth: {pictures[0]}')
    print(f'Loss and figures over the epochs:    {pictures[1]}')
    for name, key in task.categories.items():
        if key in metrics:
            print(f'{name}: {metrics[key]:.3f}')
    return figures


def train(
    args: argparse.Namespace, config: Config, epochs: int, environment: dict[str, str]
) -> Path:
    """Train, or resume training, as far as needed; return the last checkpoint."""
    wanted = fingerprint(config, epochs, ASSETS)
    plan, checkpoint = plan_training(args.out, wanted, epochs)
    if args.fresh or plan == 'changed':
        why = 'as told' if args.fresh else 'the config is not that of the earlier run'
        print(f'Starting over in {args.out}: {why}')
        remove_run(args.out)
        plan = 'start'
    if plan == 'finished':
        print(f'Done earlier: {checkpoint} (--fresh trains again)')
        return checkpoint
    note_config(args.out, wanted)
    words = ['tools/train.py', args.config, '--check-data', '--work-dir', args.out]
    if plan == 'resume':
        print(f'Going on from {checkpoint}')
        words += ['--resume', checkpoint]
    if args.epochs is not None:
        interval = min(epochs, config.train_cfg.val_interval)
        words += ['--cfg-options', f'train_cfg.max_epochs={epochs}']
        words += [f'train_cfg.val_interval={interval}']
    _run_tool(words, environment)
    return args.out / f'epoch_{epochs}.pth'


def evaluate(
    args: argparse.Namespace, task: Task, checkpoint: Path, environment: dict[str, str]
) -> dict[str, float]:
    """Evaluate a checkpoint and write its predictions; return the metrics."""
    work_dir = args.out / 'test'
    shutil.rmtree(work_dir, ignore_errors=True)
    words = ['tools/test.py', args.config, checkpoint, '--work-dir', work_dir]
    words += ['--out', args.out / task.results]
    if task.test_options:
        words += ['--cfg-options', *task.test_options]
    _run_tool(words, environment)
    return read_metrics(work_dir)


def choose_device() -> tuple[str, dict[str, str]]:
    """Return a sentence about the device, and the environment variables to use it."""
    from mmcv.ops import get_compiling_cuda_version

    threads = f'the CPU, with {torch.get_num_threads()} threads'
    if not torch.cuda.is_available():
        return f'Computing on {threads} (torch sees no GPU)', {}
    built_for = get_compiling_cuda_version()
    if built_for == 'not available':
        why = 'there is a GPU, but the ops of this mmcv were built without CUDA'
        return f'Computing on {threads} ({why})', {'CUDA_VISIBLE_DEVICES': ''}
    name = torch.cuda.get_device_name(0)
    return f'Computing on the GPU {name} (mmcv ops built for CUDA {built_for})', {}


def _task_of(config: Config) -> Task:
    scope = config.get('default_scope')
    if scope not in TASKS or 'shapes' not in config:
        raise UserError(
            f'{config.filename} is no config for the demo, which needs default_scope '
            f'{" or ".join(TASKS)} (got {scope}) and shapes = dict(out=..., train=...)'
        )
    return TASKS[scope]


def _run_tool(words: list[str | Path], environment: dict[str, str]) -> None:
    script, *rest = map(str, words)
    # The child's output goes straight to the terminal: losses, ETA and AP as they come.
    done = subprocess.run(
        [sys.executable, str(ASSETS / script), *rest],
        env={**os.environ, 'PYTHONUNBUFFERED': '1', **environment},
        close_fds=False,  # A child that outlives us keeps the lock of the folder.
    )
    if done.returncode:
        raise UserError(
            f'{script} ended with status {done.returncode}; its last lines above say '
            'why. Once that is mended, the same command resumes from there'
        )


@contextlib.contextmanager
def _step(number: int, what: str) -> Iterator[None]:
    print(f'\n=== Step {number} of {STEPS}: {what}', flush=True)
    started = time.monotonic()
    yield
    print(f'=== done in {_spell(time.monotonic() - started)}', flush=True)


def _spell(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        'demo.py',
        description='Draw shapes, train LIT on them, evaluate, draw the results.',
    )
    parser.add_argument('config', nargs='?', type=Path, default=CONFIG)
    parser.add_argument(
        '--out', type=Path, help='work directory (default: demo/output/CONFIG)'
    )
    parser.add_argument('--epochs', type=int, help='another number than the config has')
    parser.add_argument(
        '--fresh', action='store_true', help='train anew, whatever is there already'
    )
    parser.add_argument(
        '--goal',
        type=float,
        help='what box and mask AP (default: 0.40) or mIoU (0.60) have to reach',
    )
    args = parser.parse_args(arguments)
    if args.epochs is not None and args.epochs < 1:
        parser.error(f'--epochs must be at least 1, got {args.epochs}')
    if args.goal is not None and not 0 <= args.goal <= 1:
        parser.error(f'--goal must be from 0 to 1, got {args.goal}')
    if args.out is None:
        # Runs of different length do not overwrite each other.
        suffix = '' if args.epochs is None else f'_{args.epochs}-epochs'
        args.out = OUTPUTS / 'demo' / 'output' / (args.config.stem + suffix)
    args.out = args.out.expanduser().resolve()
    return args
