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


@pytest.mark.parametrize('container', ['state_dict', 'model'])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_whole_checkpoint_is_unwrapped(container, prefix):
    state = {prefix + k: v for k, v in official('relative', 'imagenet').items()}
    direct, wrapped = relative(), relative()
    direct.load_state_dict(state)
    wrapped.load_state_dict({container: state, 'epoch': 3, 'args': object()})
    same(wrapped.state_dict(), direct.state_dict())


def test_inside_a_detector(said):
    detector = Detector(relative(img_size=800))
    direct = relative(img_size=800)
    direct.load_state_dict(official('relative', 'detector'))
    file = official_file(official('relative', 'detector'), 'detector')['state_dict']
    result = detector.load_state_dict(file, strict=False)
    assert all(key.startswith('neck.') for key in result.missing_keys)
    assert not any(key.startswith('backbone.') for key in result.unexpected_keys)
    same(detector.backbone.state_dict(), direct.state_dict())
    assert said == [f'{NAME}: 76 of 76 backbone parameters loaded'] * 2


def test_own_detector_file_into_a_bare_backbone(said):
    detector, bare = Detector(relative()), relative()
    bare.load_state_dict(detector.state_dict())
    same(bare.state_dict(), detector.backbone.state_dict())
    assert said == [f'{NAME}: 76 of 76 backbone parameters loaded; dropped: neck']


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


# --- weights of mmlit 0.1 ---------------------------------------------------------


#: Of the names of the micro networks' parameters, as 0.1 lists them.
ORDER_OF_0_1 = {
    'relative': '2d63048a9805a92ffb5cd80d4006ece8',
    'absolute': 'fd14527a0616a66ade87c9594ca120c6',
}


def old_names(state):
    """A state dict as mmlit 0.1 wrote it."""
    new = r'stages\.(\d)\.(patch_embed|downsample|pos_embed)\.'
    old = dict(patch_embed='enter', downsample='enter', pos_embed='position')
    return {
        re.sub(new, lambda m: f'stages.{m[1]}.{old[m[2]]}.', key): value
        for key, value in state.items()
    }


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


# --- another reference size -------------------------------------------------------


def test_tables_of_another_size_are_resized_once(said):
    net = relative(img_size=(160, 352))
    net.load_state_dict(official('relative', 'imagenet'))
    ours = net.state_dict()[OUR_TABLE]
    flat = official('relative', 'imagenet')[TABLE]
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


def test_embeddings_of_another_size_are_resized(said):
    state = official('absolute', 'imagenet')
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
    ours = net.stages[3].pos_embed.absolute_pos_embed
    assert torch.equal(ours, resized.permute(0, 2, 3, 1))
    assert '; 4 position parameters resized; dropped: class-token slot' in said[0]


def test_positions_are_resized_in_float64():
    table, embed = torch.randn(3, 13, 13), torch.randn(1, 7, 7, 5)
    state = {
        'x.attn.position_bias.relative_position_bias_table': table,
        'x.stages.3.pos_embed.absolute_pos_embed': embed,
    }
    shapes = dict(zip(state, [(3, 9, 31), (1, 4, 12, 5)]))
    fitted, resized = loading.resize_positions(
        {**state, 'y': embed}, {**shapes, 'y': (1, 2)}
    )
    assert sorted(resized) == sorted(state)
    assert fitted['y'] is embed

    def by_torch(image, size, mode):
        return torch.nn.functional.interpolate(
            image.double(), size=size, mode=mode, align_corners=False
        ).float()

    one, two = (fitted[key] for key in state)
    assert torch.equal(one, by_torch(table[None], (9, 31), 'bicubic')[0])
    image = by_torch(embed.permute(0, 3, 1, 2), (4, 12), 'bilinear')
    assert torch.equal(two, image.permute(0, 2, 3, 1))
    # What has the right size stays the very same; other heads or channels stay, too.
    others = dict(zip(state, [(4, 9, 9), (1, 4, 4, 6)]))
    for shapes in ({}, others, {key: value.shape for key, value in state.items()}):
        fitted, resized = loading.resize_positions(state, shapes)
        assert resized == [] and all(fitted[key] is state[key] for key in state)


# --- parts ------------------------------------------------------------------------


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
    assert said == [f'{NAME}: 1 of 76 backbone parameters loaded']


def test_nothing_at_all_is_said(said):
    Detector(relative()).load_state_dict({'neck.bias': torch.rand(2)}, strict=False)
    assert said == [f'{NAME}: no backbone parameters']


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
