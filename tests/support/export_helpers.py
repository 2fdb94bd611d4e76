"""Write models to export, and run exported files."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from mmengine.config import Config

from mmlit_tools.configs import import_scope
from mmlit_tools.models import build_model
from support.archs import RELATIVE

ROOT = Path(__file__).resolve().parents[2]

RETINANET = ROOT / 'configs/detection/retinanet_lit-ti_fpn_1x_coco.py'
_SEGMENTATION = ROOT / 'configs/segmentation'
SEMANTIC_FPN = _SEGMENTATION / 'lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512.py'
MASK_RCNN = ROOT / 'configs/detection/mask-rcnn_lit-ti_fpn_1x_coco.py'


def write_mini(path, base, pos_embed):
    """Write a config with a micro LIT in the place of `base`'s."""
    arch = dict(RELATIVE, pos_embed=pos_embed, _delete_=True)
    channels = list(RELATIVE['embed_dims'])
    path.write_text(
        f'_base_ = {str(base)!r}\n'
        f'model = dict(backbone=dict(arch={arch}, img_size=64),\n'
        f'             neck=dict(in_channels={channels}))\n'
    )
    return path


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
    assert len(found) == len(wanted)
    return max(
        np.abs(one - other.numpy()).max() / np.abs(other.numpy()).max()
        for one, other in zip(found, wanted, strict=True)
    )
