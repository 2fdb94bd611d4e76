"""Take the part of a model that is exported: image in, tensors out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmlit.archs import PATCH_SIZE
from mmlit.errors import UserError
from mmlit.models.lit import MIN_IMG_SIZE
from mmlit_tools.models import ModelError, classes_of, load_strict, open_checkpoint

#: The head of each scope's models and the names of its outputs, of each per level.
HEADS = {
    'mmdet': ('bbox_head', ('cls_score', 'bbox_pred')),
    'mmseg': ('decode_head', ('logits',)),
}
PARTS = ('backbone', 'neck', 'model')
#: Size that the network is traced at: no map of it is square or one token wide, so that
#: the exporter does not mistake sizes for constants.
TRACED_SIZE = (157, 285)
#: The smallest side that is padded to LIT's smallest image.
MIN_SIDE = MIN_IMG_SIZE - PATCH_SIZE + 1


class Part(nn.Module):
    """Chain the first modules of a model: image -> tensors.

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
        """(B, channels, h, w) -> the outputs of the last module, flattened."""
        return tuple(_flatten(self.compute(image)))

    def compute(self, image: Tensor):
        """Return the outputs of the last module as they are."""
        for name in self.names:
            image = getattr(self, name)(image)
        return image


def _flatten(outputs) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
        return
    for output in outputs:
        yield from _flatten(output)


def take_part(model: nn.Module, part: str, scope: str) -> tuple[Part, list[str]]:
    """Return a part of a model and the names of its outputs.

    Args:
        model: What `models.build_model` gave.
        part: 'backbone', 'neck' (with the backbone) or 'model' (up to the raw outputs
            of its head).
        scope: Of the config.

    Raises:
        UserError: The model has no such part, or one with other outputs.
    """
    names = ['backbone']
    if part != 'backbone' and getattr(model, 'neck', None) is not None:
        names.append('neck')
    elif part == 'neck':
        raise UserError('--part neck: the model has no neck; take --part backbone')
    if part == 'model':
        head, outputs = HEADS[scope]
        if getattr(model, head, None) is None or hasattr(model, 'roi_head'):
            raise UserError(
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
        raise UserError(
            f'--part model: known are heads that give {" and ".join(outputs)}, this '
            f'{type(getattr(model, head)).__name__} gives {len(made)} kinds of '
            'outputs; take --part neck'
        )
    return network, [
        f'{name}{i}' for name, levels in zip(outputs, made) for i in range(len(levels))
    ]


def load_part(
    model: nn.Module, args: argparse.Namespace, modules: list[str]
) -> list[str]:
    """Load the checkpoint into modules of a model; return its classes, if known."""
    checkpoint = open_checkpoint(args.checkpoint)
    try:
        load_strict(model, checkpoint, modules)
    except ModelError as error:
        raise UserError(
            f'checkpoint {args.checkpoint} does not fit {args.config}: {error}'
        ) from error
    return list(classes_of(checkpoint).get('classes', ()))


def preprocessing(config: Config) -> str:
    """Describe how an image has to be prepared, as JSON."""
    found = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    found = dict(found or {})
    divisor = found.get('pad_size_divisor')  # mmdet's; mmseg has it for tests.
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
