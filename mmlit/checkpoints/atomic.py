"""Writing a file whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO, Callable, Iterator

try:
    import fcntl
except ImportError:  # Windows: works, but one process at a time.
    fcntl = None

CHUNK = 1 << 22
# What file systems say that have no locks, some of those of clusters among them.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write_whole(
    path: Path, content: memoryview, replace: bool, advance: Callable[[int], None]
) -> None:
    """Writes `content` to `path`, which meanwhile is what it was before.

    The bytes go to `.NAME.part` beside it, which then takes its place in one step and
    is on the disk when this returns. What a killed process left there is overwritten by
    the next one; after any other failure it is removed.

    Args:
        path: The file, in a folder that exists.
        content: Its bytes.
        replace: Whether a file that is there may be replaced.
        advance: Called with the number of bytes of each step.

    Raises:
        OSError: The disk is full, say, or another process is writing this file.
    """
    part = path.with_name(f'.{path.name}.part')
    with _only_writer(part) as file:
        try:
            done = 0
            while done < len(content):
                written = file.write(content[done : done + CHUNK])
                done += written
                advance(written)
            os.fsync(file.fileno())
            if path.exists() and not replace:
                raise FileExistsError(f'{path} has appeared meanwhile')
            os.replace(part, path)
        except BaseException as error:
            part.unlink()
            if isinstance(error, OSError) and error.strerror and not error.filename:
                raise OSError(f'{path} cannot be written: {error.strerror}') from error
            raise
    _sync_folder(path.parent)


def remove_parts(folder: Path) -> None:
    """Removes what killed processes left in `folder`; a living one keeps its file."""
    for part in folder.glob('.*.part'):
        with contextlib.suppress(OSError), _only_writer(part):
            part.unlink()


@contextlib.contextmanager
def _only_writer(part: Path) -> Iterator[BinaryIO]:
    # Not truncated before it is locked: it may be another process's work.
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), 'wb', 0) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Or else it has taken its place already.
                mine = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
            except (BlockingIOError, FileNotFoundError):
                mine = False
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                mine = True
            if not mine:
                raise OSError(f'another process is writing {part}')
        file.truncate(0)
        yield file


def _sync_folder(folder: Path) -> None:
    """Has the new name survive a power failure, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
