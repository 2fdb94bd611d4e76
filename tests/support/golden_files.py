"""Provide the authors' reference numbers, from the full set or from the clone."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mmlit import LIT, read_checkpoint
from support.official_files import FAMILIES

REDUCED = Path(__file__).resolve().parents[1] / 'data' / 'golden.npz'


@dataclass
class Some:
    """Some values of a tensor, where they are in it, and its largest one."""

    at: torch.Tensor
    values: torch.Tensor
    max: torch.Tensor


@dataclass
class Golden:
    """What the authors' network computes from one of their files."""

    name: str
    checkpoint: dict
    cases: list  # (image, expected maps) in evaluation
    extra: dict = field(default_factory=dict)  # official weights that the file lacks
    train: dict = None  # image, outputs, loss, gradients, buffers of a training step
    levels: int = 4  # known ones

    def build(self, dtype=torch.float64, **kwargs):
        """The network of the file, loaded as it is."""
        kwargs['out_indices'] = range(self.levels)
        of_segmentor = dict(img_size=512, out_norm_indices=(0, 1, 2, 3))
        kwargs.update(of_segmentor if 'segmentor' in self.name else dict(img_size=800))
        net = LIT(FAMILIES[self.name.split('_')[0]], **kwargs).to(dtype)
        net.load_state_dict(self.checkpoint)
        if self.extra:
            net.load_state_dict(self.extra, strict=False)
        return net

    def official_state(self):
        """The backbone's weights, without prefix."""
        state = self.checkpoint.get('state_dict') or self.checkpoint['model']
        return {key.replace('backbone.', ''): value for key, value in state.items()}


def full(root, name):
    """A golden of the full set."""
    expected = read_checkpoint(root / f'{name}_expected.pth')
    cases = [(case['image'], case['outputs']) for case in expected['cases']]
    extra, train = expected.get('extra_state', {}), expected.get('train')
    return Golden(name, read_checkpoint(root / f'{name}.pth'), cases, extra, train)


def reduced(name):
    """A golden out of the file that was once cut, unrounded, from the full set's."""
    with np.load(REDUCED) as file:
        index = json.loads(str(file['index']))
        floats = np.ascontiguousarray(file['floats'].T).view(np.float32).ravel()
        arrays = dict(floats=floats, ints=file['ints'].astype(np.int64))
    tree = {}
    for path, entry in index.items():
        if isinstance(entry, list):
            kind, begin, shape = entry
            numbers = arrays[kind][begin : begin + int(np.prod(shape))]
            entry = torch.from_numpy(numbers.copy()).reshape(shape)
        *parents, leaf = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = entry
    found = _with_samples(tree[name])
    outputs, train = list(found['outputs'].values()), found.get('train')
    if train:
        train['outputs'] = list(train['outputs'].values())
    own = {'model': found['state']}, [(found['image'], outputs)], found.get('extra', {})
    return Golden(name, *own, train, len(outputs))


def _with_samples(tree):
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {'at', 'values', 'max'}:
        return Some(**tree)
    return {key: _with_samples(value) for key, value in tree.items()}


def difference(tensor, expected):
    """Largest difference over largest expected value."""
    tensor = tensor.detach().double()
    if isinstance(expected, Some):
        difference = tensor.flatten()[expected.at] - expected.values
        return (difference.abs().max() / expected.max).item()
    assert tensor.shape == expected.shape
    return ((tensor - expected).abs().max() / expected.abs().max()).item()
