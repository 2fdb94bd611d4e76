"""Test the loading of weights of every layout, prefix and container."""

import copy
import hashlib
import re

import pytest
import torch
from mmengine.model import ExponentialMovingAverage

from mmlit import LIT
from mmlit.weights import load as loading
from support.official_files import (
    ABSOLUTE_MICRO,
    FAMILIES,
    NAME,
    OUR_TABLE,
    TABLE,
    Detector,
    changed,
    official,
    official_file,
    relative,
    same,
    snapshot,
)

# --- the layouts, under any prefix, in any container ------------------------------


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'a.b.'])
@pytest.mark.parametrize('family', FAMILIES)
def test_bare_backbone_takes_any_prefix(said, family, prefix):
    direct, wrapped = (LIT(FAMILIES[family], img_size=224) for _ in range(2))
    state = official(family, 'imagenet')
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
    for container in ('state_dict', 'model'):
        whole = LIT(FAMILIES[family], img_size=224)
        whole.load_state_dict({container: file, 'epoch': 3, 'args': object()})
        same(whole.state_dict(), direct.state_dict())


def test_inside_a_detector(said):
    detector = Detector(relative(img_size=800))
    direct = relative(img_size=800)
    direct.load_state_dict(official('relative', 'detector'))
    file = official_file(official('relative', 'detector'), 'detector')['state_dict']
    result = detector.load_state_dict(file, strict=False)
    assert all(key.startswith('neck.') for key in result.missing_keys)
    assert not any(key.startswith('backbone.') for key in result.unexpected_keys)
    same(detector.backbone.state_dict(), direct.state_dict())
    bare = relative(img_size=800)
    bare.load_state_dict(detector.state_dict())
    same(bare.state_dict(), direct.state_dict())
    loaded = f'{NAME}: 76 of 76 backbone parameters loaded'
    assert said == [loaded, loaded, f'{loaded}; dropped: neck']


@pytest.mark.parametrize('arch', FAMILIES.values(), ids=FAMILIES)
def test_own_weights_pass_through_quietly(said, arch):
    source, target = LIT(arch), LIT(arch)
    state = source.state_dict()
    loading.prepare_state_dict(target, handed := dict(state), '')
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


def test_float64_gets_the_exact_running_mean():
    net = relative().double()
    state = official('relative', 'imagenet')
    net.load_state_dict(state)
    mean = state['layers.0.downsample.norm_layer.running_mean'].double()
    bias = state['layers.0.downsample.dconv.bias'].double()
    assert torch.equal(net.stages[1].downsample.norm.running_mean, mean - bias)


def test_missing_batch_counts_are_no_matter():
    state = official('absolute', 'imagenet')
    for file in (state, {k: v for k, v in LIT(ABSOLUTE_MICRO).state_dict().items()}):
        less = {k: v for k, v in file.items() if 'num_batches_tracked' not in k}
        assert len(less) == len(file) - 3
        LIT(ABSOLUTE_MICRO).load_state_dict(less)


#: Of the names of the micro networks' parameters, as 0.1 lists them.
ORDER_OF_0_1 = dict(
    relative='2d63048a9805a92ffb5cd80d4006ece8',
    absolute='fd14527a0616a66ade87c9594ca120c6',
)


def old_names(state):
    """A state dict as mmlit 0.1 wrote it."""
    new = r'stages\.(\d)\.(patch_embed|downsample|pos_embed)\.'
    old = dict(patch_embed='enter', downsample='enter', pos_embed='position')

    def rename(match):
        return f'stages.{match[1]}.{old[match[2]]}.'

    return {re.sub(new, rename, key): value for key, value in state.items()}


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('family', FAMILIES)
def test_whole_file_of_0_1(said, family, prefix):
    source, target = LIT(FAMILIES[family]), LIT(FAMILIES[family])
    old = old_names(source.state_dict())
    assert 'stages.0.enter.proj.weight' in old and 'stages.1.enter.norm.bias' in old
    assert ('stages.3.position.absolute_pos_embed' in old) == (family == 'absolute')
    whole = Detector(target) if prefix else target
    file = {prefix + key: value for key, value in old.items()}
    if prefix:
        file.update({f'neck.{k}': v for k, v in whole.neck.state_dict().items()})
    whole.load_state_dict(file)  # strict
    same(target.state_dict(), source.state_dict())
    assert said == []


