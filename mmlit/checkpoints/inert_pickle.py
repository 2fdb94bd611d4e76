"""Look at a pickle before it is read: what it asks for, and how much.

`InertUnpickler` runs a pickle's instructions over stand-ins: nothing that it names is
imported, called or allocated. So a file of a hundred bytes that would take all memory
(`bytearray(10**11)`), read beside its data (a storage of more numbers than the file
holds), or never end (keys that take for ever to hash, a list of lists of lists that
each hold the next one twice) is refused before torch sees it.
"""

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO, Collection, Dict, Iterable, List

import torch

from .pickle_limits import Within, check_keys, check_sharing, is_count, is_view
from .strict_pickle import named_globals, refuse_instruction

MOST_DIMENSIONS = 64

_DICTS = ('collections.OrderedDict', 'yacs.config.CfgNode')
_STATEFUL = (
    *_DICTS,
    'argparse.Namespace',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.core.multiarray._reconstruct',
    'numpy._core.multiarray._reconstruct',
    'numpy.dtype',
)
_TENSORS = tuple(
    f'torch._utils._rebuild_tensor{version}' for version in ('', '_v2', '_v3')
)
#: What newer versions of torch allow beside `strict_pickle`'s table, and may be needed:
#: none of it makes anything of a size that the file chooses.
_OF_NEWER_TORCH = (
    'builtins.complex',
    'torch.Tensor',
    'torch._tensor._rebuild_from_type_v2',
    'torch._utils._rebuild_parameter_with_state',
    'torch._utils._rebuild_tensor_v3',
    'torch.nn.parameter.Parameter',
)


#: Bytes per number of each kind of storage, by its name in a pickle.
ITEM_SIZES = {
    'torch.storage.UntypedStorage': 1,
    **dict.fromkeys(('torch.BoolStorage', 'torch.ByteStorage', 'torch.CharStorage'), 1),
    **dict.fromkeys(('torch.BFloat16Storage', 'torch.HalfStorage'), 2),
    'torch.ShortStorage': 2,
    **dict.fromkeys(('torch.FloatStorage', 'torch.IntStorage'), 4),
    **dict.fromkeys(('torch.DoubleStorage', 'torch.LongStorage'), 8),
    'torch.ComplexFloatStorage': 8,
    'torch.ComplexDoubleStorage': 16,
}


class Name:
    """Stands for what a pickle calls by name."""

    def __init__(self, name: str):
        self.name = name


class Made:
    """Stands for what a call would return, or for a storage."""

    def __init__(self, name: str, parts: List[Any], item_size: int = 0):
        self.name = name
        self.parts = parts
        self.item_size = item_size


