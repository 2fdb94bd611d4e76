"""FiniteLossHook ends a training with a NaN or infinite loss, and names the images."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import BaseDataElement

from mmlit import FiniteLossHook, read_checkpoint
from mmlit.errors import NonFiniteLossError
from support import toy_resuming
from support.toy_resuming import EPOCH, build, noted


@pytest.fixture
def spoilt(monkeypatch):
    """Makes the data of some iterations NaN; names the images as mmdet does."""
    bad = {}

    class Named(toy_resuming.Noisy):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            path = f'train/{i}.jpg'
            item['index'] = BaseDataElement(metainfo=dict(img_path=path, img_id=i))
            return item

    class Model(toy_resuming.Model):
        def forward(self, value, index, mode):
            if mode == 'predict':
                return super().forward(value, index, mode)
            self.batches.append([sample.img_path for sample in index])
            out = super().forward(value, [s.img_id for s in index], mode)
            factor = bad.get(len(self.batches) - 1, 1.0)
            if mode == 'loss':
                out['loss_box'] = out['loss'] * factor
                out['accuracy'] = torch.tensor(math.nan)  # no loss
            return out

        batches = []

    monkeypatch.setattr(toy_resuming, 'Noisy', Named)
    monkeypatch.setattr(toy_resuming, 'Model', Model)
    return bad, Model.batches


def ended(runner):
    with pytest.raises(NonFiniteLossError) as error:
        runner.train()
    said = str(error.value)
    assert '\n' not in said
    return said


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_the_iterations_and_the_images_are_named(tmp_path, spoilt, value):
    bad, batches = spoilt
    bad[EPOCH + 1] = value  # The step after it spoils the weights for good.
    said = ended(build(tmp_path / 'a'))
    assert len(batches) == EPOCH + 3
    assert 'not finite, 2 times in a row' in said
    first, second, third = (f'images {", ".join(b)}' for b in batches[EPOCH:])
    assert f'iteration {EPOCH + 2} (epoch 2): ' in said
    assert re.search(f'loss_box (nan|inf).*; {re.escape(second)}', said)
    assert f'iteration {EPOCH + 3} (epoch 2): ' in said and third in said
    assert f'The iteration before: {first}' in said
    assert 'accuracy' not in said
    # What was saved before is sound.
    assert noted(tmp_path / 'a').name == 'epoch_1.pth'


def test_one_alone_is_passed_over(tmp_path, spoilt):
    bad, batches = spoilt

    class Skipping(torch.optim.AdamW):
        """As mixed precision does: no step where gradients are not finite."""

        def step(self, *args):
            grads = [p.grad for g in self.param_groups for p in g['params']]
            if all(g.isfinite().all() for g in grads if g is not None):
                super().step(*args)

    bad[2] = bad[5] = math.inf
    runner = build(tmp_path / 'a')
    runner.optim_wrapper['optimizer']['type'] = Skipping
    runner.train()
    assert len(batches) == 3 * EPOCH


def test_weights_that_are_not_finite_are_not_saved(tmp_path, spoilt):
    """The loss of the last iteration is fine, and its step was not."""
    bad, batches = spoilt
    runner = build(tmp_path / 'a')

    def spoil(grad):
        return grad * (math.nan if len(batches) == 2 * EPOCH else 1)

    runner.model.layers[0].weight.register_hook(spoil)
    said = ended(runner)
    assert f'layers.0.weight) after iteration {2 * EPOCH}, so they are not' in said
    assert f'The iteration before: images {", ".join(batches[-1])}' in said
    state = read_checkpoint(noted(tmp_path / 'a'))['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    assert sorted(p.name for p in (tmp_path / 'a').glob('*.pth')) == ['epoch_1.pth']


def test_at_most_eight_images_are_listed():
    samples = [BaseDataElement(metainfo=dict(img_id=i)) for i in range(10)]
    runner, loss = SimpleNamespace(iter=0, epoch=0), dict(loss=math.nan)
    for batch, text in (
        (dict(a=[samples]), '; images 0, 1, 2, 3, 4, 5, 6, 7 and 2 more'),
        (dict(inputs=[torch.ones(1)]), '; unknown images'),
    ):
        with pytest.raises(NonFiniteLossError, match=text):
            FiniteLossHook(in_a_row=1).after_train_iter(runner, 0, batch, loss)
    for wrong in (0, 1.5, True, None):
        with pytest.raises((TypeError, ValueError), match=f'in_a_row={wrong}'):
            FiniteLossHook(in_a_row=wrong)


def test_the_weights_of_fsdp_units():
    """FSDP names them by its wrappers; in checkpoints they have their own names."""
    model = torch.nn.Module()
    model.block = torch.nn.Module()
    model.block._fsdp_wrapped_module = torch.nn.Linear(1, 1)
    runner, meta = SimpleNamespace(model=model), dict(iter=3)
    saved = dict(state_dict={'block.weight': torch.tensor(torch.inf)}, meta=meta)
    with pytest.raises(NonFiniteLossError, match=r'block\.weight.* iteration 3'):
        FiniteLossHook().before_save_checkpoint(runner, saved)
