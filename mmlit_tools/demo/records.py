"""Read what a training or test run of mmengine left in its work directory.

Only the machine-readable files are read (`scalars.json`, the metrics' json, the name
of the last checkpoint), never the text log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from mmlit import read_checkpoint
from mmlit.errors import UserError
from mmlit_tools.locking import lock_folder

# The demo's own note in a work directory: the fingerprint of its config.
NOTE = 'demo.json'


@dataclass
class History:
    """Curves of a training run: (epoch, value) pairs in the order of epochs."""

    loss: list[tuple[float, float]] = field(default_factory=list)
    # By the name of the metric.
    figures: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def read_history(
    work_dir: Path, figures: Callable[[dict[str, float]], dict[str, float]]
) -> History:
    """Read the scalars of a run that may have been stopped and resumed.

    Args:
        work_dir: Work directory of the run.
        figures: Picks the figures of an evaluation's record, by name.
    """
    losses, metrics = {}, {}
    # Each start writes a folder named after its time: a resumed run's later records
    # replace those of the same step that were made before the stop.
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for record in _records(path):
            if 'loss' in record:
                losses[record['step']] = record
            else:
                metrics[record['step']] = record
    # Iteration i of epoch e satisfies i <= e * length: the largest i / e, rounded up,
    # is the number of iterations an epoch has.
    length = math.ceil(max((i / r['epoch'] for i, r in losses.items()), default=1))
    history = History(
        [(step / length, r['loss']) for step, r in sorted(losses.items())]
    )
    for step, record in sorted(metrics.items()):
        for name, value in figures(record).items():
            history.figures.setdefault(name, []).append((step, value))
    return history


def _records(path: Path) -> list[dict]:
    records = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            # A run that was killed while it wrote leaves half a line.
            continue
        if isinstance(record, dict) and 'step' in record:
            records.append(record)
    return records


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Read the metrics of the latest test run in a work directory."""
    paths = sorted(p for p in work_dir.glob('*/*.json') if p.stem == p.parent.name)
    if not paths:
        raise UserError(
            f'{work_dir} holds no metrics (<time>/<time>.json): the test run that '
            'should have written them did not end well'
        )
    return json.loads(paths[-1].read_text())


def last_checkpoint(work_dir: Path) -> tuple[Path, int] | None:
    """Return the last checkpoint that was written whole, and its epochs, or None.

    mmengine notes a checkpoint's name once it is written, so a file cut short by a kill
    is never taken. Only the name in the note is used: the folder may have been moved.
    """
    try:
        noted = (work_dir / 'last_checkpoint').read_text().strip()
    except FileNotFoundError:
        return None
    path = work_dir / Path(noted).name
    if path.name == 'interrupted.pth' and path.is_file():  # after a SIGTERM
        return path, read_checkpoint(path)['meta']['epoch']
    kind, _, number = path.stem.partition('_')
    if not path.is_file() or kind != 'epoch' or not number.isdecimal():
        return None
    return path, int(number)


def plan_training(work_dir: Path, wanted: str, epochs: int) -> tuple[str, Path | None]:
    """Decide how to go on in a work directory that an earlier run may have left.

    Returns:
        'start', 'resume', 'finished' or 'changed' (the earlier run had another config),
        and the checkpoint to resume from or to evaluate.
    """
    found = last_checkpoint(work_dir)
    if found is None:
        return 'start', None
    checkpoint, epoch = found
    if _noted_config(work_dir) != wanted or epoch > epochs:
        return 'changed', None
    return ('finished' if epoch == epochs else 'resume'), checkpoint


def fingerprint(config: Config, epochs: int, root: Path) -> str:
    """Return a hash of a config, the same wherever the repository at `root` lies."""
    text = json.dumps([config.to_dict(), epochs], sort_keys=True, default=str)
    return hashlib.sha256(text.replace(str(root), '').encode()).hexdigest()


def note_config(work_dir: Path, config_fingerprint: str) -> None:
    """Note which config is trained in a work directory."""
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / NOTE).write_text(json.dumps({'config': config_fingerprint}))


def _noted_config(work_dir: Path) -> str | None:
    try:
        return json.loads((work_dir / NOTE).read_text())['config']
    except (OSError, ValueError, KeyError):
        return None


def remove_run(work_dir: Path) -> None:
    """Remove a work directory, if it is the demo's."""
    if not work_dir.exists():
        return
    if any(work_dir.iterdir()) and not (work_dir / NOTE).exists():
        raise UserError(
            f'{work_dir} holds something that the demo did not write (no {NOTE}), so '
            'it is not emptied; give another --out'
        )
    shutil.rmtree(work_dir)


@contextlib.contextmanager
def one_demo_in(folder: Path) -> Iterator[None]:
    """Let one demo at a time work in a folder; a kill frees the lock."""

    def refuse():
        raise UserError(f'another demo is running in {folder}')

    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, refuse):
        yield
