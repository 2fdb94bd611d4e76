"""Parse and build the models that the benchmark measures.

A model is a LIT backbone, one of mmdet's own backbones, or the whole detector or
segmentor of a config. mmdet and mmseg are imported only for their own models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mmlit.errors import UserError, spell_error
from mmlit.ops.attention import KERNELS
from mmlit_tools import models
from mmlit_tools.configs import import_scope, known_scope

LIT_ARCHS = {'lit-ti': 'tiny', 'lit-s': 'small', 'lit-m': 'medium', 'lit-b': 'base'}
#: Reference size of LIT's bias tables: that of the detection configs.
LIT_IMG_SIZE = 800
#: mmdet's classes with the settings of its configs, except those that freeze parts:
#: each backbone trains all its weights and emits all four levels.
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
        dtype: A key of `DTYPES`; half precision means autocast.
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
        """Name in tables and plots."""
        name = Path(self.name).stem if self.scope else self.name
        kernel = f':{self.kernel}' if self.kernel else ''
        return name + kernel + (f'@{self.dtype}' if self.dtype else '')

    def adapt(self, settings: Settings) -> Settings:
        """Return the run's settings for this model."""
        return replace(settings, dtype=self.dtype or settings.dtype)


def parse_model(text: str) -> Spec:
    """Return the model that a word of the command line means.

    Raises:
        UserError: No such model, config file, kernel or dtype.
    """
    name, _, dtype = text.partition('@')
    if '@' in text and dtype not in DTYPES:
        raise UserError(
            f'model {text}: dtype {dtype!r} is unknown; valid: {", ".join(DTYPES)}'
        )
    kernel = None
    if ':' in name and not name.endswith('.py'):
        name, _, kernel = name.rpartition(':')
    kernels = list(dict.fromkeys(['auto', *KERNELS]))
    if kernel is not None and kernel not in kernels:
        raise UserError(
            f'model {text}: kernel {kernel!r} is unknown; valid: {", ".join(kernels)}'
        )
    if name.endswith('.py'):
        config = _read_config(name)
        backbone, scope = config.model.backbone.type, config.default_scope
    elif name in (*LIT_ARCHS, *PEERS):
        backbone, scope = 'LIT' if name in LIT_ARCHS else name, None
    else:
        valid = ', '.join((*LIT_ARCHS, *PEERS))
        raise UserError(f'model {text!r} is unknown; valid: {valid}, or a config .py')
    if kernel is not None and backbone != 'LIT':
        raise UserError(f'model {text}: only LIT has kernels, {backbone} has none')
    return Spec(name, kernel, scope, dtype or None)


def _read_config(path: str) -> Config:
    if not Path(path).is_file():
        raise UserError(f'model {path}: there is no such file')
    try:
        config = Config.fromfile(path)
    # A config is Python, and its bases may be of a package that is not installed.
    except Exception as error:
        raise UserError(
            f'model {path}: the config cannot be read ({spell_error(error)})'
        ) from error
    known_scope(config)
    return config


def build_model(spec: Spec, settings: Settings) -> nn.Module:
    """Build a model with random weights, ready for steps of this kind.

    Raises:
        UserError: The kernel, mmdet or mmseg is not available here.
    """
    if spec.scope:
        config = _read_config(spec.name)
        backbone = config.model.backbone
    else:
        lit = dict(type='LIT', arch=LIT_ARCHS.get(spec.name), img_size=LIT_IMG_SIZE)
        scope = 'mmdet' if spec.name in PEERS else None
        config = dict(model=PEERS.get(spec.name, lit), default_scope=scope)
        config = Config(config, cfg_text=spec.name, filename=spec.name)
        backbone = config.model
    if backbone.type == 'LIT':
        backbone.with_cp = settings.with_cp
        backbone.attn_kernel = spec.kernel or 'auto'
    import_scope(config)
    model = models.build_model(config).to(settings.device)
    model.train(settings.training)  # mmdet's backbones return nothing here.
    return model
