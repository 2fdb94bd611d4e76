"""Find the latest whole checkpoint of a work folder.

mmengine resumes from the one that `last_checkpoint` names, and its own hook writes both
in place, so that a kill may leave either of them torn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmlit.checkpoints.reader import read_checkpoint
from mmlit.errors import BrokenCheckpointError, UserError


def find_whole_checkpoint(config: Config) -> str | None:
    """Return the path of the checkpoint to resume from, or None if there is none.

    Each is read whole before it is taken, and those that are passed over are named.

    Raises:
        UserError: The latest one is unsafe, or cannot be read at present.
    """
    note = Path(config.work_dir, 'last_checkpoint')
    noted = note.read_text().strip() if note.is_file() else ''
    if '://' in noted:
        return noted  # Not on this machine: there is nothing to compare it with.
    for path in _candidates(config, note, noted):
        fault = _fault(path)
        if fault is None:
            return str(path)
        print(f'Passed over: {fault}')
    return None


def _fault(path: Path) -> str | None:
    """Return why a checkpoint is not whole, or None if it is."""
    try:
        read_checkpoint(path)
    except (BrokenCheckpointError, FileNotFoundError) as error:
        return str(error)
    except (OSError, MemoryError) as error:
        # It may be whole, and the one to resume from: do not pass it over.
        raise UserError(
            f'{path} cannot be read now: {error or type(error).__name__}'
        ) from error
    return None


def _candidates(config: Config, note: Path, noted: str) -> Iterator[Path]:
    """Yield checkpoints in the order in which to try them.

    First those that were written after the note and have come further: a kill may come
    between the two. Then the noted one, then the ones before it. Any others are of an
    earlier training in the same folder. Without a note: the newest first.
    """
    folder, pattern = _place(config)
    found = {
        path: int(match[1])
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := pattern.fullmatch(path.name))
    }
    newest_first = sorted(found, key=lambda p: (p.stat().st_mtime_ns, found[p]))[::-1]
    if not noted:
        yield from newest_first
        return
    last = Path(noted)
    if not last.is_file():  # The folder may have been moved.
        last = folder / last.name
    match = pattern.fullmatch(last.name)
    number = int(match[1]) if match else None
    written = note.stat().st_mtime_ns
    for path in newest_first:
        further = number is None or found[path] > number
        if path != last and further and path.stat().st_mtime_ns > written:
            yield path
    yield last
    for path in newest_first:
        earlier = number is None or found[path] < number
        if path != last and earlier and path.stat().st_mtime_ns <= written:
            yield path


def _place(config: Config) -> tuple[Path, re.Pattern]:
    """Return the folder of the checkpoints and the pattern of their names."""
    hook = config.get('default_hooks', {}).get('checkpoint') or {}
    folder = Path(config.work_dir)
    if hook.get('out_dir') is not None:
        folder = Path(hook['out_dir'], folder.name)
    template = hook.get('filename_tmpl')
    if template is None:
        return folder, re.compile(r'(?:epoch|iter)_(\d+)\.pth')
    return folder, re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
