"""Test a checkpoint of a detector or segmentor with the metrics of its config.

    python tools/test.py CONFIG CHECKPOINT [--out FILE.pkl] [--show-dir DIR]

The options are those of mmdet's and mmseg's own `tools/test.py`, all but `--tta`.
"""

from __future__ import annotations

import argparse

from mmengine.config import Config

from mmlit.errors import UserError
from mmlit_tools.cli import add_config_options, add_runner_options, check_file, command
from mmlit_tools.configs import build_runner, draw_missing_shapes, load_config


@command('test.py')
def main(arguments: list[str] | None = None) -> None:
    """Test as the command line says."""
    args = parse_args(arguments)
    check_file(args.checkpoint, 'checkpoint')
    config = load_config(args)
    config.load_from = args.checkpoint
    config.resume = False
    if args.show or args.show_dir:
        draw_predictions(config, args)
    if args.out is not None:
        write_predictions(config, args.out)
    draw_missing_shapes(config)
    build_runner(config).test()


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'test.py', description='Test a detector or segmentor.'
    )
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        help='detection: a .pkl file to write the predictions to; segmentation: a '
        'folder for the predicted label maps',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir',
        help='folder for pictures of the predictions; in detection it lies inside '
        'the run, <work folder>/<time>/<this folder>',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show shows each'
    )
    add_runner_options(parser)
    return parser.parse_args(arguments)


def draw_predictions(config: Config, args: argparse.Namespace) -> None:
    """Switch on the scope's visualization hook."""
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(
            '--show and --show-dir need a visualization hook in the config: '
            "default_hooks.visualization = dict(type='DetVisualizationHook') or "
            'SegVisualizationHook'
        )
    hook.draw = True
    if config.get('default_scope') == 'mmseg':
        hook.interval = 1  # Its own default is every 50th image.
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir and config.get('default_scope') == 'mmseg':
        config.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook.test_out_dir = args.show_dir


def write_predictions(config: Config, out: str) -> None:
    """Add what writes the predictions in the config's scope."""
    evaluators = config.test_evaluator
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    if config.get('default_scope') == 'mmseg':
        evaluators[0].output_dir = out
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out must end in .pkl or .pickle, got {out}')
    detection = config.get('default_scope') == 'mmdet'
    dump = dict(
        type='DumpDetResults' if detection else 'DumpResults', out_file_path=out
    )
    config.test_evaluator = [*evaluators, dump]
