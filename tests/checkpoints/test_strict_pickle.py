"""The unpickler for torch < 2.6: pickles that are written by hand to get around it."""

import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mmlit.checkpoints import strict_pickle
from mmlit.checkpoints.allowlist import mmengine_globals
from mmlit.checkpoints.strict_pickle import SavedNamespace, Unpickler


def text(value):
    return b'\x8c' + bytes([len(value)]) + value.encode()


def name(module, item):
    """STACK_GLOBAL: a name of any characters."""
    return text(module) + text(item) + b'\x93'


ORDERED = b'ccollections\nOrderedDict\n'
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n'
NAMESPACE = b'cargparse\nNamespace\n'
ATTACKS = {
    'a name': b'cposix\nsystem\n.',
    'a name with a dot': name('collections', 'OrderedDict.fromkeys') + b'.',
    'a type that takes a state only': name('state only\nndarray', 'x') + b'.',
    'old-style class': b'(iposix\nsystem\n.',
    'old-style class of a listed one': b'(icollections\nOrderedDict\n.',
    'old-style object': b'(' + ORDERED + b'o.',
    'an extension': b'\x82\x01.',
    'keyword arguments': ORDERED + b')}\x92.',
    'a call of what a call returned': ORDERED + b')R)R.',
    'an object of what is no class': b'K\x01)\x81.',
    'a state for a function': REBUILD + b'N}' + text('__defaults__') + b'Ns\x86b.',
    'a state for a class': NAMESPACE + b'}' + text('__setstate__') + b'Nsb.',
    'a state for a dict': b'}}b.',
    'a state of slots': NAMESPACE + b')RN}' + text('x') + b'K\x01s\x86b.',
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_is_refused(attack):
    with pytest.raises(pickle.UnpicklingError):
        strict_pickle.load(io.BytesIO(b'\x80\x04' + ATTACKS[attack]))
    assert '__setstate__' in vars(SavedNamespace)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def test_what_takes_a_state_only_has_no_name():
    """numpy's types: their entries have a line break in the name."""
    module, _, item = mmengine_globals()[-1][1].rpartition('.')
    assert '\n' in item or '\n' in module
    for first, second in (('', item), (module, item), ('numpy', 'ndarray')):
        stream = io.BytesIO(b'\x80\x04' + name(first, second) + b')R.')
        with pytest.raises(pickle.UnpicklingError):
            strict_pickle.load(stream)
    unpickler = Unpickler(io.BytesIO())
    assert np.ndarray in unpickler._stateful
    assert not any(item is np.ndarray for item in unpickler._named.values())


def test_plain_data_is_read():
    data = OrderedDict(a={1, 2}, b=b'\xff\x00', c=(1.5, None, [True]), d={'e': 'f'})
    for protocol in (2, 4, 5):
        stream = io.BytesIO(pickle.dumps(data, protocol))
        assert strict_pickle.load(stream) == data
