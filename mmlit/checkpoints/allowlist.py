"""Let torch >= 2.6 read mmengine's own training checkpoints again, and no more.

Since torch 2.6 `torch.load` is `weights_only=True`: it rebuilds tensors and refuses
every Python object that is not on a list. mmengine 0.10 puts such objects into each
checkpoint it writes, so its own `--resume` and every `tools/test.py` fail on them.
`allow_mmengine_checkpoints` extends the list by what those files hold:

====================================  ==============================================
in the file                           where mmengine puts it
====================================  ==============================================
HistoryBuffer                         the message hub's curves (loss, lr, time, ...)
getattr(HistoryBuffer, 'mean'), ...   the statistics that a HistoryBuffer pickles
getattr(OneCycleParamScheduler, ...)  the annealing function of OneCycleLR
numpy arrays and scalars              inside the curves; `eta`, `best_score`, metrics
====================================  ==============================================

(AMP's loss scale, EMA weights, optimizers and the other schedulers add nothing.)

torch calls whatever the list gives for a name with arguments that the file chooses.
So each name is bound to a function of this module that serves these cases and raises
for the rest, not to the object of that name. `getattr` reaches anything from
anywhere, and a dtype takes a state from the file that makes numpy read the file's
bytes as pointers (seen: a crash in a hundred bytes, numpy 1.24 to 2.4).
"""

from pickle import UnpicklingError
from typing import Any, Callable, List, Tuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version

# numpy 1 pickles under the first name, numpy 2 under the second.
NUMPY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')
# Plain numbers, as numpy spells them in pickles.
DTYPE_CODES = 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()


class _SavedHistory(HistoryBuffer):
    """A `HistoryBuffer` until its state is read and checked, then a plain one.

    The class's own `__setstate__` writes what the file says into the registry of
    statistics that all buffers share; this one leaves the registry alone.
    """

    CURVES = ('_log_history', '_count_history')

    def __init__(self, *args, **kwargs):
        raise UnpicklingError('HistoryBuffer is called, which mmengine never writes')

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        state.pop('statistics_methods', None)
        curves = [state.get(key) for key in self.CURVES]
        if (
            set(state) != {'max_length', *self.CURVES}
            or type(state['max_length']) is not int
            or not all(isinstance(x, np.ndarray) and x.ndim == 1 for x in curves)
        ):
            raise UnpicklingError(
                f'HistoryBuffer with the state {_brief(state)}; mmengine writes an '
                'int max_length and two one-dimensional arrays, _log_history and '
                '_count_history'
            )
        state.update({key: state[key].view(np.ndarray) for key in self.CURVES})
        self.__class__ = HistoryBuffer
        HistoryBuffer.__setstate__(self, state)


class _NamedArray(np.ndarray):
    """Stands for numpy.ndarray, which these files name but never call.

    Nothing is ever of this class, unless other code has allowed numpy's own
    `_reconstruct` (a usual workaround): then it pickles as what it is.
    """

    def __new__(cls, *args, **kwargs):
        raise UnpicklingError('numpy.ndarray is called, which mmengine never writes')

    def __reduce__(self):
        return self.view(np.ndarray).__reduce__()


class _NamedOneCycle(OneCycleParamScheduler):
    """Stands for OneCycleParamScheduler, which is named but never called."""

    def __new__(cls, *args, **kwargs):
        raise UnpicklingError(
            'OneCycleParamScheduler is called, which mmengine never writes'
        )


# (class, what stands for it in a file, the attributes that files ask for)
ATTRIBUTES = (
    (HistoryBuffer, _SavedHistory, ('min', 'max', 'current', 'mean')),
    (
        OneCycleParamScheduler,
        _NamedOneCycle,
        ('_annealing_cos', '_annealing_linear'),
    ),
)


