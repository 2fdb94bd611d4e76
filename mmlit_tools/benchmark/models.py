"""The models that `benchmark.py` knows, and what they are measured with.

A model is a LIT backbone, one of mmdet's own backbones, or the whole detector or
segmentor of a config. mmdet and mmseg are imported only for what is theirs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from torch import nn

from mmlit import LIT
from mmlit.ops.attention import KERNELS
from mmlit_tools.configs import EXTRAS

LIT_ARCHS = {'lit-ti': 'tiny', 'lit-s': 'small', 'lit-m': 'medium', 'lit-b': 'base'}
#: Reference size of LIT's bias tables: that of the detection configs.
LIT_IMG_SIZE = 800
#: mmdet's own classes with the settings of its configs, but for what would keep parts
#: of a network out of training: all of each backbone is trained, all four levels
#: come out.
PEERS = {
    'swin-t': dict(type='SwinTransformer', drop_path_rate=0.2),
    'pvt-s': dict(type='PyramidVisionTransformer', num_layers=[3, 4, 6, 3]),
    'r50': dict(type='ResNet', depth=50, frozen_stages=-1, norm_eval=False),
}
DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


@dataclass(frozen=True)
class Settings:
    """What all models of a run have in common.

    Args:
        mode: 'forward' (evaluation mode, no gradients) or 'train' (forward and
            backward pass).
        batch: Images per step.
        dtype: A key of `DTYPES`; the half precision ones mean autocast.
        device: torch's name of the device.
        threads: CPU threads of torch.
        with_cp: Gradient checkpointing of LIT's blocks.
    """

    mode: str
    batch: int
    dtype: str
    device: str
    threads: int
    with_cp: bool

    @property
    def training(self) -> bool:
        """Whether steps compute gradients."""
        return self.mode == 'train'


@dataclass(frozen=True)
class Spec:
    """A model as the command line names it: `lit-s`, `lit-s:eager`, `x.py@bfloat16`.

    Args:
        name: That of a backbone, or the path of a config.
        kernel: LIT's attention kernel; None means 'auto'.
        scope: The `default_scope` of a config; None for a backbone alone.
        dtype: A key of `DTYPES`, for this model alone; None means the run's.
    """

    name: str
    kernel: str | None
    scope: str | None
    dtype: str | None = None

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        name = Path(self.name).stem if self.scope else self.name
        kernel = f':{self.kernel}' if self.kernel else ''
        return name + kernel + (f'@{self.dtype}' if self.dtype else '')

    def adapt(self, settings: Settings) -> Settings:
        """The run's settings for this model."""
        return replace(settings, dtype=self.dtype or settings.dtype)


def parse_model(text: str) -> Spec:
    """The model that a word of the command line means.

    Raises:
        ValueError: No such model, config file, kernel or dtype.
    """
    name, _, dtype = text.partition('@')
    if '@' in text and dtype not in DTYPES:
        raise ValueError(
            f'model {text}: dtype {dtype!r} is unknown; valid: {", ".join(DTYPES)}'
        )
    kernel = None
    if ':' in name and not name.endswith('.py'):
        name, _, kernel = name.rpartition(':')
    kernels = list(dict.fromkeys(['auto', *KERNELS]))
    if kernel is not None and kernel not in kernels:
        raise ValueError(
            f'model {text}: kernel {kernel!r} is unknown; valid: {", ".join(kernels)}'
        )
    if name.endswith('.py'):
        config = _read_config(name)
        backbone, scope = config.model.backbone.type, config.default_scope
    elif name in (*LIT_ARCHS, *PEERS):
        backbone, scope = 'LIT' if name in LIT_ARCHS else name, None
    else:
        valid = ', '.join((*LIT_ARCHS, *PEERS))
        raise ValueError(f'model {text!r} is unknown; valid: {valid}, or a config .py')
    if kernel is not None and backbone != 'LIT':
        raise ValueError(f'model {text}: only LIT has kernels, {backbone} has none')
    return Spec(name, kernel, scope, dtype or None)


def _read_config(path: str) -> Config:
    """A config of something that can be measured."""
    if not Path(path).is_file():
        raise ValueError(f'model {path}: there is no such file')
    try:
        config = Config.fromfile(path)
    # A config is Python, and its bases may be of a package that is not installed.
    except Exception as error:
        first = (str(error).strip().splitlines() or [''])[0]
        raise ValueError(
            f'model {path}: the config cannot be read ({type(error).__name__}: {first})'
        ) from error
    scope = config.get('default_scope')
    if scope not in EXTRAS or 'backbone' not in config.get('model', {}):
        raise ValueError(
            f'model {path}: measured are configs with a model.backbone and a '
            f'default_scope out of {", ".join(EXTRAS)}, this one has {scope!r}'
        )
    return config


def build_model(spec: Spec, settings: Settings) -> nn.Module:
    """Builds a model with random weights, ready for steps of this kind.

    Raises:
        ValueError: The kernel is not available here.
        ImportError: It is of mmdet or mmseg, which is not installed.
    """
    torch.manual_seed(0)
    if spec.scope:
        model = _build_network(spec, settings)
    elif spec.name in PEERS:
        model = _models_of('mmdet').build(PEERS[spec.name])
    else:
        model = LIT(
            LIT_ARCHS[spec.name],
            img_size=LIT_IMG_SIZE,
            with_cp=settings.with_cp,
            attn_kernel=spec.kernel or 'auto',
        )
    with without_log():
        model.init_weights()
    # Not in one line: mmdet's backbones return nothing from `train`.
    model.to(settings.device).train(settings.training)
    return model


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Silences what is logged up to warnings."""
    # mmengine logs every parameter, mmdet warns that there are no trained weights.
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _build_network(spec: Spec, settings: Settings) -> nn.Module:
    config = _read_config(spec.name).model
    model = ConfigDict(without_pretrained(config.to_dict()))
    if model.backbone.type == 'LIT':
        model.backbone.with_cp = settings.with_cp
        model.backbone.attn_kernel = spec.kernel or 'auto'
    return _models_of(spec.scope).build(model)


def _models_of(scope: str) -> Registry:
    """The models of mmdet or mmseg; names in a config are from now on its own."""
    if find_spec(scope) is None:
        extra = f'mmlit[{EXTRAS[scope]}]'
        raise ImportError(f'{scope} is not installed: pip install "{extra}"')
    import_module(f'{scope}.utils').register_all_modules(init_default_scope=True)
    return import_module(f'{scope}.registry').MODELS


def without_pretrained(config):
    """A copy of a model's config that asks for no weights."""
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
