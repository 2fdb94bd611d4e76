"""Test the conversion between the authors' layouts and mmlit's."""

import pytest
import torch

from mmlit import LIT
from mmlit.weights.convert import to_mmlit, to_official
from mmlit.weights.families import recognise
from support.official_files import (
    ABSOLUTE_MICRO,
    FAMILIES,
    OUR_TABLE,
    RELATIVE_MICRO,
    TABLE,
    official_shapes,
    official_state,
    same,
)


def trained(arch, **kwargs):
    """A LIT's state dict without an initial value left in it."""
    generator = torch.Generator().manual_seed(1)
    state = LIT(arch, **kwargs).state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = torch.rand(value.shape, generator=generator) - 0.3
    return state


@pytest.mark.parametrize('kind', ['imagenet', 'detector', 'segmentor'])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_source_key_is_used_or_listed(family, kind):
    arch = FAMILIES[family]
    state = official_state(arch, kind)
    done = to_mmlit(state)
    assert done.family == family
    used = [key for keys in done.sources.values() for key in keys]
    assert len(used) == len(set(used))
    whole = {key for key in done.dropped if done.dropped[key] != 'class-token slot'}
    assert set(used) | whole == set(state)
    assert not set(used) & whole
    expected = {'head', 'norm'} if kind == 'imagenet' else set()
    if family == 'absolute':
        expected |= {'class-token slot'} | ({'cls_token'} & {*state})
        assert done.dropped['pos_embed4'] == 'class-token slot'
    elif kind == 'imagenet':
        expected.add('relative_position_index')
    assert set(done.dropped.values()) == expected

    norms = {'segmentor': (0, 1, 2, 3), 'detector': (1, 2, 3)}.get(kind, ())
    img_size = {'imagenet': 224, 'detector': 800, 'segmentor': 512}[kind]
    norms = norms if family == 'relative' else ()
    net = LIT(arch, img_size=img_size, out_norm_indices=norms)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in done.state.items()} == shapes
    assert all(not v.dim() or v.is_contiguous() for v in done.state.values())


def test_precision_of_the_fold():
    state = official_state(RELATIVE_MICRO, 'detector')
    theirs, ours = 'layers.0.downsample', 'stages.1.downsample.norm.running_mean'
    exact = state[f'{theirs}.norm_layer.running_mean'].double()
    exact = exact - state[f'{theirs}.dconv.bias'].double()
    assert to_mmlit(state).state[ours].dtype == torch.float32
    assert torch.equal(to_mmlit(state).state[ours], exact.float())
    assert torch.equal(to_mmlit(state, fold_dtype=torch.float64).state[ours], exact)
    wide = {k: v.double() for k, v in state.items()}
    assert torch.equal(to_mmlit(wide).state[ours], exact)
    assert torch.equal(to_mmlit(wide, fold_dtype=torch.float32).state[ours], exact)


def test_embedding_loses_its_first_slot_only():
    flat = torch.randn(1, 50, 3)
    done = to_mmlit({'pos_embed4': flat})
    ours = done.state['stages.3.pos_embed.absolute_pos_embed']
    assert torch.equal(ours[0, 2, 3], flat[0, 1 + 2 * 7 + 3])
    without = to_mmlit({'pos_embed4': flat[:, 1:]})
    assert torch.equal(without.state['stages.3.pos_embed.absolute_pos_embed'], ours)
    assert without.dropped == {}
    with pytest.raises(ValueError, match=r'pos_embed3 has shape \(1, 197, 3\)'):
        to_mmlit({'pos_embed3': torch.randn(1, 197, 3)})


def test_tables_that_are_not_square():
    flat = torch.randn(27 * 49, 4)
    done = to_mmlit({TABLE: flat}, shapes={OUR_TABLE: (4, 27, 49)})
    assert torch.equal(done.state[OUR_TABLE][:, 3, 5], flat[3 * 49 + 5])
    with pytest.raises(ValueError, match=r'table has 1323 rows.*not the 25 x 49 built'):
        to_mmlit({TABLE: flat}, shapes={OUR_TABLE: (4, 25, 49)})
    with pytest.raises(ValueError, match='table has 1323 rows, which is no square'):
        to_mmlit({TABLE: flat})
    # As many rows as the network's table mean its shape, also if they are a square.
    square = to_mmlit({TABLE: flat[:225]}, shapes={OUR_TABLE: (4, 9, 25)})
    assert square.state[OUR_TABLE].shape == (4, 9, 25)
    foreign = to_mmlit({TABLE: flat[:225]}, shapes={OUR_TABLE: (4, 9, 49)})
    assert foreign.state[OUR_TABLE].shape == (4, 15, 15)


@pytest.mark.parametrize('family', FAMILIES)
def test_unknown_keys_raise(family):
    state = official_state(FAMILIES[family], 'imagenet')
    for unknown in ('layers.0.blocks.0.norm3.weight', 'block3.0.foo'):
        with pytest.raises(ValueError, match=f'unknown keys.*{family}.*: {unknown}'):
            to_mmlit({**state, unknown: torch.zeros(1)})
    foreign = {'relative': 'pos_embed1', 'absolute': 'norm1.weight'}[family]
    with pytest.raises(ValueError, match=foreign):
        to_mmlit({**state, foreign: torch.zeros(1)})


@pytest.mark.parametrize('lost', ['dconv.bias', 'norm_layer.running_mean'])
def test_bias_and_running_mean_need_each_other(lost):
    state = official_state(ABSOLUTE_MICRO, 'imagenet')
    del state[f'patch_embed3.{lost}']
    match = f'missing keys.*LIT with embed.*: patch_embed3.{lost} '
    with pytest.raises(ValueError, match=match):
        to_mmlit(state)


def test_what_is_no_official_state_dict_raises():
    with pytest.raises(ValueError, match="in mmlit's layout already"):
        to_mmlit(LIT(RELATIVE_MICRO).state_dict())
    with pytest.raises(ValueError, match='no backbone of the authors.*layer1.0.conv1'):
        to_mmlit({'layer1.0.conv1.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match='pos_embed1 holds a list, not a tensor'):
        to_mmlit({'pos_embed1': [1.0]})


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize(
    ('arch', 'kwargs'),
    [
        (RELATIVE_MICRO, dict(img_size=320)),
        (RELATIVE_MICRO, dict(img_size=64, out_norm_indices=(0, 1, 2, 3))),
        (RELATIVE_MICRO, dict(img_size=(224, 416), out_indices=(0, 2))),
        (ABSOLUTE_MICRO, {}),
    ],
)
def test_to_official_and_back_is_exact(arch, kwargs, prefix):
    state = {prefix + k: v for k, v in trained(arch, **kwargs).items()}
    if prefix:
        state['neck.fpn.weight'] = torch.randn(3)
    official = to_official(state, arch['pos_embed'])
    assert recognise(official) == (prefix, arch['pos_embed'])
    biases = [key for key in official if key.endswith('dconv.bias')]
    assert len(biases) == len([k for k in state if k.endswith('dconv.weight')]) > 0
    assert not any(official[key].any() for key in biases)
    if arch is ABSOLUTE_MICRO:
        assert official[f'{prefix}pos_embed4'].shape == (1, 50, 64)
        assert not official[f'{prefix}pos_embed4'][:, 0].any()
    shapes = {key: value.shape for key, value in state.items()}
    same(to_mmlit(official, shapes).state, state)
    if 'out_indices' not in kwargs:
        kind = 'segmentor' if 'out_norm_indices' in kwargs else 'detector'
        expected = {prefix + key for key in official_shapes(arch, kind)}
        assert official.keys() - {'neck.fpn.weight'} == expected
