"""Make official checkpoint files of any LIT, from the description of their keys.

Nothing here comes from `mmlit.weights`: the tests compare the two.
"""

import argparse

import torch

#: The authors' micro networks, which the golden files are of.
RELATIVE_MICRO = dict(
    embed_dims=(24, 48, 96, 192),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=(4, 4, 4, 4),
    pos_embed='relative',
    norm_eps=1e-5,
    drop_path_rate=0.0,
)
ABSOLUTE_MICRO = dict(
    embed_dims=(16, 32, 40, 64),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 5, 8),
    mlp_ratios=(8, 8, 4, 4),
    pos_embed='absolute',
    norm_eps=1e-6,
    drop_path_rate=0.0,
)
#: Reference image size of each kind of file.
IMG_SIZES = {'imagenet': 224, 'detector': 800, 'segmentor': 512}


def official_shapes(arch, kind):
    """Key -> shape of the backbone's part of an official file.

    Args:
        arch: Dict of the fields of an Arch.
        kind: 'imagenet', 'detector' or 'segmentor'.
    """
    relative = arch['pos_embed'] == 'relative'
    dims, shapes = arch['embed_dims'], {}

    def affine(name, channels):
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (channels,)

    def linear(name, outputs, inputs):
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = (outputs, inputs), (outputs,)

    first = 'patch_embed' if relative else 'patch_embed1'
    shapes[f'{first}.proj.weight'] = (dims[0], 3, 4, 4)
    shapes[f'{first}.proj.bias'] = (dims[0],)
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
            shapes[f'{down}.dconv.weight'] = (dims[i + 1], dims[i], 2, 2)
            shapes[f'{down}.dconv.bias'] = (dims[i + 1],)
            shapes[f'{down}.dconv.conv_offset.weight'] = (8, dims[i], 2, 2)
            shapes[f'{down}.dconv.conv_offset.bias'] = (8,)
            affine(f'{down}.norm_layer', dims[i + 1])
            shapes[f'{down}.norm_layer.running_mean'] = (dims[i + 1],)
            shapes[f'{down}.norm_layer.running_var'] = (dims[i + 1],)
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

    Args:
        arch: Dict of the fields of an Arch.
        kind: 'imagenet', 'detector' or 'segmentor'.
        seed: Of the random numbers.
        dense: False draws only along the last axis and expands, which needs next to no
            memory. What is saved needs all of its numbers: `save_in_full`.
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
        saved = argparse.Namespace(model='lit_ti', lr=0.001)
        beside = (
            dict(args=saved) if family == 'absolute' else dict(config={'AMP': 'O1'})
        )
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