def _getattr(owner: Any, name: Any, *default: Any) -> Callable:
    """Stands for builtins.getattr: six functions of mmengine, and nothing else."""
    for cls, stand_in, names in ATTRIBUTES:
        is_owner = owner is stand_in or owner is cls
        if is_owner and type(name) is str and name in names:
            return getattr(cls, name)
    raise UnpicklingError(
        f'getattr({_brief(owner)}, {_brief(name)}) is refused: mmengine writes it '
        'for the statistics of HistoryBuffer and the annealing of OneCycleLR only'
    )


def _dtype(code: Any, *flags: Any) -> np.dtype:
    """Stands for numpy.dtype: numpy's own, unchangeable objects for plain numbers.

    numpy ignores a pickled state for these objects, but not for the copies that
    `numpy.dtype(code, False, True)` would make. The state's byte order is ignored
    with the rest: files are taken to come from a machine like this one.
    """
    if type(code) is not str or code not in DTYPE_CODES:
        raise UnpicklingError(
            f'numpy dtype {_brief(code)} is refused: allowed are the plain numbers '
            + ', '.join(DTYPE_CODES)
        )
    return np.dtype(code)


def _scalar(dtype: Any, data: Any) -> np.generic:
    """Stands for numpy's `scalar`: numbers from bytes, no objects."""
    _check_dtype(dtype)
    if type(data) is not bytes or len(data) != dtype.itemsize:
        raise UnpicklingError(
            f'a numpy scalar of {dtype} from {_brief(data)} is refused: it takes '
            f'{dtype.itemsize} bytes'
        )
    return np.frombuffer(data, dtype)[0]


def _reconstruct(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    """Stands for numpy's `_reconstruct`: the empty array that a state then fills."""
    if not (subtype is _NamedArray or subtype is np.ndarray) or shape != (0,):
        raise UnpicklingError(
            f'a numpy array of type {_brief(subtype)} and first shape '
            f'{_brief(shape)} is refused: mmengine writes numpy.ndarray and (0,)'
        )
    return np.empty(0, np.int8)


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, np.dtype) or dtype.str[1:] not in DTYPE_CODES:
        raise UnpicklingError(
            f'numpy dtype {_brief(dtype)} is refused: allowed are the plain numbers '
            + ', '.join(DTYPE_CODES)
        )


def _brief(value: Any) -> str:
    # A file may hold anything: lists that hold each other have a repr without end.
    if isinstance(value, (str, bytes)):
        return repr(value if len(value) <= 60 else value[:60]) + '...' * (
            len(value) > 60
        )
    if value is None or isinstance(value, (bool, int, float, type, np.dtype)):
        return repr(value)[:80]
    if isinstance(value, dict):
        return f'a dict of {len(value)} entries'
    return f'a {type(value).__name__}'


def mmengine_globals() -> List[Tuple[Callable, str]]:
    """(object, name in the file) pairs for `torch.serialization.add_safe_globals`."""
    pairs = [
        (_SavedHistory, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (
            _NamedOneCycle,
            'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler',
        ),
        (_getattr, 'builtins.getattr'),
        (_NamedArray, 'numpy.ndarray'),
        (_dtype, 'numpy.dtype'),
    ]
    for module in NUMPY_MODULES:
        pairs.append((_reconstruct, f'{module}._reconstruct'))
        pairs.append((_scalar, f'{module}.scalar'))
    # torch hands a state only to objects whose class is on the list. In a pickle a
    # name ends where its line ends, so no file can name these classes to call them.
    stateful = [np.ndarray, *(type(np.dtype(code)) for code in DTYPE_CODES)]
    pairs.extend((cls, f'state only\n{cls.__name__}') for cls in stateful)
    return pairs


def allow_mmengine_checkpoints() -> None:
    """Make mmengine's own checkpoints readable with `weights_only=True`.

    Files written on CPU or GPU, with AMP or EMA, under numpy 1 or 2 then load in
    `tools/test.py` and for `--resume`; anything else in a file is refused as before.
    `import mmlit` calls this; calling it again changes nothing. Before torch 2.6,
    where loading is unrestricted by default, it does nothing.
    """
    if digit_version(torch.__version__)[:2] < (2, 6):
        return
    torch.serialization.add_safe_globals(mmengine_globals())