def test_part_of_a_file_of_0_1(said):
    net = LIT(ABSOLUTE_MICRO)
    before = snapshot(net)
    part = {
        'stages.1.enter.norm.bias': torch.rand(32),
        'stages.2.enter.dconv.conv_offset.bias': torch.rand(8),
        'stages.3.position.absolute_pos_embed': torch.rand(1, 7, 7, 64),
    }
    net.load_state_dict(part, strict=False)
    assert changed(net, before) == {
        'stages.1.downsample.norm.bias',
        'stages.2.downsample.dconv.conv_offset.bias',
        'stages.3.pos_embed.absolute_pos_embed',
    }
    with pytest.raises(ValueError, match=r'stages.1.downsample.norm.bias is \(3,\)'):
        net.load_state_dict({'stages.1.enter.norm.bias': torch.zeros(3)}, strict=False)


@pytest.mark.parametrize(('family', 'order'), ORDER_OF_0_1.items())
def test_training_of_0_1_resumes(family, order):
    """Optimizers keep their state by the parameters' order, which has not changed."""
    net, resumed = LIT(FAMILIES[family]), LIT(FAMILIES[family])
    names = ' '.join(old_names(dict(net.named_parameters())))
    assert hashlib.md5(names.encode()).hexdigest() == order
    optimizer = torch.optim.AdamW(net.parameters())
    sum(p.square().sum() for p in net.parameters()).backward()
    optimizer.step()
    resumed.load_state_dict(old_names(net.state_dict()))
    other = torch.optim.AdamW(resumed.parameters())
    other.load_state_dict(optimizer.state_dict())
    for one, two in zip(net.parameters(), resumed.parameters()):
        assert torch.equal(one, two)
        assert torch.equal(optimizer.state[one]['exp_avg'], other.state[two]['exp_avg'])


def interpolate(image, size, mode):
    """In float64, rounded to float32."""
    how = dict(size=size, mode=mode, align_corners=False)
    return torch.nn.functional.interpolate(image.double(), **how).float()


def test_tables_of_another_size_are_resized_once(said):
    net = relative(img_size=(160, 352))
    net.load_state_dict(official('relative', 'imagenet'))
    ours = net.state_dict()[OUR_TABLE]
    flat = official('relative', 'imagenet')[TABLE]
    image = flat.t().reshape(1, 4, 27, 27)
    assert torch.equal(ours, interpolate(image, (19, 43), 'bicubic')[0])
    assert '; 3 position parameters resized' in said[0]
    # The same for weights of our own.
    second = relative(img_size=800)
    second.load_state_dict(net.state_dict())
    assert second.state_dict()[OUR_TABLE].shape == (4, 99, 99)
    assert '; 3 position parameters resized' in said[1]


def test_embeddings_of_another_size_are_resized(said):
    state = official('absolute', 'imagenet')
    for i, side in enumerate((96, 48, 24, 12)):
        shape = 1, side**2 + (i == 3), ABSOLUTE_MICRO['embed_dims'][i]
        state[f'pos_embed{i + 1}'] = torch.rand(shape)
    net = LIT(ABSOLUTE_MICRO)
    net.load_state_dict(state)
    image = state['pos_embed4'][:, 1:].reshape(1, 12, 12, 64).permute(0, 3, 1, 2)
    resized = interpolate(image, (7, 7), 'bilinear').permute(0, 2, 3, 1)
    assert torch.equal(net.stages[3].pos_embed.absolute_pos_embed, resized)
    assert '; 4 position parameters resized; dropped: class-token slot' in said[0]


def test_what_cannot_be_resized_stays():
    """As does what has the right size already: the very same tensors."""
    state = {
        'x.attn.position_bias.relative_position_bias_table': torch.randn(3, 13, 13),
        'x.stages.3.pos_embed.absolute_pos_embed': torch.randn(1, 7, 7, 5),
        'y': torch.randn(1, 7),
    }
    others = dict(zip(state, [(4, 9, 9), (1, 4, 4, 6), (1, 2)]))
    for shapes in ({}, others, {key: value.shape for key, value in state.items()}):
        fitted, resized = loading.resize_positions(state, shapes)
        assert resized == [] and all(fitted[key] is state[key] for key in state)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_partial_official_dict(said, prefix):
    net = relative(img_size=800)
    before = snapshot(net)
    part = {
        f'{prefix}norm1.weight': torch.rand(48),
        f'{prefix}norm3.bias': torch.rand(192),
        f'{prefix}{TABLE}': official('relative', 'imagenet')[TABLE],
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
    Detector(relative()).load_state_dict({'neck.bias': torch.rand(2)}, strict=False)
    nothing = f'{NAME}: no backbone parameters'
    assert said == [f'{NAME}: 1 of 76 backbone parameters loaded', nothing]


@pytest.mark.parametrize('layout', ['official', 'own'])
def test_what_this_network_does_not_have_is_dropped_and_said(said, layout):
    net = relative(img_size=512, out_indices=(0, 2), out_norm_indices=(2,))
    state = official('relative', 'segmentor')
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
