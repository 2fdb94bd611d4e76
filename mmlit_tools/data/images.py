"""Check image files as a pipeline loads and resizes them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

from mmcv.image.geometric import rescale_size
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmlit_tools.data.findings import IMAGE_ERRORS

ORIENTATION = 274  # the tag of EXIF
SIDEWAYS = (5, 6, 7, 8)  # its values for a photo that lies on its side
ANOTHER_WAY = (2, 3, 4)  # ... for one that is upside down or mirrored
#: A warning: no size tells whether boxes or mask were drawn before that turn.
HIDDEN_TURN = (
    'image that its EXIF data turn without changing its size: boxes and masks must be '
    'those of the turned image'
)
RESIZED_AWAY = 'image so narrow that the pipeline resizes it to no pixel at all'


class Seen(NamedTuple):
    """An image as the pipeline loads it, and the EXIF orientation of its file."""

    width: int
    height: int
    turn: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def hides_its_turn(self) -> bool:
        """Whether it is turned in a way that its size does not show."""
        square = self.width == self.height
        return self.turn in ANOTHER_WAY or (self.turn in SIDEWAYS and square)


class ImageCheck:
    """Load image files by the pipeline of a dataset.

    Args:
        part: The config of the dataset.
        quick: Read headers alone: data that are cut off or broken are not seen.

    Raises:
        TypeError: The pipeline's ``LoadImageFromFile`` has arguments that it does not
            know.
    """

    def __init__(self, part: dict, quick: bool = False):
        loaders = list(steps(part, 'LoadImageFromFile')) or [{}]
        # Unreadable files are what we look for.
        options = dict(loaders[0], ignore_empty=False)
        options.pop('type', None)
        self._load = None if quick else LoadImageFromFile(**options)
        self._scales = list(_smallest_scales(part))

    def __call__(self, path: str) -> Seen:
        """Read an image.

        Raises:
            FileNotFoundError: The file is missing.
            OSError: It cannot be read; the text says why.
        """
        if not os.path.getsize(path):
            raise OSError('the file is empty, 0 bytes')
        try:
            with Image.open(path) as image:
                width, height = image.size
                turn = image.getexif().get(ORIENTATION, 1)
        except IMAGE_ERRORS as error:
            raise OSError(str(error)) from error
        if turn in SIDEWAYS:
            width, height = height, width
        if self._load is not None:
            height, width = self._decoded(path).shape[:2]
        return Seen(width, height, turn)

    def _decoded(self, path: str):
        try:
            return self._load(dict(img_path=path))['img']
        except Exception as error:  # cv2.error, AssertionError, MemoryError, ...
            raise OSError(
                'its header is sound, but LoadImageFromFile of the pipeline cannot '
                f'decode it ({type(error).__name__}): cut off, broken, or of a format '
                'or depth that it does not know'
            ) from error

    def resizing_fault(self, width: int, height: int) -> str:
        """Spell how the pipeline would resize an image to nothing, or return ''."""
        for scale in self._scales:
            size = rescale_size((width, height), scale)
            if min(size) < 1:
                return (
                    f'{width}x{height} px become {size[0]}x{size[1]} px at scale '
                    f'{scale}'
                )
        return ''


def steps(part: dict, kind: str) -> Iterator[dict]:
    """Yield the steps of a kind in a dataset's pipeline, nested ones too."""
    waiting = list(part.get('pipeline') or ())
    while waiting:
        step = waiting.pop(0)
        if step.get('type') == kind:
            yield step
        inner = step.get('transforms', ())
        waiting[:0] = [child for child in inner if isinstance(child, dict)]


def loading_steps(part: dict) -> list[dict]:
    """Return the steps of a dataset's pipeline that load files."""
    names = [
        (step, kind if isinstance(kind := step['type'], str) else kind.__name__)
        for step in part.get('pipeline') or ()
    ]
    return [step for step, name in names if name.startswith('Load')]


def _smallest_scales(part: dict) -> Iterator[tuple[float, float]]:
    """Yield the smallest scales to which a pipeline resizes with `keep_ratio`."""
    for kind, key in (
        ('Resize', 'scale'),
        ('RandomResize', 'scale'),
        ('RandomChoiceResize', 'scales'),
    ):
        for step in steps(part, kind):
            scales = step.get(key)
            if not step.get('keep_ratio') or scales is None:
                continue
            if not isinstance(scales, (tuple, list)):
                scales = (scales, scales)
            if not isinstance(scales[0], (tuple, list)):
                scales = [scales]
            least = min(step.get('ratio_range', (1,)))
            # Whole numbers, as mmcv makes them; a side may be infinite.
            yield from (
                tuple(s if math.isinf(s) else int(s * least) for s in pair)
                for pair in scales
            )
