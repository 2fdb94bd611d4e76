"""What detection and segmentation share: weights, names of classes, reading images.

mmdet's and mmseg's inferencers load what fits and log the rest; a model with parts left
at random would draw pictures all the same. Here all of it must come from the file.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS

from mmlit_tools.configs import unwrap
from mmlit_tools.infer.sources import UnreadableError


class ModelError(ValueError):
    """The config or the checkpoint does not do; the text says why."""


def prepare(config: Config, visualizer: str) -> Config:
    """A copy of a config that the inferencers can take.

    Raises:
        ModelError: It has no test pipeline.
    """
    config = copy.deepcopy(config)
    loader = config.get('test_dataloader') or {}
    if 'dataset' in loader:
        # Only its pipeline and its classes are of interest, not what wraps it.
        loader.dataset = next(unwrap(loader.dataset))
    if not loader.get('dataset', {}).get('pipeline'):
        raise ModelError('the config has no test_dataloader.dataset.pipeline')
    settings = config.get('visualizer') or dict(type=visualizer)
    # Pictures go to --out-dir alone, not to Weights & Biases, say.
    config.visualizer = dict(settings, vis_backends=[], save_dir=None)
    return config


def load_weights(model: torch.nn.Module, checkpoint: dict, config: Config) -> None:
    """Loads a checkpoint whole; notes names and colours of the classes in the model.

    Raises:
        ModelError: Weights are missing or of other shapes, or the names do not fit.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    known = OrderedDict((re.sub(r'^module\.', '', k), v) for k, v in weights.items())
    known._metadata = getattr(weights, '_metadata', OrderedDict())
    try:
        missing, unknown = model.load_state_dict(known, strict=False)
    except RuntimeError as error:
        # torch lists every tensor of another shape.
        raise ModelError(f'it is not of this config: {_shorten(error)}') from None
    missing = [key for key in missing if 'num_batches_tracked' not in key]
    if missing:
        raise ModelError(
            f'it is not of this config: {len(missing)} of its weights are missing, '
            f'{", ".join(missing[:3])}{", ..." * (len(missing) > 3)}'
        )
    if unknown:
        print(f'The checkpoint has {len(unknown)} weights more: {unknown[0]}, ...')
    model.dataset_meta = _classes(model, checkpoint.get('meta') or {}, config)


def _classes(model: torch.nn.Module, meta: dict, config: Config) -> dict:
    """Names and colours: those in the checkpoint, else those of the test dataset.

    Where the colours do not suffice, others are made up, the same each time.
    """
    saved = {k.lower(): v for k, v in (meta.get('dataset_meta') or meta).items()}
    part = dict(config.test_dataloader.dataset, pipeline=[], lazy_init=True)
    with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
        configured = registry.build(part).metainfo
    names = saved.get('classes') or configured.get('classes') or ()
    count = max((getattr(m, 'num_classes', 0) for m in model.modules()), default=0)
    if len(names) != count:
        raise ModelError(
            f'the model has {count} classes, and there are {len(names)} names for '
            'them; those of the config are test_dataloader.dataset.metainfo.classes'
        )
    palettes = (saved.get('palette'), configured.get('palette'))
    colours = next((p for p in palettes if p and len(p) >= count), None)
    if colours is None or isinstance(colours, str):
        colours = np.random.default_rng(0).integers(60, 256, (count, 3)).tolist()
    return {'classes': tuple(names), 'palette': [tuple(c) for c in colours]}


def read_image(inferencer: BaseInferencer, path: Path) -> np.ndarray:
    """Reads an image (H, W, 3) as the config's own test pipeline does: BGR, upright.

    Raises:
        UnreadableError: It is missing, empty, broken, or no image.
    """
    steps = inferencer.pipeline.transforms
    load = next(step.from_file for step in steps if hasattr(step, 'from_file'))
    try:
        if path.stat().st_size == 0:
            raise UnreadableError('is empty (0 bytes)')
        return load({'img_path': str(path)})['img']
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except (AssertionError, ValueError, cv2.error) as error:
        raise UnreadableError('is no image, or a broken one') from error


def _shorten(error: Exception, limit: int = 300) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= limit else text[:limit] + ' ...'
