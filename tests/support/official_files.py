"""Make official files of any LIT by the description of their keys, and load them.

The keys and shapes do not come from `mmlit.weights`: the tests compare the two.
"""

import argparse
from contextlib import contextmanager

import torch
from mmengine.model import BaseModule

from mmlit import LIT
from mmlit.weights.convert import to_official
from support.archs import ABSOLUTE, RELATIVE

#: The authors' micro networks, which the golden files are of.
RELATIVE_MICRO = {**RELATIVE, 'embed_dims': (24, 48, 96, 192)}
RELATIVE_MICRO.update(num_heads=(1, 2, 4, 8), mlp_ratios=(4, 4, 4, 4))
ABSOLUTE_MICRO = {**ABSOLUTE, 'embed_dims': (16, 32, 40, 64)}
ABSOLUTE_MICRO.update(num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
FAMILIES = {'relative': RELATIVE_MICRO, 'absolute': ABSOLUTE_MICRO}
#: Reference image size of each kind of file.
IMG_SIZES = {'imagenet': 224, 'detector': 800, 'segmentor': 512}


def official_shapes(arch, kind):
    """Key -> shape of the backbone in an imagenet, detector or segmentor file."""
    relative = arch['pos_embed'] == 'relative'
    dims, shapes = arch['embed_dims'], {}

    def affine(name, channels):
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (channels,)

    def linear(name, outputs, inputs):
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = (outputs, inputs), (outputs,)

    def convolution(name, outputs, inputs, side):
        shapes[f'{name}.weight'] = (outputs, inputs, side, side)
        shapes[f'{name}.bias'] = (outputs,)

    first = 'patch_embed' if relative else 'patch_embed1'
    convolution(f'{first}.proj', dims[0], 3, 4)
    affine(f'{first}.norm', dims[0])
    for i in range(4):
        for j in range(arch['depths'][i]):
            block = f'layers.{i}.blocks.{j}' if relative else f'block{i + 1}.{j}'
            grid = -(-IMG_SIZES[kind] // 4) // 2**i
            if i >= 2:
                affine(f'{block}.norm1', dims[i])
                linear(f'{block}.attn.qkv', 3 * dims[i], dims[i])
                linear(f'{block}.attn.proj', dims[i], dims[i])
                if relative:
                    table = f'{block}.attn.relative_position_bias_table'
                    shapes[table] = ((2 * grid - 1) ** 2, arch['num_heads'][i])
                if relative and kind == 'imagenet':
                    index = f'{block}.attn.relative_position_index'
                    shapes[index] = (grid**2, grid**2)
            affine(f'{block}.norm2', dims[i])
            linear(f'{block}.mlp.fc1', arch['mlp_ratios'][i] * dims[i], dims[i])
            linear(f'{block}.mlp.fc2', dims[i], arch['mlp_ratios'][i] * dims[i])
        if i < 3:
            down = f'layers.{i}.downsample' if relative else f'patch_embed{i + 2}'
            convolution(f'{down}.dconv', dims[i + 1], dims[i], 2)
            convolution(f'{down}.dconv.conv_offset', 8, dims[i], 2)
            affine(f'{down}.norm_layer', dims[i + 1])
            for buffer in ('running_mean', 'running_var'):
                shapes[f'{down}.norm_layer.{buffer}'] = (dims[i + 1],)
            shapes[f'{down}.norm_layer.num_batches_tracked'] = ()
        if not relative:
            slots = 1 if i == 3 else 0
            shapes[f'pos_embed{i + 1}'] = (1, (56 // 2**i) ** 2 + slots, dims[i])
    if kind == 'imagenet':
        affine('norm', dims[3])
        linear('head', 1000, dims[3])
        if not relative:
            shapes['cls_token'] = (1, 1, dims[3])
    elif relative:
        for i in {'detector': (1, 2, 3), 'segmentor': (0, 1, 2, 3)}[kind]:
            affine(f'norm{i}', dims[i])
    return shapes


def official_state(arch, kind, seed=0, dense=True):
    """Random weights under official keys.

    Not `dense`, they are drawn along the last axis and expanded: `save_in_full` saves.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in official_shapes(arch, kind).items():
        if key.endswith('num_batches_tracked'):
            state[key] = torch.tensor(7)
        elif key.endswith('relative_position_index'):
            state[key] = torch.zeros(1, dtype=torch.int64).expand(shape)
        else:
            drawn = torch.rand(shape if dense else shape[-1:], generator=generator)
            state[key] = (0.5 + drawn if key.endswith('_var') else drawn - 0.5) * 0.4
            state[key] = state[key].expand(shape)
    return state


def official_file(state, kind, family='relative'):
    """A state dict in the container that the authors publish files of a kind in."""
    if kind == 'imagenet':
        beside = dict(config={'AMP': 'O1'})
        if family == 'absolute':
            beside = dict(args=argparse.Namespace(model='lit_ti', lr=0.001))
        return dict(model=state, epoch=299, **beside)
    state = {f'backbone.{key}': value for key, value in state.items()}
    if kind == 'detector':
        state['neck.lateral_convs.0.conv.weight'] = torch.zeros(2, 2, 1, 1)
        state['bbox_head.retina_cls.bias'] = torch.zeros(2)
    else:
        state['decode_head.conv_seg.bias'] = torch.zeros(2)
    meta = dict(mmdet_version='2.11.0', CLASSES=('person', 'bicycle'), epoch=12)
    return dict(meta=meta, state_dict=state, optimizer={})


def save_in_full(path, state, kind, family='relative'):
    """The file that `official_file` describes, with all numbers of expanded tensors."""
    state = {key: value.contiguous() for key, value in state.items()}
    torch.save(official_file(state, kind, family), path)


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
        if key.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif key.endswith('running_mean') or 'conv_offset' in key:
            value.normal_(0, 0.2 if key.endswith('running_mean') else 0.1)


def save_as_the_authors(model, path, meta, biases):
    """Write a model's weights under official keys; biases: zeros or random."""
    official = to_official(model.backbone.state_dict(), model.backbone.arch)
    if biases == 'random':
        for key in [key for key in official if key.endswith('dconv.bias')]:
            mean = key.replace('dconv.bias', 'norm_layer.running_mean')
            official[key] = torch.randn_like(official[key]) * 0.3
            official[mean] = official[mean] + official[key]
    state = {k: v for k, v in model.state_dict().items() if k[:9] != 'backbone.'}
    state.update({f'backbone.{key}': value for key, value in official.items()})
    torch.save(dict(meta=meta, state_dict=state, optimizer={}), path)


NAME = 'LIT of embed_dims (24, 48, 96, 192), depths (1, 1, 2, 1)'
TABLE = 'layers.2.blocks.0.attn.relative_position_bias_table'
OUR_TABLE = 'stages.2.blocks.0.attn.position_bias.relative_position_bias_table'


class Detector(BaseModule):
    """As much of a detector as loading needs."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = torch.nn.Linear(2, 2)


def official(family, kind):
    """A micro network's weights under official keys."""
    return official_state(FAMILIES[family], kind)


def relative(**kwargs):
    return LIT(RELATIVE_MICRO, **{'img_size': 224, **kwargs})


def snapshot(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net, before):
    now = net.state_dict()
    return {key for key in now if not torch.equal(now[key], before[key])}


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype, key
        assert torch.equal(one[key], other[key]), key


def empty_lit(arch, **kwargs):
    """A LIT of which every number is not a number, to see that all are filled."""
    with torch.device('meta'):
        net = LIT(arch, **kwargs)
    net.to_empty(device='cpu')
    for value in net.state_dict().values():
        value.fill_(float('nan') if value.is_floating_point() else -1)
    return net
