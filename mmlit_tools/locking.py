"""Lock a folder, so that one process at a time works on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes are not told apart.
    fcntl = None


@contextlib.contextmanager
def lock_folder(folder: Path, when_busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder, `.NAME.lock` beside it; a kill frees it.

    Args:
        folder: It need not exist; its parent does.
        when_busy: Called if another process holds the lock: it raises, or returns to
            wait.
    """
    # The file stays: removing it would let two processes lock two different files.
    with open(folder.with_name(f'.{folder.name}.lock'), 'w') as lock:
        if fcntl is not None:
            # Children that outlive this process keep the lock.
            os.set_inheritable(lock.fileno(), True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                when_busy()
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
