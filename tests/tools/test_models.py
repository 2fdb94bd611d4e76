"""Models of configs, and checkpoints that must fill them."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from mmlit import LIT
from mmlit.errors import UserError
from mmlit_tools.models import (
    ModelError,
    build_model,
    classes_of,
    load_strict,
    open_checkpoint,
)
from support.archs import RELATIVE, randomised


class Model(BaseModule):
    """A LIT with a neck."""

    def __init__(self):
        super().__init__()
        self.backbone = randomised()
        self.neck = nn.Linear(2, 3)


class Evil:
    def __reduce__(self):
        return os.mkdir, ('run',)


def test_initial_weights_are_not_downloaded_and_always_the_same():
    pretrained = dict(type='Pretrained', checkpoint='https://example.org/a.pth')
    backbone = dict(type='LIT', arch=RELATIVE, init_cfg=pretrained)
    first, second = (build_model(Config(dict(model=backbone))) for _ in range(2))
    assert not first.training
    state = second.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in first.state_dict().items())
    for model, said in ((dict(type='LIT', archs=1), 'archs'), (None, 'has no model')):
        with pytest.raises(ModelError, match=said):
            build_model(Config(dict(model=model)))


def test_checkpoints_are_read_without_running_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=Evil()), 'evil.pth')
    with pytest.raises(UserError, match=r'evil\.pth.*mkdir'):
        open_checkpoint('evil.pth')
    assert not Path('run').exists()
    with pytest.raises(UserError, match=r'no\.pth'):
        open_checkpoint('no.pth')


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_whole_model_is_filled(capsys, wrapped):
    state = Model().state_dict()
    state['neck.weight'] = torch.ones(3, 2)
    extra = dict(state, ema=torch.zeros(1))
    prefix = 'module.' if wrapped else ''
    model = Model()
    load_strict(model, dict(state_dict={prefix + k: v for k, v in extra.items()}))
    assert torch.equal(model.neck.weight, state['neck.weight'])
    assert 'Left out of the checkpoint: ema' in capsys.readouterr().out
    with pytest.raises(ModelError, match=r'lacks the weights neck\.bias'):
        load_strict(model, {k: v for k, v in state.items() if k != 'neck.bias'})
    state['neck.weight'] = torch.ones(3, 4)
    with pytest.raises(ModelError, match='size mismatch for neck.weight'):
        load_strict(model, dict(model=state))
    with pytest.raises(ModelError, match='holds no weights: .* epoch'):
        load_strict(model, dict(epoch=1))


@pytest.mark.parametrize('alone', [False, True])
def test_a_backbone_is_filled(alone):
    theirs = LIT(RELATIVE).state_dict()
    state = theirs
    if not alone:  # Other modules do not matter then.
        state = {f'backbone.{k}': v for k, v in theirs.items()}
        state['neck.weight'] = torch.ones(9)
    model = Model()
    load_strict(model, state, ['backbone'])
    found = model.backbone.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in theirs.items())


def test_a_part_is_filled_and_no_more():
    state = Model().state_dict()
    with pytest.raises(ModelError, match=r'more weights than the model: neck\.scale'):
        load_strict(Model(), dict(state, **{'neck.scale': torch.ones(1)}), ['neck'])
    del state['neck.bias']
    with pytest.raises(ModelError, match=r'lacks the weights neck\.bias'):
        load_strict(Model(), state, ['neck'])
    load_strict(Model(), state, ['neck'], optional='bias$')


@pytest.mark.parametrize(
    'meta',
    [dict(CLASSES=('a',)), dict(dataset_meta=dict(classes=('a',), palette=None))],
)
def test_classes(meta):
    assert classes_of(dict(meta=meta)) == dict(classes=('a',))
    assert classes_of(dict(meta=3)) == {}
