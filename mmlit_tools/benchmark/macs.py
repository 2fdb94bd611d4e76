"""Count parameters and multiply-accumulates (MACs), by stated formulas.

From the shapes of modules' inputs and outputs, whatever kernel computes them: in eager
mode torch's FlopCounterMode sees neither mmcv's operators on a GPU nor those of
`torch.ops.mmlit`, which only compiled and exported networks go through.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn

#: In words, for reports.
FORMULAS = (
    'linear layer: outputs x input channels',
    'convolution: outputs x kernel height x kernel width x input channels / groups',
    'transposed convolution: inputs x kernel height x kernel width x output channels '
    '/ groups',
    'deformable convolution: as a convolution, and the convolution that predicts its '
    'offsets; the bilinear sampling is not counted',
    'attention over N queries and M keys of C channels: 2 x N x M x C (scores, and '
    'weights times values), besides its linear layers; LIT: N = M = all tokens of the '
    'map, Swin: those of a window, PVT: M is the reduced map',
    'not counted: biases, norms, activations, softmax, resizing, RoIAlign and other '
    'work without weights',
    'GFLOP = 2 x GMAC; a training step counts as three forward passes (its backward '
    'pass as two), recomputation by gradient checkpointing not counted',
)
KINDS = ('linear', 'convolution', 'deformable', 'attention')


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Count the multiply-accumulates of one forward pass.

    Args:
        model: The network.
        forward: Runs it once, on any device.

    Returns:
        MACs by the names of `KINDS`.
    """
    macs = Counter(dict.fromkeys(KINDS, 0))
    handles = []
    for name, module in model.named_modules():
        for kind, formula in _formulas(module):
            kind = 'deformable' if name.endswith('.conv_offset') else kind

            def hook(module, args, kwargs, out, kind=kind, formula=formula):
                macs[kind] += formula(module, args, kwargs, out)

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return dict(macs)


def _linear(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> int:
    return out.numel() * module.in_features


def _convolution(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> int:
    height, width = module.kernel_size
    return out.numel() * module.in_channels // module.groups * height * width


def _transposed(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> int:
    height, width = module.kernel_size
    return args[0].numel() * module.out_channels // module.groups * height * width


def _self_attention(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> int:
    # (B, ..., C): all positions in between attend to each other.
    batch, *grid, channels = out.shape
    return 2 * batch * math.prod(grid) ** 2 * channels


def _multihead(module: nn.Module, args: tuple, kwargs: dict, out: tuple) -> int:
    batch, queries, keys = _multihead_sizes(module, args, kwargs)
    return 2 * batch * queries * keys * module.embed_dim


# torch's module holds its projections as bare weights, which no other hook sees.
def _projections(module: nn.Module, args: tuple, kwargs: dict, out: tuple) -> int:
    batch, queries, keys = _multihead_sizes(module, args, kwargs)
    per_query, per_key = 2 * module.embed_dim, module.kdim + module.vdim
    return batch * module.embed_dim * (queries * per_query + keys * per_key)


def _multihead_sizes(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
    named = {**dict(zip(('query', 'key'), args)), **kwargs}
    batch_dim, tokens_dim = (0, 1) if module.batch_first else (1, 0)
    queries, keys = (named[name].shape[tokens_dim] for name in ('query', 'key'))
    return named['query'].shape[batch_dim], queries, keys


# By the names of classes, so that mmdet's are known without importing it.
_BY_CLASS = {
    'Linear': [('linear', _linear)],
    'Conv2d': [('convolution', _convolution)],
    'ConvTranspose2d': [('convolution', _transposed)],
    'DeformConv2d': [('deformable', _convolution)],
    'ModulatedDeformConv2d': [('deformable', _convolution)],
    'GlobalAttention': [('attention', _self_attention)],
    'WindowMSA': [('attention', _self_attention)],
    'MultiheadAttention': [('attention', _multihead), ('linear', _projections)],
}


def _formulas(module: nn.Module) -> list[tuple[str, Callable]]:
    for base in type(module).__mro__:
        # mmcv has a wrapper of this name around torch's module.
        if base.__name__ == 'MultiheadAttention' and base is not nn.MultiheadAttention:
            continue
        if base.__name__ in _BY_CLASS:
            return _BY_CLASS[base.__name__]
    return []
