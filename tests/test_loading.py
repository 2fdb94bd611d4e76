"""Weights on their way into a LIT: every layout, every loader, and what is refused."""

import copy
import dataclasses

import pytest
import torch
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from official_files import (
    ABSOLUTE_MICRO,
    IMG_SIZES,
    RELATIVE_MICRO,
    official_file,
    official_state,
)

from mmlit import LIT, loading, read_checkpoint
from mmlit.archs import ARCHS

FAMILIES = {'relative': RELATIVE_MICRO, 'absolute': ABSOLUTE_MICRO}
NAME = 'LIT of embed_dims (24, 48, 96, 192), depths (1, 1, 2, 1)'
TABLE = 'layers.2.blocks.0.attn.relative_position_bias_table'
OUR_TABLE = 'stages.2.blocks.0.attn.position_bias.relative_position_bias_table'


class Detector(BaseModule):
    """As much of a detector as loading needs."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = torch.nn.Linear(2, 2)


@pytest.fixture
def said(monkeypatch):
    """The lines that loading logs."""
    lines = []
    monkeypatch.setattr(loading, 'print_log', lambda text, **_: lines.append(text))
    return lines


@pytest.fixture(scope='module')
def official():
    """State dicts under official keys by family and kind."""
    return {
        (family, kind): official_state(arch, kind)
        for family, arch in FAMILIES.items()
        for kind in IMG_SIZES
    }


def relative(**kwargs):
    return LIT(RELATIVE_MICRO, **{'img_size': 224, **kwargs})


def snapshot(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net, before):
    now = net.state_dict()
    return {key for key in now if not torch.equal(now[key], before[key])}


def same(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


# --- the layouts, under any prefix, in any container ------------------------------


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'a.b.'])
@pytest.mark.parametrize('family', FAMILIES)
def test_bare_backbone_takes_any_prefix(official, said, family, prefix):
    direct, wrapped = (LIT(FAMILIES[family], img_size=224) for _ in range(2))
    state = official[family, 'imagenet']
    before = snapshot(direct)
    result = direct.load_state_dict(state)
    assert result.missing_keys == [] and result.unexpected_keys == []
    kept = {key for key in before if 'out_norm' in key}
    assert changed(direct, before) == before.keys() - kept
    file = {prefix + key: value for key, value in state.items()}
    if prefix:
        file['neck.conv.weight'] = torch.zeros(1)
    given = dict(file)
    wrapped.load_state_dict(file)
    same(wrapped.state_dict(), direct.state_dict())
    assert file.keys() == given.keys() and all(file[k] is given[k] for k in file)
    assert ('neck' in said[1]) == bool(prefix)


@pytest.mark.parametrize('container', ['state_dict', 'model'])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_whole_checkpoint_is_unwrapped(official, container, prefix):
    state = {prefix + k: v for k, v in official['relative', 'imagenet'].items()}
    direct, wrapped = relative(), relative()
    direct.load_state_dict(state)
    wrapped.load_state_dict({container: state, 'epoch': 3, 'args': object()})
    same(wrapped.state_dict(), direct.state_dict())


def test_inside_a_detector(official, said):
    detector = Detector(relative(img_size=800))
    direct = relative(img_size=800)
    direct.load_state_dict(official['relative', 'detector'])
    file = official_file(official['relative', 'detector'], 'detector')['state_dict']
    result = detector.load_state_dict(file, strict=False)
    assert all(key.startswith('neck.') for key in result.missing_keys)
    assert not any(key.startswith('backbone.') for key in result.unexpected_keys)
    same(detector.backbone.state_dict(), direct.state_dict())
    assert said == [f'{NAME}: 76 of 76 backbone parameters from a state dict'] * 2


def test_own_detector_file_into_a_bare_backbone(said):
    detector, bare = Detector(relative()), relative()
    bare.load_state_dict(detector.state_dict())
    same(bare.state_dict(), detector.backbone.state_dict())
    assert said == [
        f'{NAME}: 76 of 76 backbone parameters from a state dict; dropped: neck'
    ]


@pytest.mark.parametrize('arch', FAMILIES.values(), ids=FAMILIES)
def test_own_weights_pass_through_quietly(said, arch):
    source, target = LIT(arch), LIT(arch)
    state = source.state_dict()
    loading.prepare_state_dict(target, handed := dict(state), '', {'version': 1})
    assert all(handed[key] is state[key] for key in state)
    target.load_state_dict(state)
    same(target.state_dict(), state)
    ema = ExponentialMovingAverage(Detector(target))
    resumed = ExponentialMovingAverage(Detector(LIT(arch)))
    resumed.load_state_dict(ema.state_dict())
    same(resumed.state_dict(), ema.state_dict())
    copied = copy.deepcopy(target)
    copied.load_state_dict({f'module.{k}': v for k, v in state.items()})
    assert said == []


def test_a_copy_fills_itself(official):
    net = relative()
    copied = copy.deepcopy(net)
    before = snapshot(net)
    copied.load_state_dict(official['relative', 'imagenet'])
    assert changed(net, before) == set()
    assert len(changed(copied, before)) == len(before) - 6


def test_float64_gets_the_exact_running_mean(official):
    net = relative().double()
    state = official['relative', 'imagenet']
    net.load_state_dict(state)
    mean = state['layers.0.downsample.norm_layer.running_mean'].double()
    bias = state['layers.0.downsample.dconv.bias'].double()
    assert torch.equal(net.stages[1].enter.norm.running_mean, mean - bias)


def test_missing_batch_counts_are_no_matter(official):
    state = official['absolute', 'imagenet']
    for file in (state, {k: v for k, v in LIT(ABSOLUTE_MICRO).state_dict().items()}):
        less = {k: v for k, v in file.items() if 'num_batches_tracked' not in k}
        assert len(less) == len(file) - 3
        LIT(ABSOLUTE_MICRO).load_state_dict(less)


# --- another reference size -------------------------------------------------------


def test_tables_of_another_size_are_resized_once(official, said):
    net = relative(img_size=(160, 352))
    net.load_state_dict(official['relative', 'imagenet'])
    ours = net.state_dict()[OUR_TABLE]
    flat = official['relative', 'imagenet'][TABLE]
    image = flat.t().reshape(1, 4, 27, 27).double()
    resized = torch.nn.functional.interpolate(
        image, size=(19, 43), mode='bicubic', align_corners=False
    )[0].float()
    assert torch.equal(ours, resized)
    assert '; 3 position parameters resized' in said[0]
    # The same for weights of our own.
    second = relative(img_size=800)
    second.load_state_dict(net.state_dict())
    assert second.state_dict()[OUR_TABLE].shape == (4, 99, 99)
    assert '; 3 position parameters resized' in said[1]


def test_embeddings_of_another_size_are_resized(official, said):
    state = dict(official['absolute', 'imagenet'])
    for i, side in enumerate((96, 48, 24, 12)):
        rows = side**2 + (i == 3)
        dims = ABSOLUTE_MICRO['embed_dims'][i]
        state[f'pos_embed{i + 1}'] = torch.rand(1, rows, dims)
    net = LIT(ABSOLUTE_MICRO)
    net.load_state_dict(state)
    image = state['pos_embed4'][:, 1:].reshape(1, 12, 12, 64).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        image.double(), size=(7, 7), mode='bilinear', align_corners=False
    ).float()
    ours = net.stages[3].position.absolute_pos_embed
    assert torch.equal(ours, resized.permute(0, 2, 3, 1))
    assert '; 4 position parameters resized; dropped: class-token slot' in said[0]


# --- parts ------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_partial_official_dict(official, said, prefix):
    net = relative(img_size=800)
    before = snapshot(net)
    part = {
        f'{prefix}norm1.weight': torch.rand(48),
        f'{prefix}norm3.bias': torch.rand(192),
        f'{prefix}{TABLE}': official['relative', 'imagenet'][TABLE],
        f'{prefix}head.weight': torch.rand(3),
    }
    result = net.load_state_dict(part, strict=False)
    filled = {'stages.1.out_norm.weight', 'stages.3.out_norm.bias', OUR_TABLE}
    assert changed(net, before) == filled
    missing = {key for key in before if 'num_batches_tracked' not in key} - filled
    assert set(result.missing_keys) == missing
    assert torch.equal(net.stages[1].out_norm.weight, part[f'{prefix}norm1.weight'])
    assert said[0].startswith(f'{NAME}: 3 of 76 backbone parameters')
    assert said[0].endswith('; 1 position parameters resized; dropped: head')
    with pytest.raises(RuntimeError, match='Missing key'):
        net.load_state_dict(part)


def test_partial_own_dict(said):
    net = relative()
    before = snapshot(net)
    net.load_state_dict({'stages.3.blocks.0.mlp.fc2.bias': torch.rand(192)}, False)
    assert changed(net, before) == {'stages.3.blocks.0.mlp.fc2.bias'}
    assert said == [f'{NAME}: 1 of 76 backbone parameters from a state dict']


def test_nothing_at_all_is_said(said):
    Detector(relative()).load_state_dict({'neck.bias': torch.rand(2)}, strict=False)
    assert said == [f'{NAME}: no backbone parameters in a state dict']


@pytest.mark.parametrize('layout', ['official', 'own'])
def test_what_this_network_does_not_have_is_dropped_and_said(official, said, layout):
    net = relative(img_size=512, out_indices=(0, 2), out_norm_indices=(2,))
    state = official['relative', 'segmentor']
    if layout == 'own':
        full = relative(img_size=512, out_norm_indices=(0, 1, 2, 3))
        full.load_state_dict(state)
        state = full.state_dict()
        said.clear()
    net.load_state_dict(state)
    total = len(list(net.parameters()))
    (line,) = said
    assert f': {total} of {total} backbone parameters' in line
    dropped = line.split('; dropped: ')[1].split(', ')
    assert sorted(dropped) == ['output norm 0', 'output norm 1', 'stage 3']


# --- what is refused --------------------------------------------------------------


def refused(net, state, *words, strict=False):
    before = snapshot(net)
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state, strict=strict)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert changed(net, before) == set()
    return message


@pytest.mark.parametrize(
    'lost',
    [
        'patch_embed.proj.weight',
        'layers.3.blocks.0.mlp.fc2.bias',
        'layers.0.downsample.norm_layer.running_var',
        TABLE,
    ],
)
def test_truncated_official_file(official, lost):
    state = dict(official['relative', 'imagenet'])
    del state[lost]
    refused(
        relative(), state, f'{NAME} cannot load a state dict', f'missing keys: {lost}'
    )


def test_truncated_file_of_our_own():
    state = relative().state_dict()
    del state['stages.2.enter.norm.running_var']
    refused(relative(), state, 'missing keys: stages.2.enter.norm.running_var')
    with pytest.raises(ValueError):
        relative().load_state_dict(state)


def test_output_norms_of_our_own_are_torchs_to_report():
    state = relative().state_dict()
    for key in [key for key in state if 'out_norm' in key]:
        del state[key]
    result = relative().load_state_dict(state, strict=False)
    assert len(result.missing_keys) == 6
    with pytest.raises(RuntimeError, match='Missing key'):
        relative().load_state_dict(state)


@pytest.mark.parametrize('key', ['norm7.weight', 'layers.0.blocks.0.gamma', 'extra'])
def test_unknown_official_key(official, key):
    state = {**official['relative', 'detector'], key: torch.zeros(1)}
    refused(relative(img_size=800), state, 'unknown keys', f': {key}')


@pytest.mark.parametrize('layout', ['official', 'own'])
def test_wrong_shape_names_key_and_shapes(official, layout):
    state, key = dict(official['absolute', 'imagenet']), 'block3.1.attn.qkv.weight'
    if layout == 'own':
        state = LIT(ABSOLUTE_MICRO).state_dict()
        key = 'stages.2.blocks.1.attn.qkv.weight'
    state[key] = torch.zeros(60, 20)
    for part in (state, {key: state[key]}):
        refused(LIT(ABSOLUTE_MICRO), part, f'{key} is (60, 20), not (120, 40)')


def test_other_heads_are_a_wrong_shape(official):
    state = {**official['relative', 'imagenet'], TABLE: torch.zeros(729, 3)}
    refused(relative(), state, f'{TABLE} is (729, 3), not (4, 27, 27)')


def test_what_is_no_tensor():
    state = {**relative().state_dict(), 'stages.0.enter.proj.bias': [0.0]}
    refused(relative(), state, 'stages.0.enter.proj.bias holds a list, not a tensor')


@pytest.mark.parametrize('inside', [True, False])
def test_weights_of_another_network(inside):
    state = {'conv1.weight': torch.zeros(1), 'layer1.0.conv1.weight': torch.zeros(1)}
    net = relative()
    if inside:
        net = Detector(net)
        state = {f'backbone.{key}': value for key, value in state.items()}
    refused(net, state, 'no key of it is one of a LIT', 'conv1.weight')


def test_other_family(official):
    state = official['absolute', 'imagenet']
    words = 'looks like LIT with embed_dims (16, 32, 40, 64)', 'wrong shapes: '
    refused(relative(), state, *words, 'does not have: pos_embed1', 'missing keys: ')


@pytest.mark.parametrize('layout', ['official', 'own'])
@pytest.mark.parametrize(
    ('built', 'given'),
    [('small', 'medium'), ('medium', 'small'), ('small', 'base'), ('tiny', 'small')],
)
def test_file_of_another_arch(layout, built, given):
    if layout == 'official':
        arch = dataclasses.asdict(ARCHS[given])
        state = official_state(arch, 'imagenet', dense=False)
    else:
        state = empty_lit(given).state_dict()
    net = empty_lit(built)
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state, strict=False)
    begin = f'LIT {built} cannot load a state dict, which looks like LIT {given}: '
    assert str(caught.value).startswith(begin)


def test_source_is_named(official, said):
    state = torch.nn.modules.module.OrderedDict(official['relative', 'imagenet'])
    state._metadata = {'': {'source': 'lit_x.pth'}}
    relative().load_state_dict(state)
    assert said[0].startswith(f'{NAME}: 70 of 70 backbone parameters from lit_x.pth; ')
    relative().load_state_dict({'model': state})
    assert said[1] == said[0]
    del state['patch_embed.proj.bias']
    refused(relative(), state, f'{NAME} cannot load lit_x.pth, ')


# --- full-size stand-ins ----------------------------------------------------------


def empty_lit(arch, **kwargs):
    """A LIT of which every number is not a number, to see that all are filled."""
    with torch.device('meta'):
        net = LIT(arch, **kwargs)
    net.to_empty(device='cpu')
    for value in net.state_dict().values():
        value.fill_(float('nan') if value.is_floating_point() else -1)
    return net


COUNTS = {'tiny': 173, 'small': 147, 'medium': 303, 'base': 303}


@pytest.mark.parametrize('kind', IMG_SIZES)
@pytest.mark.parametrize('name', ARCHS)
def test_released_files_fill_everything(tmp_path, said, name, kind):
    arch = dataclasses.asdict(ARCHS[name])
    state = official_state(arch, kind, dense=False)
    file = tmp_path / f'{name}_{kind}.pth'
    torch.save(official_file(state, kind, arch['pos_embed']), file)
    relative = arch['pos_embed'] == 'relative'
    norms = {'detector': (1, 2, 3), 'segmentor': (0, 1, 2, 3)}.get(kind, ())
    norms = norms if relative else ()
    net = empty_lit(
        name, img_size=800 if kind == 'imagenet' else IMG_SIZES[kind],
        out_norm_indices=norms,
    )  # fmt: skip
    result = net.load_state_dict(read_checkpoint(file))
    assert result.missing_keys == [] and result.unexpected_keys == []
    for key, value in net.state_dict().items():
        assert torch.isfinite(value).all() and (value.dim() or value == 7), key
    total = COUNTS[name] + 2 * len(norms)
    expected = f'LIT {name}: {total} of {total} backbone parameters from {file.name}'
    assert said[-1].startswith(expected), said
    assert 'initialisation' not in said[-1]
    # Spot checks, by the rows that the stand-in is made of.
    last = net.stages[2].blocks[-1].mlp.fc1.weight
    theirs = 'layers.2.blocks' if relative else 'block3'
    row = state[f'{theirs}.{arch["depths"][2] - 1}.mlp.fc1.weight']
    assert torch.equal(last.data, row)
    if relative:
        table = state[f'{theirs}.0.attn.relative_position_bias_table'][0]
        ours = net.stages[2].blocks[0].attn.position_bias.relative_position_bias_table
        assert torch.allclose(ours[:, 0, 0], table) and ours.shape[0] == len(table)


# --- through mmengine -------------------------------------------------------------


def test_pretrained_init_keeps_output_norms_at_their_start(tmp_path, official, said):
    file = tmp_path / 'lit_x.pth'
    torch.save(official_file(official['relative', 'imagenet'], 'imagenet'), file)
    net = relative(init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    Detector(net).init_weights()
    direct = relative()
    direct.load_state_dict(official['relative', 'imagenet'])
    for key, value in net.state_dict().items():
        if 'out_norm' in key:
            assert (value == float(key.endswith('weight'))).all()
        else:
            assert torch.equal(value, direct.state_dict()[key]), key
    assert said[0] == (
        f'{NAME}: 70 of 70 backbone parameters from lit_x.pth; output norms 1, 2, 3 '
        'stay at initialisation; dropped: relative_position_index, norm, head'
    )


def test_pretrained_init_by_prefix(tmp_path, official):
    file = tmp_path / 'detector.pth'
    torch.save(official_file(official['absolute', 'detector'], 'detector'), file)
    init_cfg = dict(type='Pretrained', checkpoint=str(file), prefix='backbone')
    net = LIT(ABSOLUTE_MICRO, init_cfg=init_cfg)
    net.init_weights()
    direct = LIT(ABSOLUTE_MICRO)
    direct.load_state_dict(official['absolute', 'detector'])
    same(net.state_dict(), direct.state_dict())


@pytest.mark.parametrize('family', FAMILIES)
def test_load_checkpoint_of_a_detector(tmp_path, capfd, official, said, family):
    file = tmp_path / 'detector.pth'
    torch.save(official_file(official[family, 'detector'], 'detector'), file)
    detector = Detector(LIT(FAMILIES[family], img_size=800))
    load_checkpoint(detector, str(file))
    direct = LIT(FAMILIES[family], img_size=800)
    direct.load_state_dict(official[family, 'detector'])
    same(detector.backbone.state_dict(), direct.state_dict())
    assert 'from detector.pth' in said[0]
    # What mmengine reports is the stand-in's neck and head, and no backbone key.
    assert 'backbone' not in capfd.readouterr().out


def test_mmengine_does_not_hide_a_refusal(tmp_path, official):
    state = dict(official['relative', 'imagenet'])
    del state['patch_embed.norm.bias']
    file = tmp_path / 'cut.pth'
    torch.save(official_file(state, 'imagenet'), file)
    net = relative(init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    with pytest.raises(ValueError, match='cannot load cut.pth.*patch_embed.norm.bias'):
        net.init_weights()
