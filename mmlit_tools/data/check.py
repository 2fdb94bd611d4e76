#!/usr/bin/env python3
"""Checks the data of a config before a training stumbles over it.

    python tools/check_data.py CONFIG [--cfg-options KEY=VALUE ...] [--workers N]

Reads the training and validation data that the config names: annotation files, whole
images and masks, loaded as the pipeline does; nothing else of it is run. Ends with
status 1 where there are errors. `tools/train.py --check-data` does the same before it
trains. `--quick` reads no more of images than their headers.

An error cannot be right: training would crash, or learn something other than what the
files mean. Warnings are what sound data sets have, too: COCO has boxes without an area
and boxes that reach over the edge by a rounding, classes may lack instances.
"""

from __future__ import annotations

import argparse

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmlit_tools.data.coco import check_coco
from mmlit_tools.data.config import check_config
from mmlit_tools.data.findings import SHOWN, WORKERS, Findings
from mmlit_tools.data.images import ImageCheck, steps
from mmlit_tools.data.masks import check_masks
from mmlit_tools.configs import add_config_options, read_config, stop, unwrap

LOADERS = dict(train_dataloader='training data', val_dataloader='validation data')


def main() -> None:
    """Checks what the command line asks for."""
    args = parse_args()
    stop_at_errors(read_config(args), args.workers, args.show, args.quick)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Check the data of a config.')
    add_config_options(parser)
    parser.add_argument(
        '--workers',
        type=positive,
        default=WORKERS,
        help='threads that read files (default: %(default)s)',
    )
    parser.add_argument(
        '--show',
        type=positive,
        default=SHOWN,
        metavar='N',
        help='findings of a kind to name; the rest is counted (default: %(default)s)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='read headers of images alone: one that is cut off is not found',
    )
    return parser.parse_args()


def stop_at_errors(
    config: Config, workers: int = WORKERS, shown: int = SHOWN, quick: bool = False
) -> None:
    """Prints what is found in the config's data, and ends the program at errors."""
    reports = check_data(config, workers, shown, quick)
    for report in reports:
        print('\n'.join(report.lines()), flush=True)
    errors = sum(len(report.errors) for report in reports)
    if errors:
        stop(f'{errors} kind{"s" * (errors > 1)} of errors in the data, see above')


def check_data(
    config: Config, workers: int = WORKERS, shown: int = SHOWN, quick: bool = False
) -> list[Findings]:
    """Checks the training and validation data of a config.

    Args:
        config: Resolved, its scope's modules registered (`common.read_config`).
        workers: Threads that read files.
        shown: How many findings of a kind are named; the rest is counted.
        quick: Read headers of images alone.

    Returns:
        The findings of each data set, those inside of wrappers each on its own.
    """
    reports = []
    for key, title in LOADERS.items():
        loader = config.get(key)
        if not loader:
            continue
        parts = list(unwrap(loader['dataset']))
        for number, part in enumerate(parts, start=1):
            of = f' {number} of {len(parts)}' if len(parts) > 1 else ''
            findings = Findings(f'{title}{of} ({_spell_type(part)})', shown)
            training = key == 'train_dataloader'
            _check_part(part, config, findings, workers, quick, training)
            reports.append(findings)
    if not reports:
        stop(f'the config has neither {" nor ".join(LOADERS)}: nothing to check')
    return reports


def _check_part(
    part: dict,
    config: Config,
    findings: Findings,
    workers: int,
    quick: bool,
    training: bool,
) -> None:
    """Builds one data set and runs the checks that fit its type."""
    try:
        dataset = _build(part, config.get('default_scope'))
        look = ImageCheck(part, quick)
    except Exception as error:
        # A data set's constructor may raise anything; mmdet and mmseg mostly say why.
        said = str(error) or f'no more is said; {_spell_place(part)}'
        findings.error(f'it cannot be built: {type(error).__name__}: {said}')
        return
    check_config(dataset, part, config, findings, training)
    backend = getattr(dataset, 'backend_args', None) or {}
    kind = _known_kind(dataset)
    if kind and backend.get('backend', 'local') == 'local':
        if kind == 'masks':
            check_masks(dataset, look, findings, workers)
        else:
            check_coco(dataset, _loads_masks(part), look, findings, workers)
        return
    where = f' behind {backend}' if kind else ''
    findings.warn(
        f'these checks do not know {_spell_type(part)}{where}: checked is only that it '
        'can be built and is not empty'
    )
    try:
        if isinstance(dataset, BaseDataset):
            dataset.full_init()
        count = len(dataset)
    except Exception as error:
        findings.error(f'it cannot be loaded: {type(error).__name__}: {error}')
        return
    if count == 0:
        findings.error('the split is empty')


def _build(part: dict, scope: str | None):
    """Builds a data set, where that can be without its pipeline and its list.

    Not serialized either: mmengine cannot do that with the list of an empty split.
    """
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = part['type']
        if isinstance(kind, str):
            kind = registry.get(kind)
        if kind is not None and issubclass(kind, BaseDataset):
            part = dict(part, pipeline=[], lazy_init=True, serialize_data=False)
        return registry.build(part)


def _known_kind(dataset) -> str:
    """Which of the checks fits a data set: 'masks', 'coco', or '' for none.

    A class with its own way of reading the json is not COCO any more.
    """
    if isinstance(dataset, _class_of('mmseg', 'BaseSegDataset')):
        return 'masks'
    coco = _class_of('mmdet', 'CocoDataset')
    own = [vars(kind) for kind in type(dataset).__mro__ if kind not in coco.__mro__]
    if isinstance(dataset, coco) and not any(
        name in members for members in own for name in ('load_data_list', 'COCOAPI')
    ):
        return 'coco'
    return ''


def _class_of(package: str, name: str) -> type:
    """A class of a package's registry; one that has no objects where it is absent."""
    with DATASETS.switch_scope_and_registry(package) as registry:
        return registry.get(name) or type(name, (), {})


def _loads_masks(part: dict) -> bool:
    return any(s.get('with_mask', False) for s in steps(part, 'LoadAnnotations'))


def _spell_type(part: dict) -> str:
    kind = part.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', repr(kind))


def _spell_place(part: dict) -> str:
    """Where a data set's config has its files."""
    keys = ('data_root', 'data_prefix', 'ann_file')
    return ', '.join(f'{key}={part[key]!r}' for key in keys if key in part)


def positive(text: str) -> int:
    """A whole number of at least 1, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} must be at least 1')
    return value


if __name__ == '__main__':
    main()
