"""Write pickles by hand that ask for more than data, and watch what they run."""

import argparse
import contextlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

RECONSTRUCT, SCALAR = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
#: Audit events of running something.
DEEDS = 'os.exec os.fork os.posix_spawn os.system subprocess.Popen'.split()


class Call:
    """Pickle as the call `function(*arguments)`, with an optional state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.reduced


def attacks(marker):
    """Name -> an object that is an attack once it is saved and read."""
    run = Call(os.system, f'touch {marker}')
    reach = Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__globals__')
    smuggler, config = argparse.Namespace(innocent=1), OrderedDict(a=1)
    smuggler.payload = config.payload = run
    swapped = HistoryBuffer([1.0], [1])
    swapped._log_history = np.ones((2, 2))
    # numpy takes it, and follows the eight bytes of such an array as a pointer.
    pointers = (3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 0)
    pointers = Call(np.dtype, 'V8', False, True, state=pointers)
    forged = (1, (1,), pointers, False, b'12345678')
    return {
        'os.system': run,
        'eval': Call(eval, f'open({str(marker)!r}, "w")'),
        'subprocess': Call(subprocess.call, ['touch', str(marker)]),
        'nested pickle': Call(pickle.loads, pickle.dumps(run)),
        'unsafe storage': Call(torch.storage._load_from_bytes, pickle.dumps(run)),
        'in a Namespace': smuggler,
        'in attributes of a dict': config,
        'state of a Namespace': Call(argparse.Namespace, state=run),
        'method of a Namespace': Call(argparse.Namespace().__eq__, 1),
        'function': os.getcwd,
        'class': argparse.ArgumentParser,
        'getattr chain': Call(getattr, reach, 'get'),
        'getattr of a method': Call(getattr, HistoryBuffer, 'update'),
        'getattr of subclasses': Call(getattr, HistoryBuffer, '__subclasses__'),
        'getattr of a list': Call(getattr, [], 'append'),
        'getattr with a default': Call(getattr, HistoryBuffer, 'no such', 1),
        'call of a statistic': Call(HistoryBuffer.mean, HistoryBuffer([1], [1])),
        'curve of two dimensions': swapped,
        'pickle in an object scalar': Call(SCALAR, np.dtype('O'), pickle.dumps(run)),
        'number of other bytes': Call(SCALAR, np.dtype('f8'), pickle.dumps(run)),
        'number without dtype': Call(SCALAR, 'f8', b'12345678'),
        'object array': np.array([run], object),
        'structured array': np.zeros(1, [('a', 'O')]),
        'forged pointers': Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=forged),
        'array subclass': np.zeros(1).view(np.matrix),
        'list as array': Call(RECONSTRUCT, list, (0,), b'b'),
        'call of ndarray': Call(np.ndarray, (2,), 'O'),
        'object dtype': Call(np.dtype, 'O8'),
        'structured dtype': Call(np.dtype, 'f8,O'),
    }


def text(value):
    return b'X' + len(value).to_bytes(4, 'little') + value.encode()


#: Pickles that no pickler writes.
_DICT, _REBUILD = b'ccollections\nOrderedDict\n', b'ctorch._utils\n_rebuild_tensor_v2\n'
_NAMESPACE = b'cargparse\nNamespace\n'
RAW = {
    'a name with a dot': b'ccollections\nOrderedDict.fromkeys\n.',
    'what takes a state alone': b'c\nndarray\n(K\x02tR.',
    'the same without a dot': b'cndarray\n\n(K\x02tR.',
    'old-style class': b'(iposix\nsystem\n.',
    'old-style class of a listed one': b'(icollections\nOrderedDict\n.',
    'old-style object': b'(' + _DICT + b'o.',
    'an extension': b'\x82\x01.',
    'keyword arguments': _DICT + b')}\x92.',
    'a call of what a call returned': _DICT + b')R)R.',
    'an object of what is no class': b'K\x01)\x81.',
    'a state for a function': _REBUILD + b'N}' + text('__defaults__') + b'Ns\x86b.',
    'a state for a class': _NAMESPACE + b'}' + text('__setstate__') + b'Nsb.',
    'a state for a dict': b'}}b.',
}


def archive(data, **storages):
    """Return a file of torch.save around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name, content in {'data.pkl': data, 'version': b'3', **storages}.items():
            file.writestr(f'lit/{name}', content)
    return buffer.getvalue()


@contextlib.contextmanager
def nothing_allowed():
    """Have nothing on top of torch's own list."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


_seen = None


def _watch(event, args):
    if _seen is not None and event in DEEDS:
        _seen.append(f'{event} {args!r:.200}')


sys.addaudithook(_watch)


@contextlib.contextmanager
def nothing_run():
    """Fail if a program is started meanwhile."""
    global _seen
    _seen = []
    try:
        yield
    finally:
        seen, _seen = _seen, None
    assert seen == []
