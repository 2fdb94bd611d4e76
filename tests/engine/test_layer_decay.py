"""Layer-wise learning-rate decay on every arch: each layer's rate, and refusals."""

import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmlit import LIT
from mmlit.archs import ARCHS
from support import config_helpers
from support.archs import ABSOLUTE

RATE, LR, DECAY = 0.8, 1e-3, 0.05


def lit(arch=ABSOLUTE, **options):
    with torch.device('meta'):
        return LIT(arch, **options)


def optim_wrapper(model, optimizer=None, **paramwise):
    optimizer = optimizer or dict(type='AdamW', lr=LR, weight_decay=DECAY)
    config = dict(constructor='LITLayerDecayOptimWrapperConstructor')
    config.update(paramwise_cfg={'decay_rate': RATE, **paramwise}, optimizer=optimizer)
    return build_optim_wrapper(model, config)


def settings(model, wrapper):
    """Parameter group by name; each parameter that learns is in exactly one."""
    names = {id(param): name for name, param in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for param in group['params']:
            assert names[id(param)] not in found
            found[names[id(param)]] = group
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    return found


def scales(model, wrapper=None, lr=LR):
    wrapper = wrapper or optim_wrapper(model)
    return {n: group['lr'] / lr for n, group in settings(model, wrapper).items()}


def expected_depth(name, depths):
    """Return the layer by the parameter's name alone, other than `find_layers`."""
    _, stage, part, *rest = name.split('.')
    before = sum(depths[: int(stage)])
    if part in ('patch_embed', 'downsample', 'pos_embed'):
        return before + 1 if int(stage) else 0
    return before + (int(rest[0]) + 1 if part == 'blocks' else depths[int(stage)])


@pytest.mark.parametrize('arch', ARCHS)
def test_scales_of_every_arch(arch):
    model, depths = lit(arch), ARCHS[arch].depths
    found = scales(model)
    layers = {name: expected_depth(name, depths) for name in found}
    assert set(layers.values()) == set(range(sum(depths) + 1))
    for name, scale in found.items():
        assert math.isclose(scale, RATE ** (sum(depths) + 1 - layers[name])), name
    # Parameters are listed in the order of the forward pass.
    assert list(found.values()) == sorted(found.values())


def test_stages_that_are_not_built_do_not_count_and_frozen_ones_do():
    found = scales(model := lit('small', out_indices=(0, 1)))
    assert max(found.values()) == pytest.approx(RATE)
    assert min(found.values()) == pytest.approx(RATE**5)
    assert set(scales(model, optim_wrapper(model, decay_rate=1)).values()) == {1.0}
    # What is frozen is left out, and counted all the same: the rest keeps its rate.
    found = scales(lit('small', frozen_stages=2))
    assert not any(name.startswith(('stages.0', 'stages.1')) for name in found)
    assert found['stages.2.downsample.norm.weight'] == pytest.approx(RATE ** (13 - 5))


def test_offsets_and_decays_go_on_top():
    model = lit('tiny')
    options = dict(dcn_offset_lr_mult=0.01, norm_decay_mult=0.0, bias_decay_mult=0.5)
    custom = {'absolute_pos_embed': dict(lr_mult=3.0, decay_mult=0.1)}
    wrapper = optim_wrapper(model, custom_keys=custom, **options)
    groups, plain = settings(model, wrapper), scales(model)
    for name, group in groups.items():
        factor, decay = 1.0, 1.0
        if 'absolute_pos_embed' in name:
            factor, decay = 3.0, 0.1
        elif 'conv_offset' in name:
            factor = 0.01
        elif 'norm' in name or name.endswith('.bias'):
            decay = 0.0 if 'norm' in name else 0.5
        assert math.isclose(group['lr'], LR * plain[name] * factor), name
        wanted = DECAY * decay
        assert math.isclose(group.get('weight_decay', DECAY), wanted), name
    # Few groups, each of one layer: not one per parameter, as mmengine's own.
    kinds = {(g['lr'], g['weight_decay']) for g in groups.values()}
    assert len(kinds) == len(wrapper.optimizer.param_groups) < 60 < len(groups)


class Model(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize('name', ['retinanet_lit-s', 'retinanet_lit-ti'])
def test_retinanet_of_the_configs(name):
    pytest.importorskip('mmdet', reason='the detection configs build on mmdet')
    cfg = config_helpers.load('detection', f'{name}_fpn_1x_coco.py')
    model = config_helpers.build_without_data(cfg)
    depths = ARCHS[cfg.model.backbone.arch].depths
    default = settings(model, build_optim_wrapper(model, cfg.optim_wrapper))
    cfg.optim_wrapper.constructor = 'LITLayerDecayOptimWrapperConstructor'
    cfg.optim_wrapper.setdefault('paramwise_cfg', {}).update(
        decay_rate=RATE, dcn_offset_lr_mult=0.5
    )
    decayed = settings(model, build_optim_wrapper(model, cfg.optim_wrapper))
    lr = cfg.optim_wrapper.optimizer.lr
    for key, group in decayed.items():
        assert group['weight_decay'] == default[key]['weight_decay'], key
        scale = 1.0
        if key.startswith('backbone.'):
            depth = expected_depth(key[len('backbone.') :], depths)
            scale = RATE ** (sum(depths) + 1 - depth)
        if 'conv_offset' in key:
            scale *= 0.5
        assert math.isclose(group['lr'], lr * scale), key
    spared = any(group['weight_decay'] == 0 for group in decayed.values())
    assert spared == (name == 'retinanet_lit-s')


def test_two_lits_of_different_depth_and_a_head():
    teacher, head = Model(backbone=lit()), nn.Linear(2, 2)
    model = Model(teacher=teacher, backbone=lit('tiny'), head=head)
    found, first = scales(model), 'backbone.stages.0.patch_embed.proj.weight'
    assert found['head.weight'] == 1.0
    assert found[f'teacher.{first}'] == pytest.approx(RATE**6)
    assert found[first] == pytest.approx(RATE**17)


def test_shared_parameters_are_counted_once_and_no_lit_is_refused():
    shared = lit()
    model = Model(backbone=shared, student=Model(backbone=shared), head=nn.Linear(2, 2))
    model.head.weight = shared.stages[3].blocks[0].mlp.fc1.weight
    found = scales(model)
    assert found['backbone.stages.3.blocks.0.mlp.fc1.weight'] == pytest.approx(RATE)
    with pytest.raises(ValueError, match='^Model has no LIT.*Default'):
        optim_wrapper(Model(backbone=nn.Linear(2, 2)))


def test_table(monkeypatch):
    logged = []
    where = 'mmlit.engine.layer_decay.print_log'
    monkeypatch.setattr(where, lambda text, logger: logged.append(text))
    model = Model(backbone=lit(), head=nn.Linear(2, 3))
    wrapper = optim_wrapper(model, norm_decay_mult=0.0)
    (text,) = logged
    title, headings, *rows = text.splitlines()
    assert '0.8' in title and f'{len(rows)} parameter groups' in title
    assert headings.split() == 'layer scale lr decay tensors parameters such as'.split()
    assert len(rows) == len(wrapper.optimizer.param_groups)
    cells = [row.split() for row in rows]
    order = [99 if row[0] == 'other' else int(row[0]) for row in cells]
    assert order == sorted(order)
    sizes = [p.numel() for p in model.parameters()]
    assert sum(int(row[4]) for row in cells) == len(sizes)
    assert sum(int(row[5].replace(',', '')) for row in cells) == sum(sizes)
    assert cells[-1] == 'other 1 0.001 0.05 2 9 head.weight'.split()
    assert cells[0][:5] == ['0', '0.2621', '0.0002621', '0.05', '3']
    assert cells[0][6] == 'backbone.stages.0.patch_embed.proj.weight'


@pytest.mark.parametrize(
    ('paramwise', 'error', 'message'),
    [
        (dict(decay_rat=0.9), ValueError, 'paramwise_cfg.decay_rat is unknown'),
        (dict(norm_decay_mul=0.0), ValueError, 'norm_decay_mult'),
        (dict(num_layers=12), ValueError, 'num_layers is unknown.*counted in the'),
        (dict(decay_rate=0.0), ValueError, r'decay_rate=0.0 must lie in \(0, 1\]'),
        (dict(decay_rate=1.1), ValueError, 'decay_rate=1.1'),
        (dict(decay_rate=True), TypeError, 'decay_rate=True must be a number'),
    ],
)
def test_options_out_of_order(paramwise, error, message):
    with pytest.raises(error, match=message):
        optim_wrapper(lit(), **paramwise)


def test_missing_options():
    for paramwise in (None, {}, dict(norm_decay_mult=1.0)):
        optimizer = dict(type='AdamW', lr=LR, weight_decay=DECAY)
        config = dict(optimizer=optimizer, paramwise_cfg=paramwise)
        config['constructor'] = 'LITLayerDecayOptimWrapperConstructor'
        with pytest.raises(ValueError, match='needs paramwise_cfg.decay_rate'):
            build_optim_wrapper(lit(), config)
    with pytest.raises(ValueError, match='optimizer.lr is missing'):
        optim_wrapper(lit(), dict(type='AdamW'))
