"""Find the input images and videos, and name their results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmlit.errors import UserError

IMAGES = '.jpg .jpeg .png .bmp .tif .tiff .webp .ppm .pgm'.split()
VIDEOS = '.mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv'.split()


class UnreadableError(UserError):
    """An image or a video cannot be read; the text says why."""


@dataclass(frozen=True)
class Source:
    """An image or a video."""

    path: Path
    # The name of its results: its path within the folder that holds all inputs.
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it is taken for a video, by its ending."""
        return self.path.suffix.lower() in VIDEOS


def find_sources(inputs: list[Path], out_dir: Path) -> list[Source]:
    """Return the images and videos that the inputs stand for, each once.

    A file stands for itself, a folder for all images in it and in its sub-folders, in
    the order of their names; hidden ones, and those in `out_dir`, are left out.

    Raises:
        UserError: An input is missing, holds no image, or lies in `out_dir`.
    """
    paths = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f'{given} does not exist (seen from {os.getcwd()})')
        if _lies_in(given, out_dir):
            raise UserError(
                f'{given} lies in --out-dir {out_dir}, where results are written'
            )
        found = _images_in(given, out_dir) if given.is_dir() else [given]
        if not found:
            raise UserError(f'there is no image in {given} ({" ".join(IMAGES)})')
        paths.update({path.resolve(): path for path in found})
    top = os.path.commonpath(
        [(given if given.is_dir() else given.parent).absolute() for given in inputs]
    )
    return [
        Source(path, path.absolute().relative_to(top).as_posix())
        for path in paths.values()
    ]


def _images_in(folder: Path, out_dir: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in IMAGES
        and path.is_file()
        and not any(p.startswith('.') for p in path.relative_to(folder).parts)
        and not _lies_in(path, out_dir)
    )


def _lies_in(path: Path, folder: Path) -> bool:
    folder = folder.resolve()
    return folder in (path.resolve(), *path.resolve().parents)


class Video:
    """An open video; iterating over it gives its frames (H, W, 3), BGR, uint8."""

    def __init__(self, capture: cv2.VideoCapture):
        self._capture = capture
        # Frames by its header; 0 where it says nothing.
        self.count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 25.0

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield frame


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video.

    Raises:
        UnreadableError: It is broken, or not a video.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise UnreadableError('OpenCV cannot open this video')
        yield Video(capture)
    finally:
        capture.release()


def count_frames(source: Source) -> int:
    """Count frames by a video's header; 1 for an image, or an unreadable header."""
    if not source.is_video:
        return 1
    try:
        with open_video(source.path) as video:
            return max(1, video.count)
    except UnreadableError:
        return 1
