"""Cut the authors' reference files down to what fits into a clone.

    python tests/support/make_reduced_golden.py [GOLDEN] [OUT.npz]

Writes a file (under 1 MB) with which `test_parity.py` compares in any clone, from the
full set (by default ../shared/golden), with which it compares where there is one:

- `absolute_micro_imagenet`: all weights, one image and the training step. What none of
  the two images reads of the position embeddings (they are smaller than 224 px) is 0.
- `relative_micro_imagenet`: the first two stages with one image of odd sides. The
  other two, with the bias tables, would take two more megabytes.

No number is rounded. Of maps and gradients it holds some values, their indices and the
tensor's largest absolute value. All numbers lie in two arrays, the floats with their
four bytes apart (which deflates better); an index says what is where.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from mmlit import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 64


def read_at(side, size):
    """Which of side x side positions a bilinear resize to `size` reads."""
    image = torch.zeros(1, 1, side, side, requires_grad=True)
    interpolate(image, size=size, mode='bilinear', align_corners=False).sum().backward()
    return image.grad[0, 0] != 0


class Reduced:
    """The file in the making: an index by name, and two long arrays."""

    def __init__(self):
        self.index, self.arrays, self.lengths = {}, {}, {}

    def whole(self, name, tensor):
        """Store a tensor as it is."""
        array = tensor.numpy()
        kind = {'f': 'floats', 'i': 'ints'}[array.dtype.kind]
        dtype = {'floats': np.float32, 'ints': np.int32}[kind]
        assert (array.astype(dtype) == array).all(), name
        begin = self.lengths.get(kind, 0)
        self.index[name] = [kind, begin, list(array.shape)]
        self.arrays.setdefault(kind, []).append(array.astype(dtype).ravel())
        self.lengths[kind] = begin + array.size

    def sampled(self, name, tensor):
        """Store some values of a tensor and its largest one."""
        flat = tensor.flatten()
        picked = np.random.RandomState(len(self.index)).permutation(flat.numel())
        picked = torch.from_numpy(np.sort(picked[:SAMPLES]))
        self.whole(f'{name}/at', picked)
        self.whole(f'{name}/values', flat[picked])
        self.whole(f'{name}/max', flat.abs().max())

    def save(self, path):
        """Write all of it."""
        floats, ints = (np.concatenate(self.arrays[kind]) for kind in self.arrays)
        planes = np.ascontiguousarray(floats.reshape(-1, 1).view(np.uint8).T)
        index = np.array(json.dumps(self.index))
        np.savez_compressed(path, index=index, floats=planes, ints=ints)


def absolute(golden, out):
    """The whole tiny-like classifier, evaluated and trained on 64 x 96 px."""
    name = 'absolute_micro_imagenet'
    state = read_checkpoint(golden / f'{name}.pth')['model']
    expected = read_checkpoint(golden / f'{name}_expected.pth')
    case, train = expected['cases'][0], expected['train']
    assert case['image'].shape[2:] == train['image'].shape[2:] == (64, 96)
    for key, value in state.items():
        if key.startswith('pos_embed'):
            stage = int(key[-1]) - 1
            read = read_at(56 >> stage, (16 >> stage, 24 >> stage)).flatten()
            slot = torch.ones(value.shape[1] - len(read), dtype=torch.bool)
            value = torch.where(torch.cat([slot, read])[:, None], value, 0)
        out.whole(f'{name}/state/{key}', value)
    out.whole(f'{name}/image', case['image'])
    for level, output in enumerate(case['outputs']):
        out.sampled(f'{name}/outputs/{level}', output)
    out.whole(f'{name}/train/image', train['image'])
    out.index[f'{name}/train/loss'] = float(train['loss'])
    out.index[f'{name}/train/loss_weights_seed'] = train['loss_weights_seed']
    for level, output in enumerate(train['outputs']):
        out.sampled(f'{name}/train/outputs/{level}', output)
    for kind in ('grads', 'buffers'):
        for key, value in train[kind].items():
            out.sampled(f'{name}/train/{kind}/{key}', value)


def relative(golden, out):
    """Two stages of the classifier of the other family, on 37 x 51 px."""
    name = 'relative_micro_imagenet'
    state = read_checkpoint(golden / f'{name}.pth')['model']
    expected = read_checkpoint(golden / f'{name}_expected.pth')
    case = expected['cases'][3]
    first = ('patch_embed.', 'layers.0.', 'layers.1.blocks.')
    for key, value in state.items():
        if key.startswith(first):
            out.whole(f'{name}/state/{key}', value)
    for key, value in expected['extra_state'].items():
        if key.startswith('norm1.'):
            out.whole(f'{name}/extra/{key}', value)
    out.whole(f'{name}/image', case['image'])
    for level, output in enumerate(case['outputs'][:2]):
        out.sampled(f'{name}/outputs/{level}', output)


def main():
    """Write the file and say how large it is."""
    given = [Path(argument) for argument in sys.argv[1:]]
    golden = given[0] if given else ROOT.parent / 'shared' / 'golden'
    target = given[1] if given[1:] else ROOT / 'tests' / 'data' / 'golden.npz'
    out = Reduced()
    absolute(golden, out)
    relative(golden, out)
    target.parent.mkdir(exist_ok=True)
    out.save(target)
    print(f'{target}: {target.stat().st_size} bytes')


if __name__ == '__main__':
    main()
