"""Write pictures, records and label maps, each file whole or not at all.

OUT/pictures/NAME            the image with what was found in it; videos as .mp4
OUT/predictions/NAME.json    the same in figures; for a video NAME.jsonl, a line
                             for each frame
OUT/label_maps/NAME.png      segmentation: the class of each pixel, from 0; for a
                             video NAME/000000.png and so on
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmlit.checkpoints.atomic import write_whole
from mmlit.errors import UserError
from mmlit_tools.infer.sources import Source

PICTURES = ('.jpg', '.jpeg', '.png')


@dataclass
class Prediction:
    """The prediction for one image."""

    # For the JSON: plain numbers, text, lists, dicts.
    record: dict
    # The drawn image (H, W, 3), BGR, uint8.
    picture: np.ndarray
    # Segmentation: the class of each pixel (H, W).
    label_map: np.ndarray | None = None


class Results:
    """The folder of the results.

    Raises:
        UserError: The folder holds something other than results, or two sources have
            one picture.
    """

    def __init__(self, folder: Path, sources: list[Source]):
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f'--out-dir {folder} is a file')
        earlier = folder / 'predictions'
        if folder.is_dir() and any(folder.iterdir()) and not earlier.is_dir():
            raise UserError(
                f'--out-dir {folder} holds something other than results of an earlier '
                'run: give a new or an empty folder'
            )
        pictures = Counter(map(self._picture, sources))
        picture, count = pictures.most_common(1)[0]
        if count > 1:
            raise UserError(
                f'{count} of the inputs would be drawn to {picture}: rename one'
            )
        earlier.mkdir(parents=True, exist_ok=True)

    def write_image(self, source: Source, prediction: Prediction) -> None:
        """Write the files of an image."""
        shape = prediction.picture.shape
        record = {'image': source.path.as_posix(), **_size(shape), **prediction.record}
        if prediction.label_map is not None:
            path = self.folder / 'label_maps' / f'{source.name}.png'
            self._write_label_map(path, prediction.label_map, record)
        _write_image(self._picture(source), prediction.picture)
        # The last one: where it is, the others are.
        path = self.folder / 'predictions' / f'{source.name}.json'
        _write(path, (json.dumps(record) + '\n').encode())

    @contextlib.contextmanager
    def write_video(
        self, source: Source, fps: float
    ) -> Iterator[Callable[[Prediction], None]]:
        """Give a function that writes the next frame.

        The files appear at the end, after an interruption too, with the frames so far.
        """
        lines_path = self.folder / 'predictions' / f'{source.name}.jsonl'
        with _in_the_end(self._picture(source)) as part, _in_the_end(lines_path) as (
            lines_part
        ), open(lines_part, 'w') as lines, _Film(part, fps) as film:
            count = 0

            def write(prediction: Prediction) -> None:
                nonlocal count
                record = {'video': source.path.as_posix(), 'frame': count}
                record.update(_size(prediction.picture.shape), **prediction.record)
                if prediction.label_map is not None:
                    maps = self.folder / 'label_maps' / source.name
                    path = maps / f'{count:06}.png'
                    self._write_label_map(path, prediction.label_map, record)
                film.write(prediction.picture)
                lines.write(json.dumps(record) + '\n')
                count += 1

            yield write

    def _picture(self, source: Source) -> Path:
        kept = ('.mp4',) if source.is_video else PICTURES
        known = source.path.suffix.lower() in kept
        ending = '' if known else '.mp4' if source.is_video else '.png'
        return self.folder / 'pictures' / (source.name + ending)

    def _write_label_map(self, path: Path, labels: np.ndarray, record: dict) -> None:
        _write_image(path, labels.astype(np.uint8 if labels.max() < 256 else np.uint16))
        record['label_map'] = path.relative_to(self.folder).as_posix()


class _Film:
    """A video that is written frame by frame."""

    def __init__(self, path: Path, fps: float):
        self.path, self.fps, self._writer = path, fps, None

    def __enter__(self) -> _Film:
        return self

    def write(self, picture: np.ndarray) -> None:
        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*'mp4v')
            size = picture.shape[1::-1]
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, size)
        if not self._writer.isOpened():
            raise OSError(f'this OpenCV cannot write a video (mp4v) to {self.path}')
        self._writer.write(picture)

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.release()


@contextlib.contextmanager
def _in_the_end(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes its place at the end.

    At an interruption by the user, too; after any other failure it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.stem}.part{path.suffix}')
    try:
        yield part
    except KeyboardInterrupt:
        if part.exists():
            os.replace(part, path)
        raise
    except BaseException:
        if part.exists():
            part.unlink()
        raise
    os.replace(part, path)


def _size(shape: tuple[int, ...]) -> dict:
    return {'width': shape[1], 'height': shape[0]}


def _write_image(path: Path, image: np.ndarray) -> None:
    _write(path, cv2.imencode(path.suffix, image)[1].tobytes())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, memoryview(content))
