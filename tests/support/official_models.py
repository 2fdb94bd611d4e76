"""Save built detectors and segmentors in the authors' format."""

from contextlib import contextmanager

import torch

from mmlit.weights.convert import to_official


@contextmanager
def precision(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def unsettle(model):
    """Move away from their start the weights and buffers that begin alike."""
    for key, value in model.state_dict().items():
        if key.endswith('running_mean'):
            value.normal_(0, 0.2)
        elif key.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif 'conv_offset' in key:
            value.normal_(0, 0.1)


def save_as_the_authors(model, path, meta, biases):
    """Write a model's weights under official keys; biases: zeros or random."""
    state, backbone = {}, model.backbone.state_dict()
    official = to_official(backbone, model.backbone.arch)
    if biases == 'random':
        for key in [key for key in official if key.endswith('dconv.bias')]:
            mean = key.replace('dconv.bias', 'norm_layer.running_mean')
            official[key] = torch.randn_like(official[key]) * 0.3
            official[mean] = official[mean] + official[key]
    for key, value in model.state_dict().items():
        if not key.startswith('backbone.'):
            state[key] = value
    state.update({f'backbone.{key}': value for key, value in official.items()})
    torch.save(dict(meta=meta, state_dict=state, optimizer={}), path)
