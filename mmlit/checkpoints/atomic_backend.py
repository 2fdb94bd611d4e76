"""Files of mmengine's that are written whole or not at all."""

import contextlib
from pathlib import Path
from typing import Any, Iterator, List, Optional

from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import register_backend

from .atomic import write_whole

#: `backend_args` of whatever writes through mmengine.
BACKEND_ARGS = dict(backend='whole_file')


@register_backend(BACKEND_ARGS['backend'], force=True)
class WholeFileBackend(LocalBackend):
    """Local files that are written whole or not at all."""

    def __init__(self):
        self._to_remove: Optional[List[str]] = None

    def put(self, obj: bytes, filepath: Any) -> None:
        """Write a file, which until then is what it was before."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(filepath), memoryview(obj), True, lambda _: None)

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
