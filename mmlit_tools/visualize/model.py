"""The network of a config and its way of reading images, for `visualize.py`."""

from __future__ import annotations

import argparse
import copy
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import initialize
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import import_modules_from_strings
from torch import nn

from mmlit.models.lit import DEFAULT_INIT_CFG, LIT
from mmlit.visualization.image import SingleImage, load_image
from mmlit.visualization.probe import ProbeResult, find_lit, probe
from mmlit_tools.configs import stop
from mmlit_tools.convert.command import weights_of

SEED = 0


@dataclass
class Subject:
    """A network to look into.

    Args:
        lit: The network.
        preprocessor: What normalises and pads its images.
        transforms: What reads and resizes them.
        weights: Where the weights come from, in words.
    """

    lit: LIT
    preprocessor: nn.Module
    transforms: list
    weights: str

    def probe(self, path: Path) -> tuple[SingleImage, ProbeResult]:
        """An image, and what the network does with it."""
        image = load_image(path, self.transforms, self.preprocessor)
        return image, probe(self.lit, image.inputs)


def open_subject(config: Config, args: argparse.Namespace) -> Subject:
    """Builds the config's model and gives it weights; stops where that fails."""
    if config.get('model') is None:
        stop(f'the config {args.config} has no model')
    if config.get('custom_imports') is not None:
        import_modules_from_strings(**config.custom_imports)
    init_default_scope(config.get('default_scope') or 'mmengine')
    torch.manual_seed(SEED)
    try:
        model = MODELS.build(copy.deepcopy(config.model)).eval()
        lit = find_lit(model)
    except (KeyError, TypeError, ValueError) as error:
        stop(f'the config {args.config}: {error}')
    if args.checkpoint is None:
        # Not by the config's own init_cfg, which names weights to download.
        initialize(lit, DEFAULT_INIT_CFG)
        weights = f'initial, seed {SEED} (no --checkpoint): all offsets are zero'
    else:
        load_weights(model, lit, args.checkpoint)
        weights = Path(args.checkpoint).name
    transforms = Compose(test_pipeline(config, args.max_side)).transforms
    return Subject(lit, model.data_preprocessor, transforms, weights)


def load_weights(model: nn.Module, lit: LIT, checkpoint: str) -> None:
    """Loads LIT's part of a checkpoint; stops where it is not all there."""
    (name,) = (name for name, module in model.named_modules() if module is lit)
    prefix = f'{name}.' if name else ''
    try:
        file = weights_of(CheckpointLoader.load_checkpoint(checkpoint, 'cpu'))
        own = {k[len(prefix) :]: v for k, v in file.items() if k.startswith(prefix)}
        missing = lit.load_state_dict(own or dict(file), strict=False).missing_keys
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        stop(f'checkpoint {checkpoint}: {error}')
    # Output norms are what a classifier's file lacks.
    missing = [key for key in missing if 'out_norm' not in key]
    if missing:
        stop(f'checkpoint {checkpoint} lacks {len(missing)} keys, such as {missing[0]}')


def test_pipeline(config: Config, max_side: int | None) -> list[ConfigDict]:
    """The transforms that read an image for testing, resized as told."""
    dataset = config.get('test_dataloader') or config.get('val_dataloader') or {}
    while 'pipeline' not in dataset:
        inner = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if inner is None:
            stop('the config has no test_dataloader with a pipeline to read images by')
        dataset = inner
    pipeline = copy.deepcopy(dataset.pipeline)
    if max_side is not None:
        resizes = [step for step in pipeline if step.type == 'Resize']
        if len(resizes) != 1:
            stop(
                f'--max-side wants one Resize in the test pipeline, not {len(resizes)}'
            )
        resizes[0].scale = (max_side, max_side)
        resizes[0].keep_ratio = True
    return pipeline
