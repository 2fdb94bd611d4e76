"""Which checkpoint of a work folder a training goes on from: the latest whole one.

mmengine goes on from the one that `last_checkpoint` names, and its own hook writes both
in place, so a kill may leave either of them torn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmlit_tools.configs import stop


def find_whole_checkpoint(config: Config) -> str | None:
    """The path of the checkpoint to resume from; None where there is none to be had.

    Each one is read through before it is taken, and those that are passed over are
    named.
    """
    note = Path(config.work_dir, 'last_checkpoint')
    noted = note.read_text().strip() if note.is_file() else ''
    if '://' in noted:
        return noted  # not on this machine, and nothing to compare it with
    for path in _candidates(config, note, noted):
        fault = _fault(path)
        if fault is None:
            return str(path)
        print(f'Passed over: {fault}')
    return None


def _fault(path: Path) -> str | None:
    """Why a checkpoint is not whole."""
    from mmlit.checkpoints.reader import read_checkpoint
    from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError

    try:
        read_checkpoint(path)
    except (BrokenCheckpointError, FileNotFoundError) as error:
        return str(error)
    except UnsafeCheckpointError as error:
        stop(str(error))
    except (OSError, MemoryError) as error:
        # Not to be passed over: it may be whole, and is what the run goes on from.
        stop(f'{path} cannot be read now: {error or type(error).__name__}')
    return None


def _candidates(config: Config, note: Path, noted: str) -> Iterator[Path]:
    """Checkpoints in the order in which they are to be tried.

    First those that were written after the note and have come further: a kill may come
    between the two. Then the noted one, then what came before it. Others are of an
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
    """The folder of the checkpoints, and their names with the number as a group."""
    hook = config.get('default_hooks', {}).get('checkpoint') or {}
    folder = Path(config.work_dir)
    if hook.get('out_dir') is not None:
        folder = Path(hook['out_dir'], folder.name)
    template = hook.get('filename_tmpl')
    if template is None:
        return folder, re.compile(r'(?:epoch|iter)_(\d+)\.pth')
    return folder, re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
