"""Write files whole or not at all, in one step."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import register_backend

_CHUNK = 1 << 22
#: `backend_args` of whatever writes through mmengine.
BACKEND_ARGS = dict(backend='whole_file')


def write_whole(
    path: Path,
    content: memoryview,
    replace: bool = True,
    advance: Callable[[int], None] = lambda written: None,
) -> None:
    """Write `content` to `path`, which until then is what it was before.

    Args:
        path: The file, in a folder that exists.
        content: Its bytes.
        replace: Whether a file that is there may be replaced.
        advance: Called with the number of bytes of each step.

    Raises:
        OSError: The disk is full, say. Nothing is left of the attempt.
    """
    # The process, for `remove_parts`, and a token: machines may share a disk.
    part = path.with_name(f'.{os.getpid()}-{secrets.token_hex(4)}.{path.name}.part')
    try:
        with part.open('xb', buffering=0) as file:
            done = 0
            while done < len(content):
                written = file.write(content[done : done + _CHUNK])
                done += written
                advance(written)
            os.fsync(file.fileno())
        if path.exists() and not replace:
            raise FileExistsError(f'{path} has appeared meanwhile')
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror and not error.filename:
            raise OSError(f'{path} cannot be written: {error.strerror}') from error
        raise
    with contextlib.suppress(OSError):  # Not every system can flush a folder.
        handle = os.open(path.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left in `folder`; on Linux, living ones keep it."""
    for part in folder.glob('.*.part'):
        process = part.name[1:].partition('-')[0]
        if not (process.isdigit() and Path('/proc', process).exists()):
            with contextlib.suppress(OSError):
                part.unlink()


@register_backend(BACKEND_ARGS['backend'], force=True)
class WholeFileBackend(LocalBackend):
    """Write mmengine's local files whole or not at all."""

    def __init__(self):
        self._to_remove: Optional[List[str]] = None

    def put(self, obj: bytes, filepath: Any) -> None:
        """Write a file, which until then is what it was before."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(filepath), memoryview(obj))

    def remove(self, filepath: Any) -> None:
        """Remove a file, inside of `removing_last` at the end of it."""
        if self._to_remove is None:
            super().remove(filepath)
        else:
            self._to_remove.append(filepath)

    @contextlib.contextmanager
    def removing_last(self) -> Iterator[None]:
        """Have files removed once those that replace them are there."""
        self._to_remove = []
        try:
            yield
            for filepath in self._to_remove:
                super().remove(filepath)
        finally:
            self._to_remove = None
