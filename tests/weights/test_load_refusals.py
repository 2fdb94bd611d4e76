"""Test the weights that a LIT refuses, and what it says then."""

import dataclasses

import pytest
import torch

from mmlit import LIT
from mmlit.archs import ARCHS
from support.official_files import (
    ABSOLUTE_MICRO,
    NAME,
    TABLE,
    Detector,
    changed,
    official,
    official_state,
    relative,
    snapshot,
)


def refused(net, state, *words, strict=False):
    before = snapshot(net)
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state, strict=strict)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert changed(net, before) == set()
    return message


def test_truncated_official_file():
    running_var = 'layers.0.downsample.norm_layer.running_var'
    for lost in ('patch_embed.proj.weight', running_var, TABLE):
        state = official('relative', 'imagenet')
        del state[lost]
        begin = f'{NAME} cannot load a state dict'
        refused(relative(), state, begin, f'missing keys: {lost}')
    state = official('relative', 'imagenet')
    half = dict(list(state.items())[: len(state) // 2])
    lost = [key for key in half if key.endswith('downsample.dconv.bias')][-1]
    refused(relative(), half, 'missing keys: layers.2')
    del half[lost]
    refused(relative(), half, f': {lost} (', 'looks like LIT with')


def test_truncated_file_of_our_own():
    state = relative().state_dict()
    del state['stages.2.downsample.norm.running_var']
    refused(relative(), state, 'missing keys: stages.2.downsample.norm.running_var')


def test_output_norms_of_our_own_are_torchs_to_report():
    state = relative().state_dict()
    for key in [key for key in state if 'out_norm' in key]:
        del state[key]
    result = relative().load_state_dict(state, strict=False)
    assert len(result.missing_keys) == 6
    with pytest.raises(RuntimeError, match='Missing key'):
        relative().load_state_dict(state)


def test_unknown_official_key():
    state = {**official('relative', 'detector'), 'norm7.weight': torch.zeros(1)}
    refused(relative(img_size=800), state, 'unknown keys', ': norm7.weight')


@pytest.mark.parametrize('layout', ['official', 'own'])
def test_wrong_shape_names_key_and_shapes(layout):
    state, key = official('absolute', 'imagenet'), 'block3.1.attn.qkv.weight'
    if layout == 'own':
        state = LIT(ABSOLUTE_MICRO).state_dict()
        key = 'stages.2.blocks.1.attn.qkv.weight'
    state[key] = torch.zeros(60, 20)
    for part in (state, {key: state[key]}):
        refused(LIT(ABSOLUTE_MICRO), part, f'{key} is (60, 20), not (120, 40)')


def test_other_heads_and_what_is_no_tensor():
    state = {**official('relative', 'imagenet'), TABLE: torch.zeros(729, 3)}
    refused(relative(), state, f'{TABLE} is (729, 3), not (4, 27, 27)')
    key = 'stages.0.patch_embed.proj.bias'
    state = {**relative().state_dict(), key: [0.0]}
    refused(relative(), state, f'{key} holds a list, not a tensor')


def test_weights_of_another_network():
    words = 'no key of it is one of a LIT', 'conv1.weight'
    refused(relative(), {'conv1.weight': torch.zeros(1)}, *words)
    refused(Detector(relative()), {'backbone.conv1.weight': torch.zeros(1)}, *words)
    state = official('absolute', 'imagenet')
    words = 'looks like LIT with embed_dims (16, 32, 40, 64)', 'wrong shapes: '
    refused(relative(), state, *words, 'does not have: pos_embed1', 'missing keys: ')


@pytest.mark.parametrize('layout', ['official', 'own'])
@pytest.mark.parametrize(
    ('built', 'given'),
    [('small', 'medium'), ('medium', 'small'), ('small', 'base'), ('tiny', 'small')],
)
def test_file_of_another_arch(layout, built, given):
    with torch.device('meta'):
        net, other = LIT(built), LIT(given)
    state = other.state_dict()
    if layout == 'official':
        arch = dataclasses.asdict(ARCHS[given])
        state = official_state(arch, 'imagenet', dense=False)
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state, strict=False)
    begin = f'LIT {built} cannot load a state dict, which looks like LIT {given}: '
    assert str(caught.value).startswith(begin)
