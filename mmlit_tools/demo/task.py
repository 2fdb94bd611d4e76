"""What the demo has to know of a kind of task; everything else is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmlit_tools.demo.pictures import Comparison


@dataclass(frozen=True)
class Task:
    """A kind of task: detection or segmentation."""

    # The figures to go by: name -> key in the records that mmengine writes.
    keys: dict[str, str]
    # What a perfect figure is in those records: 1 or 100.
    perfect: float
    # What is drawn over the epochs, for the axis of the plot.
    axis: str
    # What every figure should reach, from 0 to 1.
    goal: float
    # How long its config trains, for people who wait.
    duration: str
    # What `tools/test.py --out` writes, by its name, and further settings for it.
    results: str
    test_options: tuple[str, ...]
    # (folder of the data, what --out wrote, how many) -> images spread evenly over the
    # test run, which means not chosen for how well the model did on them.
    read: Callable[[Path, Path, int], list[Comparison]]
    # Keys of further figures to print, one a category: name -> key.
    categories: dict[str, str]

    def figures(self, record: dict[str, float]) -> dict[str, float]:
        """The figures in a record, from 0 to 1.

        A model that finds nothing at all may have none in its record: that is 0.
        """
        return {
            name: record.get(k, 0.0) / self.perfect for name, k in self.keys.items()
        }
