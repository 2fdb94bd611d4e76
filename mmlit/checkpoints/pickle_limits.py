"""How much a pickle may hold, and in which forms: the limits of `inert_pickle.py`."""

import pickle
from typing import Any, BinaryIO, Callable, Iterable

#: Reads of the unpickler, of which each instruction takes one to three. The largest
#: checkpoint of a LIT, with optimizer and EMA, takes 110,000.
MOST_READS = 1_000_000
#: Containers in containers; mmengine's checkpoints go down about ten.
MOST_LEVELS = 100
#: A file may hold the same object in several places, but not much more often than this.
MOST_SHARING = 20
_LARGEST_KEY = 1 << 60  # Beyond, different whole numbers hash alike.


class Within:
    """A file that does not promise more bytes than it has, and counts the reads."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size
        self._reads = 0
        self.readline = file.readline

    def count(self, reads: int) -> None:
        """Count reads that were made, or will be at most."""
        self._reads += reads
        if self._reads > MOST_READS:
            raise pickle.UnpicklingError(
                f'more than {MOST_READS:,} pickle instructions, far more than a '
                'checkpoint takes'
            )

    def read(self, count: int) -> bytes:
        """As of a file; more than there is left raises before it takes memory."""
        self.count(1)
        if count > 100 and count > self._size - self._file.tell():
            raise EOFError(f'{count} bytes are announced where fewer are left')
        return self._file.read(count)


def is_count(value: Any) -> bool:
    """Whether it is a number that a size can be."""
    return type(value) is int and 0 <= value < 1 << 63


def is_view(view: Any) -> bool:
    """Key, offset and length of a part of a storage, which old files have."""
    if view is None:
        return True
    return (
        type(view) is tuple
        and [type(item) for item in view] == [str, int, int]
        and all(map(is_count, view[1:]))
    )


def check_keys(keys: Any) -> None:
    """Raise for what a file could make slow, or endless, to hash."""
    if type(keys) not in (list, tuple):
        raise pickle.UnpicklingError(f'a set of a {type(keys).__name__}')
    for key in keys:
        if type(key) is int:
            good = abs(key) < _LARGEST_KEY
        elif type(key) is tuple:
            good = len(key) < 16 and all(
                type(item) in (str, type(None)) for item in key
            )
        else:
            good = type(key) in (str, bytes, bool, float, type(None))
        if not good:
            raise pickle.UnpicklingError(
                f'a {type(key).__name__} as a key, which no checkpoint holds'
            )


def check_sharing(root: Any, parts_of: Callable[[Any], Iterable[Any]]) -> None:
    """Raise for what is too deep, holds itself, or grows without end when unfolded."""
    sizes, levels, open_ids, objects = {}, {}, set(), 0
    stack = [(root, False)]
    while stack:
        value, is_left = stack.pop()
        parts = list(parts_of(value))
        if is_left:
            open_ids.discard(id(value))
            sizes[id(value)] = 1 + sum(sizes.get(id(part), 1) for part in parts)
            level = 1 + max((levels.get(id(part), 0) for part in parts), default=0)
            levels[id(value)] = level
            if level > MOST_LEVELS:
                raise pickle.UnpicklingError(f'more than {MOST_LEVELS} levels')
            continue
        if not parts or id(value) in sizes:
            continue
        if id(value) in open_ids:
            raise pickle.UnpicklingError('a container that holds itself')
        objects += 1 + len(parts)
        open_ids.add(id(value))
        stack.append((value, True))
        stack.extend((part, False) for part in parts)
    if sizes.get(id(root), 1) > MOST_SHARING * objects + 100_000:
        raise pickle.UnpicklingError('containers that hold each other over and over')
