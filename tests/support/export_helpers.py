"""Write models to export, and run exported files."""

import numpy as np
import onnxruntime
import torch
from mmengine.config import Config

from mmlit_tools.configs import import_scope
from mmlit_tools.models import build_model
from support import micro_models
from support.config_helpers import CONFIGS
from support.micro_models import FPN

RETINANET = CONFIGS / 'detection/retinanet_lit-ti_fpn_1x_coco.py'
SEMANTIC_FPN = CONFIGS.joinpath(*FPN)
MASK_RCNN = CONFIGS.joinpath(*micro_models.MASK_RCNN)


def write_checkpoint(path, config_file, classes=()):
    """Write a checkpoint whose offsets and norms are not initial; return its model."""
    config = Config.fromfile(config_file)
    import_scope(config)
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith('conv_offset.bias'):
            value.normal_(std=1.5, generator=generator)
        elif name.endswith(('conv_offset.weight', 'running_mean')):
            value.normal_(std=0.1, generator=generator)
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return model


def run_file(path, image):
    """Return {name: output} of a file."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {'image': image.numpy()})))


def worst_difference(found, wanted):
    """Compare all outputs, each relative to its largest number."""
    pairs = [(f, w.numpy()) for f, w in zip(found, wanted, strict=True)]
    return max(np.abs(one - other).max() / np.abs(other).max() for one, other in pairs)
