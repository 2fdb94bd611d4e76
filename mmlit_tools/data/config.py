"""Cross-check settings that a config repeats, such as num_classes."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config

from mmlit_tools.data.findings import Findings
from mmlit_tools.data.images import steps

IGNORED = 255  # the default of mmseg's heads, metric and padding


def check_config(
    dataset, part: dict, config: Config, findings: Findings, training: bool
) -> None:
    """Compare a dataset with the model, the metric and its own pipeline.

    Args:
        dataset: Built, its list not needed.
        part: Its config, which has the pipeline.
        config: The whole config, for its model and metric.
        findings: Where to note them.
        training: Whether the model is trained on it; else it is evaluated on it.
    """
    _check_heads(dataset, config, findings)
    _check_ignored(dataset, config, findings, training)
    _check_zero_label(dataset, part, findings)
    _check_crop(part, config, findings)


def _check_heads(dataset, config: Config, findings: Findings) -> None:
    """Check that each head has as many outputs as the dataset has classes."""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes is None:
        return
    if isinstance(classes, str):
        findings.error(
            f"metainfo['classes'] is the text {classes!r}, of which each letter would "
            f'be a class: a single class is written with a comma, ({classes!r},)'
        )
        return
    for path, head in _heads(config.get('model') or {}, 'model'):
        count = head['num_classes']
        said = f'{path}.num_classes={count}, and the dataset has {len(classes)} classes'
        if count < len(classes):
            findings.error(f'{said}: its labels would be out of bounds')
        elif count > len(classes):
            findings.warn(f'{said} (metainfo)')


def _heads(node, path: str) -> Iterator[tuple[str, dict]]:
    """Yield all heads in a model's config, with their paths."""
    if isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from _heads(child, f'{path}[{number}]')
    elif isinstance(node, dict):
        if 'head' in path and isinstance(node.get('num_classes'), int):
            yield path, node
        for key, child in node.items():
            yield from _heads(child, f'{path}.{key}')


def _check_ignored(dataset, config: Config, findings: Findings, training: bool) -> None:
    """Check that loss, padding and metric ignore the id that the dataset ignores.

    mmseg's datasets do not hand theirs on: each place needs its own.
    """
    wanted = getattr(dataset, 'ignore_index', None)
    ignored = _ignored_in_training(config) if training else _ignored_by_metric(config)
    for said, index in ignored if wanted is not None else ():
        # `None`: the head's loss ignores nothing by id, as its config wants.
        if index not in (None, wanted):
            findings.error(
                f'{said}={index}, and the dataset has ignore_index={wanted}: mmseg '
                'does not hand that on, so say the same in both'
            )


def _ignored_in_training(config: Config) -> Iterator[tuple[str, int | None]]:
    model = config.get('model') or {}
    for path, head in _heads(model, 'model'):
        yield f'{path}.ignore_index', head.get('ignore_index', IGNORED)
    if preprocessor := model.get('data_preprocessor'):
        padding = preprocessor.get('seg_pad_val', IGNORED)
        yield 'model.data_preprocessor.seg_pad_val', padding


def _ignored_by_metric(config: Config) -> Iterator[tuple[str, int | None]]:
    metrics = config.get('val_evaluator') or ()
    for metric in [metrics] if isinstance(metrics, dict) else metrics:
        if metric.get('type') == 'IoUMetric':
            yield 'val_evaluator.ignore_index', metric.get('ignore_index', IGNORED)


def _check_zero_label(dataset, part: dict, findings: Findings) -> None:
    """Check that dataset and pipeline agree on id 0, before mmseg's first sample."""
    wanted = getattr(dataset, 'reduce_zero_label', None)
    for step in steps(part, 'LoadAnnotations'):
        said = step.get('reduce_zero_label')
        if None not in (said, wanted) and bool(said) != bool(wanted):
            findings.error(
                f'LoadAnnotations of the pipeline has reduce_zero_label={said}, and '
                f'the dataset {wanted}: say it in the dataset, and leave it out there'
            )


def _check_crop(part: dict, config: Config, findings: Findings) -> None:
    """Check that mmseg pads training images to the size that they are cropped to."""
    model = config.get('model') or {}
    size = (model.get('data_preprocessor') or {}).get('size')
    for step in steps(part, 'RandomCrop'):
        crop = step.get('crop_size')
        if size and crop and _pair(crop) != _pair(size):
            findings.warn(
                f'RandomCrop of the pipeline has crop_size={crop}, and '
                f'model.data_preprocessor.size={size}: images are padded to that'
            )


def _pair(size) -> tuple:
    return (size, size) if isinstance(size, int) else tuple(size)
