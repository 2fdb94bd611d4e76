"""What `export_onnx.py` exports: a part of a config's model, as image in, tensors out.

Also where its weights come from, and what a user of the file has to know of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmlit.archs import PATCH_SIZE
from mmlit.models.lit import MIN_IMG_SIZE
from mmlit.weights.families import summary
from mmlit_tools.configs import EXTRAS
from mmlit_tools.convert.command import class_names, weights_of
from mmlit_tools.models import without_log, without_pretrained

#: What the heads put out, by the scope of the config; a list has one per level.
HEADS = {
    'mmdet': ('bbox_head', ('cls_score', 'bbox_pred')),
    'mmseg': ('decode_head', ('logits',)),
}
PARTS = ('backbone', 'neck', 'model')
#: Of the size that the network is traced at: no map is one token wide anywhere, and
#: none is square, so that nothing holds by chance.
TRACED_SIZE = (157, 285)
#: From this side on an image is padded to what LIT needs at least.
MIN_SIDE = MIN_IMG_SIZE - PATCH_SIZE + 1


class Part(nn.Module):
    """The first modules of a model, one after the other: image -> tensors.

    Args:
        model: A detector or segmentor.
        names: The attributes of the model that hold the modules.
    """

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.names = names
        self.channels = getattr(model.backbone, 'in_channels', 3)
        for name in names:
            self.add_module(name, getattr(model, name))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, channels, h, w) -> the outputs of the last module, in one row."""
        return tuple(_flatten(self.compute(image)))

    def compute(self, image: Tensor):
        """The outputs of the last module as it gives them."""
        for name in self.names:
            image = getattr(self, name)(image)
        return image


def _flatten(outputs) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
        return
    for output in outputs:
        yield from _flatten(output)


def build_model(config: Config) -> nn.Module:
    """Builds a config's model with the initial weights of seed 0, for evaluation.

    Nothing is downloaded, whatever the config says.

    Raises:
        ValueError: The config is for neither detection nor segmentation.
    """
    scope = config.get('default_scope')
    if scope not in EXTRAS or 'backbone' not in config.get('model', {}):
        raise ValueError(
            f'exported are configs with a model.backbone and a default_scope out of '
            f'{", ".join(EXTRAS)}, this one has default_scope={scope!r}'
        )
    torch.manual_seed(0)
    settings = ConfigDict(without_pretrained(config.model.to_dict()))
    with without_log():
        init_default_scope(scope)
        model = import_module(f'{scope}.registry').MODELS.build(settings)
        model.init_weights()
    return model.eval()


def take_part(model: nn.Module, part: str, scope: str) -> tuple[Part, list[str]]:
    """A part of a model, and the names of its outputs.

    Args:
        model: What `build_model` gave.
        part: 'backbone', 'neck' (with the backbone) or 'model' (up to the raw outputs
            of its head).
        scope: Of the config.

    Raises:
        ValueError: The model has no such part, or one with other outputs.
    """
    names = ['backbone']
    if part != 'backbone' and getattr(model, 'neck', None) is not None:
        names.append('neck')
    elif part == 'neck':
        raise ValueError('--part neck: the model has no neck; take --part backbone')
    if part == 'model':
        head, outputs = HEADS[scope]
        if getattr(model, head, None) is None or hasattr(model, 'roi_head'):
            raise ValueError(
                f'--part model: a {type(model).__name__} has no single head (its '
                'second stage needs the proposals of the first); take --part neck'
            )
        names.append(head)
    network = Part(model, names).eval()
    with torch.no_grad():
        made = network.compute(torch.zeros(1, network.channels, *TRACED_SIZE))
    if part == 'backbone':
        indices = getattr(model.backbone, 'out_indices', range(len(made)))
        return network, [f'level{i}' for i in indices]
    if part == 'neck':
        return network, [f'pyramid{i}' for i in range(len(made))]
    if isinstance(made, Tensor):
        return network, list(outputs)
    if len(made) != len(outputs):
        raise ValueError(
            f'--part model: known are heads that give {" and ".join(outputs)}, this '
            f'{type(getattr(model, head)).__name__} gives {len(made)} kinds of '
            'outputs; take --part neck'
        )
    return network, [
        f'{name}{i}' for name, levels in zip(outputs, made) for i in range(len(levels))
    ]


def load_weights(model: nn.Module, path: str, modules: list[str]) -> list[str]:
    """Loads a checkpoint into a model; returns the names of its classes, if any.

    Args:
        model: A detector or segmentor.
        path: File or address. One of a backbone alone, such as a classifier, will do
            where only the backbone is exported.
        modules: The attributes of the model that have to be filled.

    Raises:
        ValueError: It is no checkpoint of this model.
    """
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    state = dict(weights_of(checkpoint))
    target, prefixes = model, tuple(f'{name}.' for name in modules)
    if modules == ['backbone'] and not any(
        key.startswith('backbone.') for key in state
    ):
        target, prefixes = model.backbone, ('',)
    try:
        wrong = target.load_state_dict(state, strict=False)
    except RuntimeError as error:  # Shapes.
        lines = str(error).splitlines()
        raise ValueError(lines[min(1, len(lines) - 1)].strip()) from error
    for what, keys in (
        ('lacks', wrong.missing_keys),
        ('has besides what the model has', wrong.unexpected_keys),
    ):
        keys = [key for key in keys if key.startswith(prefixes)]
        if keys:
            raise ValueError(f'it {what} {summary(keys)}')
    named = class_names(checkpoint.get('meta'), to_official=False)
    return list(named.get('dataset_meta', {}).get('classes', ()))


def preprocessing(config: Config) -> str:
    """What has to be done to an image before the network, as JSON."""
    found = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    found = dict(found or {})
    divisor = found.get('pad_size_divisor')  # mmdet's; mmseg's has one for tests.
    if divisor is None:
        divisor = (found.get('test_cfg') or {}).get('size_divisor')
    return json.dumps(
        dict(
            channels='RGB' if found.get('bgr_to_rgb') else 'BGR',
            mean=found.get('mean') or [0.0],
            std=found.get('std') or [1.0],
            pad_size_divisor=divisor or 1,
        )
    )