class InertUnpickler(pickle._Unpickler):
    """An unpickler that makes nothing, and refuses what would be too much.

    Args:
        file: The pickle.
        size: Bytes of the file.
        also: Names that are allowed beside those of `strict_pickle` and torch.

    Raises:
        pickle.UnpicklingError: By `load`, for a refusal.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    for _name in (
        'INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID FROZENSET '
        'BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER'
    ).split():
        dispatch[getattr(pickle, _name)[0]] = refuse_instruction

    def __init__(self, file: BinaryIO, size: int, also: Collection[str] = ()):
        self._within = Within(file, size)
        super().__init__(self._within)
        self._also = set(also)
        self._names = {*named_globals(), *_OF_NEWER_TORCH, *ITEM_SIZES, *also}
        #: Bytes of each storage that the pickle names, by its key.
        self.storages: Dict[str, int] = {}
        #: Bytes of all tensors together, if each had its own.
        self.declared = 0

    def load(self) -> Any:
        """The pickle's content, of stand-ins."""
        found = super().load()
        check_sharing(found, _parts)
        return found

    def find_class(self, module: str, name: str) -> Name:
        """A stand-in for what is allowed."""
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full not in self._names:
            raise pickle.UnpicklingError(f'GLOBAL {full} is not allowed')
        return Name(full)

    def persistent_load(self, pid: Any) -> Made:
        """A stand-in for a storage, whose size is noted."""
        if not (
            type(pid) is tuple
            and len(pid) in (5, 6)
            and pid[0] in ('storage', b'storage')
            and isinstance(pid[1], Name)
            and pid[1].name in ITEM_SIZES
            and type(pid[2]) is str
            and is_count(pid[4])
            and (len(pid) == 5 or is_view(pid[5]))
        ):
            raise pickle.UnpicklingError('a reference to what is no storage')
        item_size, key = ITEM_SIZES[pid[1].name], pid[2]
        self.storages[key] = max(self.storages.get(key, 0), pid[4] * item_size)
        return Made('a storage', [], item_size)

    def load_frame(self) -> None:
        """A frame holds as many instructions as bytes, at most."""
        super().load_frame()
        self._within.count(len(self._unframer.current_frame.getbuffer()))

    def load_reduce(self) -> None:
        """A call."""
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _call(self, called: Any, args: Any) -> Made:
        if not isinstance(called, Name) or type(args) is not tuple:
            raise pickle.UnpicklingError(f'a call of a {type(called).__name__}')
        name = called.name
        # The type of a tensor may be named, as FSDP's checkpoints do.
        if name in (*ITEM_SIZES, 'torch.Tensor') and name not in self._also:
            raise pickle.UnpicklingError(f'a call of {name}')
        if name in _TENSORS:
            self._note_tensor(args)
        elif name == 'torch._tensor._rebuild_from_type_v2':
            self._call(args[0], args[2])
        elif name == '_codecs.encode':
            # How a pickle of protocol 2 spells bytes. Other codecs and error handlers
            # take for ever (punycode), or make more of a text (namereplace).
            if len(args) != 2 or type(args[0]) is not str or args[1] != 'latin1':
                raise pickle.UnpicklingError('_codecs.encode of more than bytes')
        elif name == 'torch.device':
            _check_device(args)
        elif name == 'builtins.set' and args:
            check_keys(args[0])
        elif name == 'collections.Counter' and args and type(args[0]) is not dict:
            raise pickle.UnpicklingError('a Counter of what is no dict')
        elif name in _DICTS and args:
            check_keys([pair[0] for pair in args[0]])
        return Made(name, list(args))

    def _note_tensor(self, args: tuple) -> None:
        storage, _, shape = args[:3]
        if not isinstance(storage, Made) or storage.item_size == 0:
            raise pickle.UnpicklingError('a tensor without a storage')
        if (
            type(shape) is not tuple
            or len(shape) > MOST_DIMENSIONS
            or not all(is_count(side) for side in shape)
        ):
            raise ValueError('a tensor with a shape that is none')
        size = 8 if len(args) > 7 else storage.item_size  # v3 names its dtype.
        for side in shape:
            size *= side
        self.declared += size

    def load_build(self) -> None:
        """A state for an object."""
        state = self.stack.pop()
        made = self.stack[-1]
        known = _STATEFUL + tuple(self._also)
        if not isinstance(made, Made) or made.name not in known:
            what = getattr(made, 'name', type(made).__name__)
            raise pickle.UnpicklingError(f'a state for a {what}')
        # They become attributes, which must not hide those of the dict.
        if made.name in _DICTS and not (
            type(state) is dict
            and all(type(key) is str and not hasattr(OrderedDict, key) for key in state)
        ):
            raise pickle.UnpicklingError('a dict with attributes of its own')
        made.parts.append(state)

    def load_append(self) -> None:  # noqa: D102
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:  # noqa: D102
        self._extend(self.pop_mark())

    def _extend(self, items: List[Any]) -> None:
        grows = self.stack[-1]
        if isinstance(grows, Made) and grows.name in self._also:
            grows = grows.parts
        if type(grows) is not list:
            raise pickle.UnpicklingError(f'items for a {type(grows).__name__}')
        grows.extend(items)

    def load_setitem(self) -> None:  # noqa: D102
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:  # noqa: D102
        self._set(self.pop_mark())

    def load_dict(self) -> None:
        """A dict of keys and values."""
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def _set(self, items: List[Any]) -> None:
        check_keys(items[::2])
        grows = self.stack[-1]
        if type(grows) is dict:
            grows.update(zip(items[::2], items[1::2]))
        elif isinstance(grows, Made) and grows.name in {*_DICTS, *self._also}:
            grows.parts.extend(items)
        else:
            raise pickle.UnpicklingError(f'keys for a {type(grows).__name__}')

    def load_additems(self) -> None:
        """Items for a set."""
        items = self.pop_mark()
        check_keys(items)
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError('items for what is no set')
        self.stack[-1].update(items)

    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems


def _check_device(args: tuple) -> None:
    """What torch says of a name that is none sounds like a fault of the machine."""
    kinds = [type(arg) for arg in args]
    if kinds not in ([str], [str, int]):
        raise pickle.UnpicklingError('a torch.device of what is no name')
    try:
        torch.device(*args)  # Only a name; nothing is asked of the device.
    except RuntimeError:
        raise ValueError(f'a torch.device of the name {args[0][:80]!r}') from None


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Made):
        return value.parts
    if type(value) is dict:
        return value.values()
    return value if type(value) in (list, tuple) else ()
