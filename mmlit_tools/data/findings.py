"""Collect the findings of data checks; look at many files in threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

#: What Pillow raises on a file that it cannot read.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
BATCH = 32
#: Threads that read files, and findings of a kind that are named, unless others are
#: asked for.
WORKERS = min(8, os.cpu_count() or 1)
SHOWN = 5


@dataclass
class Kind:
    """Findings of one kind: their number, and the first of them."""

    text: str
    is_error: bool
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """Faults of one dataset, grouped by kind.

    An error cannot be right: training would crash, or learn something other than
    what the files mean. A warning also occurs in sound data.

    Args:
        title: What was checked.
        shown: How many findings of a kind are named; the rest is counted.

    Attributes:
        extent: How much was looked at, as text.
    """

    def __init__(self, title: str, shown: int = SHOWN):
        self.title = title
        self.shown = shown
        self.extent = ''
        self._kinds: dict[str, Kind] = {}

    def error(self, text: str, example: str = '') -> None:
        """Note an error of the kind `text`; `example` names the one at hand."""
        self._add(text, True, example)

    def warn(self, text: str, example: str = '') -> None:
        """Note a warning of the kind `text`; `example` names the one at hand."""
        self._add(text, False, example)

    @property
    def errors(self) -> list[Kind]:
        """Kinds of errors, the worst first."""
        return [kind for kind in self.kinds if kind.is_error]

    @property
    def kinds(self) -> list[Kind]:
        """All kinds: errors first, those of the whole dataset first, then by count."""
        return sorted(
            self._kinds.values(),
            key=lambda kind: (not kind.is_error, bool(kind.examples), -kind.count),
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report."""
        errors = len(self.errors)
        counts = [(errors, 'error'), (len(self._kinds) - errors, 'warning')]
        said = [f'{n} kind{"s" * (n > 1)} of {what}s' for n, what in counts if n]
        yield ': '.join(
            filter(None, [self.title, self.extent, ', '.join(said) or 'nothing found'])
        )
        for kind in self.kinds:
            number = f' ({kind.count})' if kind.examples else ''
            yield f'  {"error" if kind.is_error else "warning"}: {kind.text}{number}'
            yield from (f'      {example}' for example in kind.examples)
            if kind.count > len(kind.examples) > 0:
                yield f'      ... and {kind.count - len(kind.examples)} more'

    def _add(self, text: str, is_error: bool, example: str) -> None:
        kind = self._kinds.setdefault(text, Kind(text, is_error))
        kind.count += 1
        if example and len(kind.examples) < self.shown:
            kind.examples.append(example)


def look_at_all(
    look: Callable, items: Iterable, label: str, workers: int
) -> Iterator[tuple]:
    """Yield (item, look(item)) of all items, in order, under a progress bar.

    Threads suffice: they wait for the disk, and Pillow decodes without the GIL.
    """
    items = list(items)
    batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    columns = [*Progress.get_default_columns(), MofNCompleteColumn()]
    console = Console(file=sys.stderr)
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    with progress as bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task(label, total=len(items))
        results = pool.map(lambda batch: [look(item) for item in batch], batches)
        for batch, looks in zip(batches, results):
            yield from zip(batch, looks)
            bar.advance(task, len(batch))
