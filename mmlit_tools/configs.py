"""Read configs and prepare them for a Runner.

They are for detection, segmentation or something else by their `default_scope`.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner

from mmlit.checkpoints.http_loader import load_from_local
from mmlit.errors import UserError, spell_error
from mmlit_tools.cli import check_file
from mmlit_tools.distributed import check_same_start, start_processes

#: The scopes that the tools know, each with the extra of mmlit that installs it.
SCOPES = {'mmdet': 'det', 'mmseg': 'seg'}


def read_settings(args: argparse.Namespace) -> Config:
    """Read the config with its settings from the command line."""
    check_file(args.config, 'config')
    try:
        config = Config.fromfile(args.config)
    except (KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(f'config {args.config}: {spell_error(error)}') from error
    if args.cfg_options is not None:
        try:
            config.merge_from_dict(args.cfg_options)
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            given = ' '.join(f'{k}={v}' for k, v in args.cfg_options.items())
            raise UserError(f'--cfg-options {given}: {spell_error(error)}') from error
    return config


def read_config(args: argparse.Namespace) -> Config:
    """Read the config with its settings; register the modules of its scope."""
    config = read_settings(args)
    import_scope(config)
    return config


def load_config(args: argparse.Namespace) -> Config:
    """Read the config for a Runner, with all settings of the command line."""
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
    """Register the modules of the config's scope, if the tools know it.

    A config without `custom_imports` then works too, and a missing package is named
    before mmengine fails at the first class that it cannot find.
    """
    scope = config.get('default_scope')
    if scope not in SCOPES:
        return
    if find_spec(scope) is None:
        raise UserError(
            f'the config is for {scope} (its default_scope), which is not installed: '
            f'pip install "mmlit[{SCOPES[scope]}]"'
        )
    # Runner sets the scope itself.
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)


def known_scope(config: Config) -> str:
    """Return the scope of a config with a `model.backbone`.

    Raises:
        UserError: The tools do not know it, or there is no backbone.
    """
    scope = config.get('default_scope')
    if scope not in SCOPES or 'backbone' not in (config.get('model') or {}):
        raise UserError(
            f'{config.filename} must have a model.backbone and a default_scope out of '
            f'{", ".join(SCOPES)}, and has default_scope={scope!r}'
        )
    return scope


def draw_missing_shapes(config: Config) -> None:
    """Draw the data of a config with `shapes = dict(out=..., train=..., ...)`.

    Only where it is missing, and once, however many processes ask for it.
    """
    if config.get('shapes') is None:
        return
    from mmlit_tools.shapes.dataset import ensure_shapes

    try:
        ensure_shapes(**config.shapes.to_dict())
    except ValueError as error:
        raise UserError(
            f'shapes={config.shapes.to_dict()} of the config: {error}'
        ) from error


def test_dataset(config: Config) -> ConfigDict:
    """Return a copy of the dataset that images are read like in testing.

    Wrappers are taken off; its `pipeline` is not empty.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        loader = config.get(name)
        for dataset in unwrap(loader['dataset']) if loader else ():
            if dataset.get('pipeline'):
                return copy.deepcopy(dataset)
    raise UserError('the config has no test_dataloader.dataset.pipeline')


def unwrap(dataset: dict) -> Iterator[dict]:
    """Yield the configs of the datasets inside of wrappers such as RepeatDataset."""
    inner = dataset.get('datasets', dataset.get('dataset'))
    if inner is None:
        yield dataset
        return
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from unwrap(part)


def guard_pipelines(config: Config) -> None:
    """Wrap the pipelines so that failures name the file.

    In training it is left out; in validation and testing it ends the run.
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
                # Evaluation leaves such ids out itself.
                if skip and 'num_classes' in head:
                    guard['num_classes'] = head['num_classes']
                    guard['ignore_index'] = head.get('ignore_index', 255)
                part['pipeline'] = [guard]


def build_runner(config: Config) -> Runner:
    """Build the config's Runner, or the class that `runner_type` names."""
    # This process is the command's own: errors on checkpoints name the file.
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    guard_pipelines(config)
    if config.launcher != 'none':
        start_processes(config)
    build = RUNNERS.build if 'runner_type' in config else Runner.from_cfg
    runner = build(config)
    if config.launcher != 'none':
        check_same_start(config)
    return runner
