"""List what checkpoint files may name besides tensors, and what each name stands for.

`torch.load(weights_only=True)` rebuilds tensors and refuses every other object that is
not on a list. mmengine's own checkpoints hold curves (HistoryBuffer and its
statistics), the annealing function of OneCycleLR, and numpy arrays and scalars; the LIT
authors' hold the settings of a training (argparse.Namespace, yacs.config.CfgNode).

torch calls what the list gives for a name with arguments that the file chooses. So a
name is bound to the class itself only where no argument can do harm. Elsewhere a
stand-in of this module serves these files and raises for the rest: `getattr` reaches
anything from anywhere, and numpy's dtype and ndarray can be told to read the file's
bytes as pointers (seen: crashes, numpy 1.24 to 2.4).

torch takes such lists since 2.6. Before, `Unpickler` and `load` below make this module
a ``pickle_module`` for `torch.load` that is as strict.
"""

import argparse
import codecs
import pickle
from collections import Counter, OrderedDict
from pickle import UnpicklingError
from typing import Any, Callable, Dict, List, Tuple, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version

#: Whether torch takes a list of names, and is safe unless told otherwise.
TORCH_TAKES_LISTS = digit_version(torch.__version__)[:2] >= (2, 6)
#: Plain numbers, as numpy spells them in pickles.
DTYPE_CODES = 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()


class _SavedHistory(HistoryBuffer):
    """A HistoryBuffer that leaves alone the statistics, which all buffers share."""

    def __setstate__(self, state: Dict[str, Any]) -> None:
        curves = {key: state.get(key) for key in ('_log_history', '_count_history')}
        if not all(isinstance(x, np.ndarray) and x.ndim == 1 for x in curves.values()):
            raise UnpicklingError('a HistoryBuffer without its two curves')
        curves = {key: curve.view(np.ndarray) for key, curve in curves.items()}
        self.__class__ = HistoryBuffer
        self.__setstate__({**state, **curves, 'statistics_methods': {}})


class _NamedArray(np.ndarray):
    """Stand for numpy.ndarray, which files name but never call."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'np.ndarray':
        raise UnpicklingError('numpy.ndarray is called')

    def __reduce__(self) -> tuple:  # Where other code allows numpy's `_reconstruct`.
        return self.view(np.ndarray).__reduce__()


_STATISTICS = ('min', 'max', 'current', 'mean')
_ATTRIBUTES = (
    (_SavedHistory, _STATISTICS),
    (HistoryBuffer, _STATISTICS),
    (OneCycleParamScheduler, ('_annealing_cos', '_annealing_linear')),
)


def _getattr(owner: Any, name: Any, *default: Any) -> Callable:
    """Stand for builtins.getattr: six functions of mmengine, and nothing else."""
    for cls, names in _ATTRIBUTES:
        if owner is cls and type(name) is str and name in names:
            return getattr(cls, name)
    raise UnpicklingError(f'getattr of a {type(owner).__name__}, {name!r:.60}')


def _dtype(code: Any, *flags: Any) -> np.dtype:
    """Stand for numpy.dtype: not the copies it makes, which take a file's state."""
    if type(code) is not str or code not in DTYPE_CODES:
        raise UnpicklingError(f'a numpy dtype other than {", ".join(DTYPE_CODES)}')
    return np.dtype(code)


def _scalar(dtype: Any, data: Any) -> np.generic:
    """Stand for numpy's scalar: a number from its bytes."""
    if not isinstance(dtype, np.dtype) or dtype.str[1:] not in DTYPE_CODES:
        raise UnpicklingError('a numpy scalar without a dtype of plain numbers')
    if type(data) is not bytes or len(data) != dtype.itemsize:
        raise UnpicklingError(f'a numpy scalar of other than {dtype.itemsize} bytes')
    return np.frombuffer(data, dtype)[0]


