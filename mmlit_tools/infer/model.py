"""Share between detection and segmentation: configs, class names, reading images.

mmdet's and mmseg's inferencers load the weights that fit and log the rest, so that a
model with random parts would draw pictures too. Here the file must fill all of it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS
from torch import nn

from mmlit_tools.configs import test_dataset
from mmlit_tools.infer.sources import UnreadableError
from mmlit_tools.models import ModelError, classes_of, load_strict, open_checkpoint


def prepare(config: Config, visualizer: str) -> Config:
    """Return a copy of a config that the inferencers can take."""
    dataset = test_dataset(config)
    config = copy.deepcopy(config)
    config.test_dataloader = dict(dataset=dataset)
    settings = config.get('visualizer') or dict(type=visualizer)
    # Pictures go to --out-dir alone, not to Weights & Biases, say.
    config.visualizer = dict(settings, vis_backends=[], save_dir=None)
    return config


def load_weights(model: nn.Module, path: str, config: Config) -> None:
    """Fill a model from a checkpoint; note names and colours of its classes.

    Raises:
        UserError: The file cannot be read, weights are missing or of other shapes, or
            the names do not fit.
    """
    checkpoint = open_checkpoint(path)
    load_strict(model, checkpoint)
    model.dataset_meta = _classes(model, classes_of(checkpoint), config)


def _classes(model: nn.Module, saved: dict[str, Any], config: Config) -> dict:
    """Return names and colours: the saved ones, else those of the test dataset.

    Missing colours are drawn at random, the same each time.
    """
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
    """Read an image (H, W, 3) as the config's own test pipeline does: BGR, upright.

    Raises:
        UnreadableError: It is missing, empty, broken, or not an image.
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
        raise UnreadableError('is not an image, or a broken one') from error
