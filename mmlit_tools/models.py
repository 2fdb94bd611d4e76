"""Build models of configs and fill them from checkpoints, strictly."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmlit import read_checkpoint
from mmlit.errors import UserError, spell_error
from mmlit.weights.families import summary

#: The seed of initial weights.
SEED = 0


class ModelError(UserError, ValueError):
    """A model cannot be built, or a checkpoint does not fit it."""


def build_model(config: Config) -> nn.Module:
    """Build the model of a config with initial weights, for evaluation.

    Nothing is downloaded, whatever the config says.

    Args:
        config: With the modules of its scope registered (`configs.read_config`).

    Raises:
        ModelError: There is no model, or it has no such class or argument.
    """
    if config.get('model') is None:
        raise ModelError(f'the config {config.filename} has no model')
    init_default_scope(config.get('default_scope') or 'mmengine')
    torch.manual_seed(SEED)
    try:
        with without_log():
            model = MODELS.build(ConfigDict(without_pretrained(config.model.to_dict())))
            model.init_weights()
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f'the model of {config.filename} cannot be built: {spell_error(error)}'
        ) from error
    model.eval()  # mmdet's backbones return nothing here.
    return model


def without_pretrained(config: Any) -> Any:
    """Return a copy of a model's config that asks for no pretrained weights."""
    if isinstance(config, (list, tuple)):
        return [without_pretrained(entry) for entry in config]
    if not isinstance(config, dict):
        return config
    if config.get('type') == 'Pretrained':
        return None
    return {
        key: without_pretrained(value)
        for key, value in config.items()
        if key != 'pretrained'
    }


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Silence log messages up to warnings.

    mmengine logs every parameter, and mmdet warns that weights are not pretrained.
    """
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def open_checkpoint(path: str) -> dict[str, Any]:
    """Read the checkpoint of a file or an address; nothing in it is run.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if '://' in path:
            return CheckpointLoader.load_checkpoint(path, map_location='cpu')
        return read_checkpoint(path)
    except OSError as error:
        raise UserError(f'checkpoint {path} cannot be read: {error}') from error


def weights_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict of a checkpoint of mmengine, mmcv or the authors.

    Raises:
        ModelError: The checkpoint holds no weights.
    """
    for container in ('state_dict', 'model'):
        if isinstance(checkpoint.get(container), dict):
            return checkpoint[container]
    if not any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        raise ModelError(
            'it holds no weights: neither state_dict nor model is among its entries '
            + (', '.join(map(str, list(checkpoint)[:8])) or '(there are none)')
        )
    return checkpoint


def classes_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return `classes` and `palette` of a checkpoint of mmengine or mmcv, if known."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    known = meta.get('dataset_meta', meta)
    known = known if isinstance(known, dict) else {}
    known = {str(key).lower(): value for key, value in known.items()}
    return {key: known[key] for key in ('classes', 'palette') if known.get(key)}


def load_strict(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    part: Sequence[str] = (),
    optional: str = 'num_batches_tracked',
) -> None:
    """Load a checkpoint into a model, or into a part of it, which it must fill.

    Args:
        model: A detector, a segmentor or a backbone.
        checkpoint: What `open_checkpoint` gave. For a part of one module it may be of
            that alone, as a classifier is of a backbone.
        part: Names of the modules that are loaded; the file must hold no more of
            them. By default the whole model: weights that it lacks are counted.
        optional: Regular expression of the keys that may be missing.

    Raises:
        ModelError: Weights are missing, too many, or of other shapes.
    """
    weights = weights_of(checkpoint)
    state = OrderedDict((re.sub(r'^module\.', '', k), v) for k, v in weights.items())
    prefixes = tuple(f'{name}.' for name in part) or ('',)
    if len(part) == 1 and not any(key.startswith(prefixes) for key in state):
        model, prefixes = model.get_submodule(part[0]), ('',)
    state = OrderedDict((k, v) for k, v in state.items() if k.startswith(prefixes))
    state._metadata = getattr(weights, '_metadata', OrderedDict())
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()  # The first of torch's has no cause in it.
        raise ModelError(lines[min(1, len(lines) - 1)].strip()) from error
    missing = [
        key
        for key in missing
        if key.startswith(prefixes) and not re.search(optional, key)
    ]
    if missing:
        raise ModelError(f'it lacks the weights {summary(missing)}')
    if unexpected and part:
        raise ModelError(f'it has more weights than the model: {summary(unexpected)}')
    if unexpected:
        print(f'Left out of the checkpoint: {summary(unexpected)}')