def _reconstruct(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    """Stand for numpy's _reconstruct: the empty array that a state then fills."""
    if not (subtype is _NamedArray or subtype is np.ndarray) or shape != (0,):
        raise UnpicklingError('a numpy array of another type or first shape')
    return np.empty(0, np.int8)


#: For `torch.serialization.add_safe_globals`: classes, or (stand-in, name in a file).
ALLOWED: List[Union[Callable, Tuple[Callable, str]]] = [
    argparse.Namespace,
    (OrderedDict, 'yacs.config.CfgNode'),  # A dict with flags; no yacs is needed.
    OneCycleParamScheduler,
    (_SavedHistory, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_getattr, 'builtins.getattr'),
    (_NamedArray, 'numpy.ndarray'),
    # torch gives a state to objects of these classes alone. Without a dot, no file can
    # name the first of them, and so call it.
    (np.ndarray, 'ndarray'),
    *(type(np.dtype(code)) for code in DTYPE_CODES),
    (_dtype, 'numpy.dtype'),
    # numpy 1 pickles under the first name, numpy 2 under the second.
    (_reconstruct, 'numpy.core.multiarray._reconstruct'),
    (_reconstruct, 'numpy._core.multiarray._reconstruct'),
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
]


def allow_mmengine_checkpoints() -> None:
    """Make mmengine's own checkpoints and the LIT authors' readable by `torch.load`.

    Its default since torch 2.6 then reads files written on CPU or GPU, with AMP or EMA,
    under numpy 1 or 2; whatever else a file asks for is refused as before. `import
    mmlit` calls this; calling it again, or before torch 2.6, changes nothing.
    """
    if TORCH_TAKES_LISTS:
        torch.serialization.add_safe_globals(ALLOWED)


# --- the same before torch 2.6 -----------------------------------------------------


def _named() -> Dict[str, Callable]:
    """Return what a file may name: ALLOWED, and what torch >= 2.6 allows by itself."""
    named = {
        'collections.OrderedDict': OrderedDict,
        'collections.Counter': Counter,  # The milestones of MultiStepLR.
        'builtins.set': set,
        '_codecs.encode': codecs.encode,  # How protocol 2 spells bytes.
        'torch.Size': torch.Size,
        'torch.device': torch.device,
    }
    for name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'):
        named[f'torch._utils.{name}'] = getattr(torch._utils, name)
    dtypes = [item for item in vars(torch).values() if isinstance(item, torch.dtype)]
    named.update((str(dtype), dtype) for dtype in dtypes)
    for item in ALLOWED:
        if not isinstance(item, tuple):
            item = item, f'{item.__module__}.{item.__qualname__}'
        named[item[1]] = item[0]
    del named['ndarray']
    return named


_NAMED = _named()


def _refuse_instruction(_: Any) -> None:
    raise UnpicklingError('a pickle instruction that torch.save does not write')


class Unpickler(pickle._Unpickler):
    """Unpickle what the list names and refuse everything else.

    Derived from Python's own unpickler in Python: the one in C lets nobody look at a
    call before it is made, or at an object before a state from the file goes into it.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    for _instruction in 'INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4'.split():
        dispatch[getattr(pickle, _instruction)[0]] = _refuse_instruction

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the file; nothing is imported."""
        module = 'builtins' if module == '__builtin__' else module
        if f'{module}.{name}' not in _NAMED:
            raise UnpicklingError(f'GLOBAL {module}.{name} is not allowed')
        return _NAMED[f'{module}.{name}']

    def load_reduce(self) -> None:
        """Call what the list names, never what another call returned."""
        self._check_call()
        super().load_reduce()

    def load_newobj(self) -> None:
        """Make an object, as for calls."""
        self._check_call()
        super().load_newobj()

    def _check_call(self) -> None:
        called = self.stack[-2]
        if not any(called is item for item in _NAMED.values()):
            raise UnpicklingError(f'a call of a {type(called).__name__}')

    def load_build(self) -> None:
        """Give an object its state; classes and functions are shared and take none."""
        state, item = self.stack.pop(), self.stack[-1]
        if isinstance(item, (np.ndarray, np.dtype, _SavedHistory)):
            item.__setstate__(state)
        elif type(item) in (OrderedDict, argparse.Namespace) and type(state) is dict:
            vars(item).update(state)
        else:
            raise UnpicklingError(f'a state for a {type(item).__name__}')

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def load(file: Any, **kwargs: Any) -> Any:
    """Unpickle like `pickle.load`, by the unpickler above."""
    return Unpickler(file, **kwargs).load()
