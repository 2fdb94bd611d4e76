"""What mmengine never writes into a checkpoint is refused, and nothing of it runs."""

import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmlit.checkpoints.allowlist import allow_mmengine_checkpoints

SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.zeros(0).__reduce__()[0]

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6),
    reason='before torch 2.6 nothing is refused',
)


@pytest.fixture
def allowed():
    before = torch.serialization.get_safe_globals()
    allow_mmengine_checkpoints()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


class Call:
    """Pickles as the call `function(*arguments)`, with an optional state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.reduced


def history(**state):
    """A HistoryBuffer whose state is not what mmengine writes."""
    buffer = HistoryBuffer([1.0], [1])
    vars(buffer).update(state)
    return buffer


def evil_objects(marker):
    touch = f'touch {marker}'
    run = Call(os.system, touch)
    function = Call(getattr, HistoryBuffer, '__init__')
    namespace = Call(getattr, function, '__globals__')
    # numpy takes it, and follows the eight bytes of such an array as a pointer.
    pointers = (3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 0)
    pointers = Call(np.dtype, 'V8', False, True, state=pointers)
    forged = (1, (1,), pointers, False, b'12345678')
    return {
        'os.system': run,
        'subprocess': Call(subprocess.call, ['touch', str(marker)]),
        'eval': Call(eval, f'open({str(marker)!r}, "w")'),
        'getattr __init__': function,
        'getattr chain': Call(getattr, namespace, 'get'),
        'getattr __subclasses__': Call(getattr, HistoryBuffer, '__subclasses__'),
        'getattr update': Call(getattr, HistoryBuffer, 'update'),
        'getattr of a long name': Call(getattr, HistoryBuffer, 'x' * 9999),
        'getattr of a list': Call(getattr, [], 'append'),
        'getattr of a tensor': Call(getattr, torch.zeros(1), 'numpy'),
        'getattr with a default': Call(getattr, HistoryBuffer, 'no such', 1),
        'getattr of OneCycle': Call(getattr, OneCycleParamScheduler, '__init__'),
        'call of a statistic': Call(HistoryBuffer.mean, HistoryBuffer([1], [1])),
        'call of HistoryBuffer': Call(HistoryBuffer, [1], [1]),
        'call of OneCycle': Call(OneCycleParamScheduler, 1, 2),
        'pickle in an object scalar': Call(SCALAR, np.dtype('O'), pickle.dumps(run)),
        'pickle in a number': Call(SCALAR, np.dtype('f8'), pickle.dumps(run)),
        'number from text': Call(SCALAR, np.dtype('f8'), '12345678'),
        'number without dtype': Call(SCALAR, 'f8', b'12345678'),
        'object array': np.array([run], object),
        'structured array': np.zeros(1, [('a', 'O')]),
        'string array': np.array(['text']),
        'void array': np.zeros(1, 'V8'),
        'forged pointers': Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=forged),
        'big array': Call(RECONSTRUCT, np.ndarray, (1 << 40,), b'b'),
        'array subclass': np.zeros(1).view(np.matrix),
        'list as array': Call(RECONSTRUCT, list, (0,), b'b'),
        'call of ndarray': Call(np.ndarray, (2,), 'O'),
        'object dtype': Call(np.dtype, 'O8'),
        'structured dtype': Call(np.dtype, 'f8,O'),
        'dtype by class': Call(np.dtype, object),
        'dtype class': type(np.dtype('f8')),
        'foreign history state': history(update=1),
        'history without arrays': history(_log_history=[run]),
        'history of a matrix': history(_log_history=np.ones((2, 2))),
        'history length': history(max_length='9'),
    }


@pytest.mark.parametrize('name', evil_objects(''))
def test_anything_else_is_refused_and_nothing_runs(tmp_path, allowed, name):
    marker = tmp_path / 'ran'
    torch.save({'state_dict': evil_objects(marker)[name]}, tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError) as error:
        torch.load(tmp_path / 'evil.pth', weights_only=True)
    assert len(str(error.value)) < 2000
    assert not marker.exists()


def test_the_evil_objects_are_evil(tmp_path):
    """Without protection they run: the test above would notice."""
    for name in ('os.system', 'subprocess', 'eval', 'object array'):
        marker = tmp_path / name.replace(' ', '-')
        torch.save(evil_objects(marker)[name], tmp_path / 'evil.pth')
        torch.load(tmp_path / 'evil.pth', weights_only=False)
        assert marker.exists(), name


def test_an_error_names_what_was_asked_for(tmp_path, allowed):
    torch.save(Call(getattr, HistoryBuffer, 'update'), tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError, match=r"getattr\(.*'update'\)"):
        torch.load(tmp_path / 'evil.pth', weights_only=True)


def test_a_file_cannot_change_shared_objects(tmp_path, allowed, monkeypatch):
    """Neither the registry of statistics nor numpy's dtypes."""
    registry = dict(HistoryBuffer([1], [1])._statistics_methods)
    with monkeypatch.context() as patch:
        swapped = {'mean': HistoryBuffer.max}
        patch.setattr(HistoryBuffer, '_statistics_methods', swapped)
        torch.save(HistoryBuffer([1, 3], [1, 1]), tmp_path / 'swapped.pth')
    buffer = torch.load(tmp_path / 'swapped.pth', weights_only=True)
    assert HistoryBuffer._statistics_methods == registry
    assert buffer.statistics('mean') == 2

    state = (3, '>', None, ('x',), {'x': (np.dtype('f8'), 0)}, 8, 1, 63)
    torch.save(Call(np.dtype, 'f8', False, True, state=state), tmp_path / 'dtype.pth')
    dtype = torch.load(tmp_path / 'dtype.pth', weights_only=True)
    assert dtype is np.dtype('f8')
    assert dtype.isnative
    assert dtype.names is None
    assert not dtype.hasobject
