"""Provide networks, official weights and comparisons for tests of loading."""

from functools import lru_cache

import torch
from mmengine.model import BaseModule

from mmlit import LIT
from support.official_files import ABSOLUTE_MICRO, RELATIVE_MICRO, official_state

FAMILIES = {'relative': RELATIVE_MICRO, 'absolute': ABSOLUTE_MICRO}
NAME = 'LIT of embed_dims (24, 48, 96, 192), depths (1, 1, 2, 1)'
TABLE = 'layers.2.blocks.0.attn.relative_position_bias_table'
OUR_TABLE = 'stages.2.blocks.0.attn.position_bias.relative_position_bias_table'


class Detector(BaseModule):
    """As much of a detector as loading needs."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = torch.nn.Linear(2, 2)


def official(family, kind):
    """A micro network's weights under official keys, in a dict of its own."""
    return dict(_official(family, kind))


@lru_cache(maxsize=None)
def _official(family, kind):
    return official_state(FAMILIES[family], kind)


def relative(**kwargs):
    return LIT(RELATIVE_MICRO, **{'img_size': 224, **kwargs})


def snapshot(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def changed(net, before):
    now = net.state_dict()
    return {key for key in now if not torch.equal(now[key], before[key])}


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype, key
        assert torch.equal(one[key], other[key]), key


def empty_lit(arch, **kwargs):
    """A LIT of which every number is not a number, to see that all are filled."""
    with torch.device('meta'):
        net = LIT(arch, **kwargs)
    net.to_empty(device='cpu')
    for value in net.state_dict().values():
        value.fill_(float('nan') if value.is_floating_point() else -1)
    return net
