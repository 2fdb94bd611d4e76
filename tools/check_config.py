"""Checks what a config says of one data set twice: in the model, in the pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config

from check_findings import Findings
from check_images import steps


def check_config(dataset, part: dict, config: Config, findings: Findings) -> None:
    """Compares a data set with the model and with its own pipeline.

    Args:
        dataset: Built, its list not needed.
        part: Its config, which has the pipeline.
        config: The whole config, for its model.
        findings: Takes the findings.
    """
    _check_heads(dataset, config, findings)
    _check_zero_label(dataset, part, findings)
    _check_crop(part, config, findings)


def _check_heads(dataset, config: Config, findings: Findings) -> None:
    """Has each head of the model as many outputs as the data set has classes?"""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if classes is None:
        return
    if isinstance(classes, str):
        findings.error(
            f"metainfo['classes'] is the text {classes!r}, of which each letter would "
            f'be a class: a single class is written with a comma, ({classes!r},)'
        )
        return
    for path, count in _class_counts(config.get('model') or {}, 'model'):
        said = f'{path}={count}, and the data set has {len(classes)} classes'
        if count < len(classes):
            findings.error(f'{said}: its labels would be out of bounds')
        elif count > len(classes):
            findings.warn(f'{said} (metainfo)')


def _class_counts(node, path: str) -> Iterator[tuple[str, int]]:
    """The `num_classes` of all heads inside of a model's config."""
    if isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from _class_counts(child, f'{path}[{number}]')
    elif isinstance(node, dict):
        for key, child in node.items():
            if key == 'num_classes' and 'head' in path and isinstance(child, int):
                yield f'{path}.num_classes', child
            else:
                yield from _class_counts(child, f'{path}.{key}')


def _check_zero_label(dataset, part: dict, findings: Findings) -> None:
    """Do data set and pipeline agree on what id 0 means? mmseg asks at image one."""
    wanted = getattr(dataset, 'reduce_zero_label', None)
    for step in steps(part, 'LoadAnnotations'):
        said = step.get('reduce_zero_label')
        if None not in (said, wanted) and bool(said) != bool(wanted):
            findings.error(
                f'LoadAnnotations of the pipeline has reduce_zero_label={said}, and '
                f'the data set {wanted}: say it in the data set, and leave it out there'
            )


def _check_crop(part: dict, config: Config, findings: Findings) -> None:
    """Is the size that mmseg pads training images to the one they are cropped to?"""
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
