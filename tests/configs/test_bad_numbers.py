"""Test losses of micro detectors and segmentors where data or weights are bad.

NaN and infinity must show in the loss: `FiniteLossHook` ends a training by it.
"""

import copy
from functools import lru_cache

import pytest
import torch

from support.config_helpers import load, noise
from support.micro_models import FPN, MASK_RCNN, RETINANET, UPERNET, micro, shrink

SCOPES = {'detection': 'mmdet', 'segmentation': 'mmseg'}
NAMES = [MASK_RCNN, RETINANET, FPN, UPERNET]


@pytest.fixture(params=NAMES, ids=lambda name: name[1].split('_lit')[0][:9])
def subject(request):
    """A model, and its training data as it comes from the preprocessor."""
    kind, name = request.param
    pytest.importorskip(SCOPES[kind], reason=f'the {kind} is that of {SCOPES[kind]}')
    model, data = micro(kind, name), copy.deepcopy(training_data(kind, name))
    return model, model.data_preprocessor(data, True)


@lru_cache(maxsize=None)
def training_data(kind, name):
    torch.manual_seed(0)
    cfg = load(kind, name)
    shrink(cfg.model)
    return noise(cfg)


def loss_of(model, data):
    """The total loss after its backward pass, as a training step computes it."""
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    return loss.item()


@pytest.mark.parametrize('empty', [(0,), (0, 1)], ids=['one image', 'both'])
def test_nothing_to_find(subject, empty):
    """No boxes but crowds, or every pixel ignored.

    Each parameter has a gradient: else a distributed training would stop, or hang.
    """
    model, data = subject
    for i in empty:
        sample = data['data_samples'][i]
        if 'gt_sem_seg' in sample:
            sample.gt_sem_seg.data.fill_(255)
        else:
            assert len(sample.ignored_instances)
            sample.gt_instances = sample.gt_instances[:0]
    assert 0 <= loss_of(model, data) < 1e3
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_images_without_light(subject):
    model, data = subject
    data['inputs'].zero_()
    assert 0 < loss_of(model, data) < 1e3


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('where', ['pixel', 'first weight', 'offsets', 'last level'])
def test_losses_tell_of_what_is_no_number(subject, where, value):
    model, data = subject
    stages = model.backbone.stages
    spoilt = {
        'pixel': data['inputs'][0, 0, 20],
        'first weight': stages[0].patch_embed.proj.weight,
        'offsets': stages[1].downsample.dconv.conv_offset.weight,
        'last level': stages[3].blocks[-1].mlp.fc2.weight,
    }
    with torch.no_grad():
        spoilt[where].view(-1)[0] = value
    assert not torch.tensor(loss_of(model, data)).isfinite()
