"""What `benchmark.py` measures: models by name, and one step of each.

A model is a LIT backbone, one of mmdet's own backbones, or the whole detector of a
config. mmdet is imported only for the last two.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from mmlit import LIT
from mmlit.kernels import KERNELS

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
OBJECTS_PER_IMAGE = 8


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
        compile: `torch.compile` of LIT.
    """

    mode: str
    batch: int
    dtype: str
    device: str
    threads: int
    with_cp: bool
    compile: bool

    @property
    def training(self) -> bool:
        """Whether steps compute gradients."""
        return self.mode == 'train'


@dataclass(frozen=True)
class Spec:
    """A model as the command line names it: `lit-s`, `lit-s:eager`, `x.py:sdpa`."""

    name: str
    kernel: str | None

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        name = Path(self.name).stem if self.is_config else self.name
        return f'{name}:{self.kernel}' if self.kernel else name

    @property
    def is_config(self) -> bool:
        """Whether it is the whole network of a config file."""
        return self.name.endswith('.py')


def parse_model(text: str) -> Spec:
    """The model that a word of the command line means.

    Raises:
        ValueError: No such model, config file or kernel.
    """
    name, colon, kernel = text.rpartition(':') if ':' in text else (text, '', None)
    spec = Spec(name, kernel)
    if spec.is_config:
        if not Path(name).is_file():
            raise ValueError(f'model {text}: there is no file {name}')
    elif name not in (*LIT_ARCHS, *PEERS):
        valid = ', '.join((*LIT_ARCHS, *PEERS))
        raise ValueError(f'model {text!r} is unknown; valid: {valid}, or a config .py')
    if colon and name in PEERS:
        raise ValueError(f'model {text}: only LIT has kernels, {name} has none')
    kernels = list(dict.fromkeys(['auto', *KERNELS]))
    if colon and kernel not in kernels:
        raise ValueError(
            f'model {text}: kernel {kernel!r} is unknown; valid: {", ".join(kernels)}'
        )
    return spec


def build_model(spec: Spec, settings: Settings) -> nn.Module:
    """Builds a model with random weights, ready for steps of this kind.

    Raises:
        ValueError: The kernel is not available here, or the config is for something
            that cannot be measured.
        ImportError: It is one of mmdet's, which is not installed.
    """
    torch.manual_seed(0)
    if spec.is_config:
        model = _build_network(spec, settings)
    elif spec.name in PEERS:
        model = _registry('mmdet').build(PEERS[spec.name])
    else:
        model = LIT(
            LIT_ARCHS[spec.name],
            img_size=LIT_IMG_SIZE,
            with_cp=settings.with_cp,
            attn_kernel=spec.kernel or 'auto',
        )
    with _without_log():
        model.init_weights()
    model.to(settings.device).train(settings.training)
    if settings.compile:
        for module in model.modules():
            if isinstance(module, LIT):
                module.compile()
    return model


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    # mmengine logs every parameter, mmdet warns that there are no trained weights.
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _build_network(spec: Spec, settings: Settings) -> nn.Module:
    config = Config.fromfile(spec.name)
    scope = config.get('default_scope')
    if scope not in COMPUTES:
        raise ValueError(
            f'{spec.name} has default_scope={scope!r}; '
            f'what can be measured: {", ".join(COMPUTES)}'
        )
    model = ConfigDict(_without_pretrained(config.model.to_dict()))
    if model['backbone']['type'] == 'LIT':
        model['backbone']['with_cp'] = settings.with_cp
        model['backbone']['attn_kernel'] = spec.kernel or 'auto'
    elif spec.kernel:
        kind = model['backbone']['type']
        raise ValueError(f'{spec.name}: its backbone {kind} has no kernels')
    return _registry(scope).build(model)


def _registry(scope: str):
    if find_spec(scope) is None:
        raise ImportError(f'{scope} is not installed')
    if scope != 'mmdet':
        raise ValueError(f'no models are known of {scope}')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return MODELS


def _without_pretrained(config):
    """A copy of a model's config that asks for no weights."""
    if isinstance(config, (list, tuple)):
        return [_without_pretrained(entry) for entry in config]
    if not isinstance(config, dict):
        return config
    if config.get('type') == 'Pretrained':
        return None
    return {
        key: _without_pretrained(value)
        for key, value in config.items()
        if key != 'pretrained'
    }


class Step:
    """One step of a model on random images of one shape.

    Args:
        spec: Which model it is.
        model: It, as `build_model` makes it.
        shape: (height, width) of the images in pixels.
        settings: As for `build_model`.
    """

    def __init__(
        self, spec: Spec, model: nn.Module, shape: tuple[int, int], settings: Settings
    ):
        self.model = model
        self._settings = settings
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(settings.batch, 3, *shape, generator=generator)
        images = images.to(settings.device)
        compute = COMPUTES[_scope(spec)]
        self._compute = compute(model, images, settings.training)

    def forward(self) -> Tensor | None:
        """The forward pass; in training, returns the loss."""
        device, dtype = torch.device(self._settings.device), self._settings.dtype
        with torch.set_grad_enabled(self._settings.training), torch.autocast(
            device.type, DTYPES[dtype], enabled=dtype != 'float32'
        ):
            return self._compute()

    def __call__(self) -> None:
        """The whole step; in training, with the backward pass."""
        loss = self.forward()
        if self._settings.training:
            loss.backward()
            self.model.zero_grad(set_to_none=True)


def _scope(spec: Spec) -> str | None:
    return Config.fromfile(spec.name).default_scope if spec.is_config else None


def _compute_backbone(
    model: nn.Module, images: Tensor, training: bool
) -> Callable[[], Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4096, generator=generator).to(images.device)

    def compute():
        levels = model(images)
        if not training:
            return None
        # A weight per channel: a gradient unlike any other, at no cost in memory.
        means = (level.mean((2, 3), dtype=torch.float32) for level in levels)
        return sum((mean * weights[: mean.shape[1]]).mean() for mean in means)

    return compute


def _compute_detector(
    model: nn.Module, images: Tensor, training: bool
) -> Callable[[], Tensor | None]:
    from benchmark_detection import make_samples

    samples = make_samples(images, OBJECTS_PER_IMAGE)

    def compute():
        if training:
            return model.parse_losses(model(images, samples, mode='loss'))[0]
        model(images, samples, mode='tensor')
        return None

    return compute


#: What computes a step, by the scope of the config; None: a backbone alone.
COMPUTES = {None: _compute_backbone, 'mmdet': _compute_detector}
