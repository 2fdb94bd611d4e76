"""Check the training and validation data of a config."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS

from mmlit.errors import UserError, spell_error
from mmlit_tools.configs import unwrap
from mmlit_tools.data.coco import check_coco
from mmlit_tools.data.config import check_config
from mmlit_tools.data.findings import SHOWN, WORKERS, Findings, look_at_all
from mmlit_tools.data.images import ImageCheck, loading_steps, steps
from mmlit_tools.data.segmentation import check_masks

LOADERS = dict(train_dataloader='training data', val_dataloader='validation data')


def stop_at_errors(
    config: Config, loaders: Sequence[str] = tuple(LOADERS), **options: int
) -> None:
    """Print the findings in the config's data, see `check_data`.

    Raises:
        UserError: There are errors among them.
    """
    reports = check_data(config, loaders, **options)
    for report in reports:
        print('\n'.join(report.lines()), flush=True)
    errors = sum(len(report.errors) for report in reports)
    if errors:
        kinds = f'{errors} kind{"s" * (errors > 1)}'
        raise UserError(f'{kinds} of errors in the data, see above')


def check_data(
    config: Config,
    loaders: Sequence[str] = tuple(LOADERS),
    workers: int = WORKERS,
    shown: int = SHOWN,
    quick: bool = False,
) -> list[Findings]:
    """Check the training and validation data of a config.

    Args:
        config: Resolved, its scope's modules registered (`configs.read_config`).
        loaders: The dataloaders to check, keys of `LOADERS`.
        workers: Threads that read files.
        shown: How many findings of a kind are named; the rest is counted.
        quick: Read headers of images alone.

    Returns:
        The findings of each dataset, also of each inside a wrapper.
    """
    reports = []
    for key in loaders:
        loader, title = config.get(key), LOADERS[key]
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
        raise UserError(f'the config has no {" or ".join(loaders)}: nothing to check')
    return reports


def _check_part(
    part: dict,
    config: Config,
    findings: Findings,
    workers: int,
    quick: bool,
    training: bool,
) -> None:
    """Build one dataset and run the checks that fit its type."""
    scope = config.get('default_scope')
    try:
        dataset = _build(part, scope)
        look = ImageCheck(part, quick)
    except Exception as error:
        # A dataset's constructor may raise anything; mmdet and mmseg mostly say why.
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
        'can be built, is not empty, and that its samples can be loaded'
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
    elif isinstance(dataset, BaseDataset) and not quick:
        _check_samples(dataset, part, scope, findings, workers)


def _check_samples(
    dataset: BaseDataset, part: dict, scope: str, findings: Findings, workers: int
) -> None:
    """Run the loading steps of the pipeline on each sample."""
    with DATASETS.switch_scope_and_registry(scope):
        load = Compose(loading_steps(part))
    findings.extent = f'{len(dataset)} samples'

    def look(index: int) -> str:
        sample = dataset.get_data_info(index)
        names = [sample.get('img_path'), sample.get('seg_map_path')]
        try:
            load(sample)
        except Exception as error:  # A transform may raise anything.
            where = ' with the mask '.join(filter(None, names)) or f'sample {index}'
            return f'{where}: {spell_error(error)}'
        return ''

    for _, fault in look_at_all(look, range(len(dataset)), 'samples', workers):
        if fault:
            findings.error('sample cannot be loaded', fault)


def _build(part: dict, scope: str | None):
    """Build a dataset, where possible without its pipeline and its list.

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
    """Return which of the checks fits a dataset: 'masks', 'coco', or '' for none.

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
    """Return a class of a package's registry; one without objects where it is absent."""
    with DATASETS.switch_scope_and_registry(package) as registry:
        return registry.get(name) or type(name, (), {})


def _loads_masks(part: dict) -> bool:
    return any(s.get('with_mask', False) for s in steps(part, 'LoadAnnotations'))


def _spell_type(part: dict) -> str:
    kind = part.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', repr(kind))


def _spell_place(part: dict) -> str:
    """Spell where a dataset's config has its files."""
    keys = ('data_root', 'data_prefix', 'ann_file')
    return ', '.join(f'{key}={part[key]!r}' for key in keys if key in part)
