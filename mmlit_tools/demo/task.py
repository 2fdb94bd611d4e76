"""Define what differs between the tasks of the demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmlit_tools.demo.pictures import Comparison


@dataclass(frozen=True)
class Task:
    """A kind of task: detection or segmentation."""

    # The figures that have to reach the goal: name -> key in mmengine's records.
    keys: dict[str, str]
    # A perfect figure in those records: 1 or 100.
    perfect: float
    # Label of the axis of the plot of figures.
    axis: str
    # The goal of each figure, from 0 to 1.
    goal: float
    # How long its config trains, in words.
    duration: str
    # Name of what `tools/test.py --out` writes, and further settings for it.
    results: str
    test_options: tuple[str, ...]
    # (folder of the data, result of --out, number) -> images spread evenly over the
    # test run, so that they are not chosen for how well the model did on them.
    read: Callable[[Path, Path, int], list[Comparison]]
    # Keys of further figures to print, one a category: name -> key.
    categories: dict[str, str]

    def figures(self, record: dict[str, float]) -> dict[str, float]:
        """Return the figures of a record, from 0 to 1.

        A model that finds nothing at all may lack one: that is 0.
        """
        return {
            name: record.get(k, 0.0) / self.perfect for name, k in self.keys.items()
        }
