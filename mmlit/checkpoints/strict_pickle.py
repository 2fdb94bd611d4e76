"""What the authors' files pickle beside their weights, and a strict unpickler for it.

Nothing that a file names is ever imported or called here: a name is looked up in a
table, and whatever stands in the table was written for that purpose, takes only what
such files really hold, and raises for the rest.

`LITERALS` is that table for the authors' files; the one for mmengine's own is in
`checkpoint.py`. torch >= 2.6 takes such tables itself (`safe_globals`). For older
torch, which does not, this module is a `pickle_module` for `torch.load`: `Unpickler`
and `load` below are what torch asks of one.
"""

import argparse
import pickle
from collections import Counter, OrderedDict
from typing import Any, Callable, Dict, List, Tuple

import torch

from .allowlist import mmengine_globals


class SavedNamespace:
    """Stands for argparse.Namespace: the settings as attributes, and nothing else."""

    def __init__(self, *args, **kwargs):
        if args or kwargs:
            raise pickle.UnpicklingError('argparse.Namespace is called with arguments')

    def __setstate__(self, state: Dict[str, Any]) -> None:
        if type(state) is not dict or not all(
            type(key) is str and not key.startswith('__') for key in state
        ):
            raise pickle.UnpicklingError(
                'argparse.Namespace with a state that is no set of named settings'
            )
        vars(self).update(state)

    def __repr__(self) -> str:
        settings = ', '.join(f'{key}={value!r}' for key, value in vars(self).items())
        return f'{type(self).__name__}({settings})'

    def __reduce__(self):
        # Saved again, it is what it was: no file depends on this package.
        return argparse.Namespace, (), dict(vars(self))


class SavedCfgNode:
    """Stands for yacs.config.CfgNode, a dict with flags: read as an OrderedDict.

    A plain OrderedDict, because torch fills no other mapping from a file. The flags
    (`__immutable__` and the like) stay what they are in the file, unused attributes.
    """

    def __new__(cls, *args, **kwargs):  # noqa: D102
        if args or kwargs:
            raise pickle.UnpicklingError('yacs.config.CfgNode is called with arguments')
        return OrderedDict()


#: (what stands for it, its name in a file), as `torch.serialization.safe_globals`
#: takes them. Builtin sets, which a CfgNode holds as well, torch allows by itself.
LITERALS: List[Tuple[Callable, str]] = [
    (SavedNamespace, 'argparse.Namespace'),
    (SavedCfgNode, 'yacs.config.CfgNode'),
]


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands for _codecs.encode, which is how a protocol 2 pickle spells bytes."""
    if type(text) is not str or encoding != 'latin1':
        raise pickle.UnpicklingError('_codecs.encode of what is not the bytes of a str')
    return text.encode('latin1')


def _set(items: Any = ()) -> set:
    """Stands for the builtin set."""
    if type(items) not in (list, tuple):
        raise pickle.UnpicklingError(f'a set of a {type(items).__name__}')
    return set(items)


def _counter(counts: Any) -> Counter:
    """Stands for collections.Counter, the milestones of MultiStepLR."""
    if type(counts) is not dict:
        raise pickle.UnpicklingError(f'a Counter of a {type(counts).__name__}')
    return Counter(counts)


def _torch_globals() -> List[Tuple[Callable, str]]:
    """What torch >= 2.6 allows by itself, as far as checkpoints hold it."""
    pairs = [
        (OrderedDict, 'collections.OrderedDict'),
        (_counter, 'collections.Counter'),
        (_set, 'builtins.set'),
        (_encode, '_codecs.encode'),
        (torch.Size, 'torch.Size'),
        (torch.device, 'torch.device'),
    ]
    for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'):
        pairs.append((getattr(torch._utils, name), f'torch._utils.{name}'))
    dtypes = [item for item in vars(torch).values() if isinstance(item, torch.dtype)]
    return pairs + [(dtype, str(dtype)) for dtype in dtypes]


def named_globals() -> Dict[str, Callable]:
    """What a file may name, by that name: the tables together."""
    pairs = _torch_globals() + LITERALS + mmengine_globals()
    # Names of two lines say whose objects take a state; no file may use those.
    return {name: item for item, name in pairs if '\n' not in name}


def refuse_instruction(_: Any) -> None:
    """Stands for a pickle instruction that torch.save has no use for."""
    raise pickle.UnpicklingError('a pickle instruction that torch.save does not write')


class Unpickler(pickle._Unpickler):
    """An unpickler that builds what the tables list and refuses everything else.

    Made of Python's own, in Python: the one in C has no way to look at a call before
    it is made, or at an object before a state from the file goes into it.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    for _instruction in 'INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4'.split():
        dispatch[getattr(pickle, _instruction)[0]] = refuse_instruction

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        pairs = _torch_globals() + LITERALS + mmengine_globals()
        self._stateful = {item for item, _ in pairs if isinstance(item, type)}
        self._named = named_globals()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file; nothing is imported."""
        module = 'builtins' if module == '__builtin__' else module
        if f'{module}.{name}' not in self._named:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name} is not allowed')
        return self._named[f'{module}.{name}']

    def load_reduce(self) -> None:
        """A call: of what the tables list, not of what another call returned."""
        self._check_call()
        super().load_reduce()

    def load_newobj(self) -> None:
        """A new object: as for calls."""
        self._check_call()
        super().load_newobj()

    def _check_call(self) -> None:
        called = self.stack[-2]
        if not any(called is item for item in self._named.values()):
            raise pickle.UnpicklingError(f'a call of a {type(called).__name__}')

    def load_build(self) -> None:
        """A state for an object: never for classes and functions, which are shared."""
        kind = type(self.stack[-2])
        if kind not in self._stateful:
            raise pickle.UnpicklingError(f'a state for a {kind.__name__}')
        super().load_build()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def load(file: Any, **kwargs: Any) -> Any:
    """Like `pickle.load`, by the unpickler above."""
    return Unpickler(file, **kwargs).load()
