"""What the tools that take a config share: config, data, runner.

They serve detection and segmentation: which of the two a config is for is its
`default_scope`, 'mmdet' or 'mmseg'.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from mmengine.config import Config, DictAction

# The extra of mmlit that installs each scope's package.
EXTRAS = {'mmdet': 'det', 'mmseg': 'seg'}


def stop(message: str) -> NoReturn:
    """Ends the program with one line instead of a traceback."""
    sys.exit(f'{Path(sys.argv[0]).name}: {message}')


class _Settings(DictAction):
    """KEY=VALUE pairs; what is none is a mistake on the command line."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: D102
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string}: {value!r} is not KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the config and the option that changes it, as mmdet's users know them."""
    parser.add_argument('config', help='config file')
    add_cfg_options(parser)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option that changes the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Settings,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for example '
        'train_cfg.max_epochs=2 model.backbone.init_cfg=None; write a list as '
        'key="[a,b]" without white space',
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing share, as mmdet's users know them."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: the one of the config, else '
        'work_dirs/<name of the config> in the current folder)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # torch's launchers give one spelling or the other, by their version.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def check_file(path: str, what: str) -> None:
    """Stops where `path` is neither a file nor an address such as https://..."""
    if '://' not in path and not Path(path).is_file():
        stop(f'{what} {path} does not exist (seen from {os.getcwd()})')


def check_least(name: str, value: int, least: int) -> None:
    """Raises ValueError where a number of the command line is too small."""
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')


def read_settings(args: argparse.Namespace) -> Config:
    """Reads the config with its settings from the command line."""
    check_file(args.config, 'config')
    # Before the bases are read: `mmlit::...` ones are known from here on.
    from mmlit.errors import spell_error

    try:
        config = Config.fromfile(args.config)
    except (KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        stop(f'config {args.config}: {spell_error(error)}')
    if args.cfg_options is not None:
        try:
            config.merge_from_dict(args.cfg_options)
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            given = ' '.join(f'{k}={v}' for k, v in args.cfg_options.items())
            stop(f'--cfg-options {given}: {spell_error(error)}')
    return config


def read_config(args: argparse.Namespace) -> Config:
    """Reads the config with its settings; registers its scope."""
    config = read_settings(args)
    import_scope(config)
    return config


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config for a Runner, with all of the command line's settings."""
    # mmengine finds the device of a process by this variable.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = read_config(args)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return config


def import_scope(config: Config) -> None:
    """Registers LIT and the modules of the config's scope.

    So a config without `custom_imports` works too, and a missing package is told
    before mmengine stumbles over the first name that it cannot find.
    """
    import mmlit  # noqa: F401

    scope = config.get('default_scope')
    if scope not in EXTRAS:
        return
    if find_spec(scope) is None:
        stop(
            f'the config is for {scope} (its default_scope), which is not installed: '
            f'pip install "mmlit[{EXTRAS[scope]}]"'
        )
    # Runner sets the scope itself.
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)


def make_data(config: Config) -> None:
    """Draws the data of a config with `shapes = dict(out=..., train=..., ...)`.

    Only where it is missing, and once, however many processes ask for it.
    """
    if config.get('shapes') is None:
        return
    from mmlit_tools.shapes.command import ensure_shapes

    try:
        ensure_shapes(**config.shapes.to_dict())
    except ValueError as error:
        stop(f'shapes={config.shapes.to_dict()} of the config: {error}')


def guard_pipelines(config: Config) -> None:
    """Has the config's pipelines name the file that they fail on.

    In training it is left out, in validation and test it ends the run.
    """
    head = (config.get('model') or {}).get('decode_head') or {}
    head = head[-1] if isinstance(head, (list, tuple)) else head
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader')
        for part in unwrap(loader['dataset']) if loader else ():
            pipeline = part.get('pipeline')
            if pipeline and pipeline[0].get('type') != 'PipelineGuard':
                skip = split == 'train'
                guard = dict(type='PipelineGuard', transforms=pipeline, skip=skip)
                # Evaluations leave such ids out by themselves.
                if skip and 'num_classes' in head:
                    guard['num_classes'] = head['num_classes']
                    guard['ignore_index'] = head.get('ignore_index', 255)
                part['pipeline'] = [guard]


def unwrap(dataset: dict) -> Iterator[dict]:
    """The configs of the data sets inside of wrappers such as RepeatDataset."""
    inner = dataset.get('datasets', dataset.get('dataset'))
    if inner is None:
        yield dataset
        return
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from unwrap(part)


def build_runner(config: Config):
    """Builds the config's Runner, or the class that `runner_type` names."""
    guard_pipelines(config)
    # mmengine's runner takes seconds to import; a mistake on the command line, none.
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    if config.launcher != 'none':
        from mmlit_tools.distributed import check_same_start, start_processes

        start_processes(config)
    build = RUNNERS.build if 'runner_type' in config else Runner.from_cfg
    runner = build(config)
    if config.launcher != 'none':
        check_same_start(config)
    return runner
