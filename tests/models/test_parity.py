"""Test against the authors' outputs, loss, gradients and running statistics.

In any clone from `data/golden.npz`, and from the full set where there is one.
"""

import numpy as np
import pytest
import torch

from mmlit.weights.convert import to_official
from support.golden_files import difference, full, reduced
from support.kernels import ON_CPU

KINDS = ('imagenet', 'detector', 'segmentor')
FULL = [f'relative_micro_{kind}' for kind in KINDS]
FULL += [f'absolute_micro_{kind}' for kind in KINDS[:2]]
IN_THE_CLONE = ['absolute_micro_imagenet', 'relative_micro_imagenet']
WITH_TRAINING = ['relative_micro_detector', 'absolute_micro_imagenet']
TOLERANCE = {torch.float64: 2e-7, torch.float32: 3e-5}

dtypes = pytest.mark.parametrize('dtype', TOLERANCE, ids=['float64', 'float32'])
kernels = pytest.mark.parametrize('kernel', ON_CPU)
with_cp = pytest.mark.parametrize('with_cp', [False, True], ids=['plain', 'with_cp'])


def check_outputs(golden, dtype, kernel):
    net = golden.build(dtype, attn_kernel=kernel).eval()
    with torch.no_grad():
        for image, expected in golden.cases:
            outputs = net(image.to(dtype))
            assert len(outputs) == len(expected) == golden.levels
            for level, pair in enumerate(zip(outputs, expected)):
                worst = difference(*pair)
                assert worst <= TOLERANCE[dtype], (tuple(image.shape), level, worst)


def check_training(golden, kernel, with_cp):
    net = golden.build(attn_kernel=kernel, with_cp=with_cp).train()
    train = golden.train
    outputs = net(train['image'].double())
    loss = 0
    for i, output in enumerate(outputs):
        state = np.random.RandomState(train['loss_weights_seed'] + i)
        weights = state.standard_normal(output.shape).astype(np.float32)
        loss = loss + (output * torch.from_numpy(weights)).mean()
    loss.backward()

    worst = {'loss': abs(loss.item() / float(train['loss']) - 1)}
    for level, pair in enumerate(zip(outputs, train['outputs'])):
        worst[f'outputs/{level}'] = difference(*pair)
    # Gradients change their shape like what they are of; a class token's slot has 0.
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    grads = to_official(grads, net.arch)
    for key, expected in train['grads'].items():
        worst[f'grads/{key}'] = difference(grads[key], expected)
    # The authors' running means follow what has their bias on it.
    biases = golden.official_state()
    buffers = to_official(net.state_dict(), net.arch)
    for key, expected in train['buffers'].items():
        if key.endswith('running_mean'):
            bias = biases[key.replace('norm_layer.running_mean', 'dconv.bias')]
            buffers[key] = buffers[key] + bias.double()
        worst[f'buffers/{key}'] = difference(buffers[key], expected)
    assert {key: value for key, value in worst.items() if value > 2e-7} == {}
    assert len(worst) >= 1 + 4 + 9 + 6


@kernels
@dtypes
@pytest.mark.parametrize('name', IN_THE_CLONE)
def test_outputs_in_the_clone(name, dtype, kernel):
    check_outputs(reduced(name), dtype, kernel)


@with_cp
@kernels
def test_training_in_the_clone(kernel, with_cp):
    check_training(reduced('absolute_micro_imagenet'), kernel, with_cp)


@kernels
@dtypes
@pytest.mark.parametrize('name', FULL)
def test_outputs(golden_root, name, dtype, kernel):
    check_outputs(full(golden_root, name), dtype, kernel)


@with_cp
@kernels
@pytest.mark.parametrize('name', WITH_TRAINING)
def test_training(golden_root, name, kernel, with_cp):
    check_training(full(golden_root, name), kernel, with_cp)
