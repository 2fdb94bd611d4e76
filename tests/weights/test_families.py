"""Test which layout, and which LIT, a state dict is of."""

import dataclasses

import pytest

from mmlit.archs import ARCHS
from mmlit.weights.convert import to_mmlit
from mmlit.weights.families import guess_arch, recognise
from support.official_files import official_file, official_state


@pytest.mark.parametrize(
    ('keys', 'prefix', 'layout'),
    [
        (['patch_embed.proj.weight'], '', 'relative'),
        (['a.b.patch_embed.norm.bias', 'neck.x'], 'a.b.', 'relative'),
        (['module.backbone.patch_embed1.proj.bias'], 'module.backbone.', 'absolute'),
        (['backbone.stages.0.patch_embed.proj.weight'], 'backbone.', 'mmlit'),
        (['teacher.patch_embed.proj.weight', 'backbone.patch_embed.proj.weight'],
         'backbone.', 'relative'),
        (['norm1.weight'], '', 'relative'),
        (['backbone.block3.0.norm1.weight'], 'backbone.', 'absolute'),
        (['module.stages.2.blocks.5.norm1.bias'], 'module.', 'mmlit'),
        (['stages.1.out_norm.bias'], '', 'mmlit'),
        (['bbox_head.norm1.weight', 'fc.weight'], None, None),
        (['head.weight', 'head.bias'], None, None),
    ],
)  # fmt: skip
def test_recognition(keys, prefix, layout):
    assert recognise(keys) == (None if layout is None else (prefix, layout))


def test_two_backbones_raise():
    keys = ['teacher.patch_embed.proj.weight', 'student.patch_embed.proj.weight']
    with pytest.raises(ValueError, match=r'under teacher\., student\.'):
        recognise(keys)


@pytest.mark.parametrize('name', ARCHS)
def test_arch_is_guessed(name):
    arch = dataclasses.asdict(ARCHS[name])
    file = official_file(official_state(arch, 'detector', dense=False), 'detector')
    official = file['state_dict']
    assert guess_arch(official) == name
    ours = to_mmlit(official).state
    assert guess_arch(ours) == name
    lost = f'backbone.stages.2.blocks.{arch["depths"][2] - 1}.'
    cut = {k: v for k, v in ours.items() if not k.startswith(lost)}
    assert guess_arch(cut) == f'{name} with parts missing'
