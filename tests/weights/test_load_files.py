"""Test checkpoint files of every arch, and mmengine's ways to load them."""

import dataclasses

import pytest
import torch
from mmengine.runner import load_checkpoint

from mmlit import LIT, read_checkpoint
from mmlit.archs import ARCHS
from support.official_files import (
    FAMILIES,
    IMG_SIZES,
    NAME,
    Detector,
    empty_lit,
    official,
    official_file,
    official_state,
    relative,
    same,
    save_in_full,
)

COUNTS = {'tiny': 173, 'small': 147, 'medium': 303, 'base': 303}
FILES = [(name, kind) for name in ARCHS for kind in IMG_SIZES]
QUICK = ('tiny', 'imagenet')


@pytest.fixture
def write(tmp_path):
    """Write an official file; return its path."""

    def write(state, kind):
        file = tmp_path / f'{kind}.pth'
        torch.save(official_file(state, kind), file)
        return str(file)

    return write


@pytest.mark.parametrize(
    ('name', 'kind'),
    [QUICK, *(pytest.param(*f, marks=pytest.mark.slow) for f in FILES if f != QUICK)],
)
def test_released_files_fill_everything(tmp_path, said, name, kind):
    arch = dataclasses.asdict(ARCHS[name])
    state = official_state(arch, kind, dense=False)
    file = tmp_path / f'{name}_{kind}.pth'
    save_in_full(file, state, kind, arch['pos_embed'])
    norms = {'detector': (1, 2, 3), 'segmentor': (0, 1, 2, 3)}.get(kind, ())
    norms = norms if arch['pos_embed'] == 'relative' else ()
    img_size = 800 if kind == 'imagenet' else IMG_SIZES[kind]
    net = empty_lit(name, img_size=img_size, out_norm_indices=norms)
    result = net.load_state_dict(read_checkpoint(file))
    file.unlink()  # pytest keeps folders, and this is up to 350 MB.
    assert result.missing_keys == [] and result.unexpected_keys == []
    for key, value in net.state_dict().items():
        assert torch.isfinite(value).all() and (value.dim() or value == 7), key
    total = COUNTS[name] + 2 * len(norms)
    expected = f'LIT {name}: {total} of {total} backbone parameters loaded'
    assert said[-1].startswith(expected), said
    assert 'initialisation' not in said[-1]


def test_pretrained_init_keeps_output_norms_at_their_start(write, said):
    file = write(official('relative', 'imagenet'), 'imagenet')
    net = relative(init_cfg=dict(type='Pretrained', checkpoint=file))
    Detector(net).init_weights()
    direct = relative()
    direct.load_state_dict(official('relative', 'imagenet'))
    for key, value in net.state_dict().items():
        if 'out_norm' in key:
            assert (value == float(key.endswith('weight'))).all()
        else:
            assert torch.equal(value, direct.state_dict()[key]), key
    assert said[0] == (
        f'{NAME}: 70 of 70 backbone parameters loaded; output norms 1, 2, 3 '
        'stay at initialisation; dropped: relative_position_index, norm, head'
    )


@pytest.mark.parametrize('family', FAMILIES)
def test_file_of_a_detector(write, capfd, said, family):
    """By mmengine's load_checkpoint, and by init_cfg with a prefix."""
    file = write(official(family, 'detector'), 'detector')
    detector = Detector(LIT(FAMILIES[family], img_size=800))
    load_checkpoint(detector, file)
    direct = LIT(FAMILIES[family], img_size=800)
    direct.load_state_dict(official(family, 'detector'))
    same(detector.backbone.state_dict(), direct.state_dict())
    init_cfg = dict(type='Pretrained', checkpoint=file, prefix='backbone')
    net = LIT(FAMILIES[family], img_size=800, init_cfg=init_cfg)
    net.init_weights()
    same(net.state_dict(), direct.state_dict())
    assert 'backbone parameters loaded' in said[0]
    # What mmengine reports is the stand-in's neck and head, and no backbone key.
    assert 'backbone' not in capfd.readouterr().out


def test_mmengine_does_not_hide_a_refusal(write):
    state = official('relative', 'imagenet')
    del state['patch_embed.norm.bias']
    file = write(state, 'imagenet')
    net = relative(init_cfg=dict(type='Pretrained', checkpoint=file))
    with pytest.raises(ValueError, match='cannot load .*patch_embed.norm.bias'):
        net.init_weights()
