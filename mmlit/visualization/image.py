"""Load an image as a test pipeline does and map its input back to pixels."""

from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import spell_error

#: Transforms that a test pipeline may have besides `Resize`: others may move pixels.
LOADER = 'LoadImageFromFile'
PADDING = 'Pad'
ANNOTATION_LOADERS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals')


class SingleImage(NamedTuple):
    """An image and the network input made of it.

    In both, pixels are squares, so that the image spans 0..w and 0..h. The input is
    the picture, scaled, with padding on the right and below.

    Args:
        picture: (h, w, 3) in RGB order, 0-255: the file's own pixels.
        inputs: (1, channels, h', w'), normalised and padded.
        scale: Input pixels per pixel of the picture, along x and y.
    """

    picture: np.ndarray
    inputs: Tensor
    scale: Tuple[float, float]

    @property
    def size(self) -> Tuple[int, int]:
        """Width and height of the picture."""
        return self.picture.shape[1], self.picture.shape[0]

    def to_picture(self, points: Tensor) -> np.ndarray:
        """Convert input pixels to picture pixels: (..., 2), x and y."""
        return points.cpu().numpy() / np.array(self.scale, dtype=np.float32)

    def extent(self, stride: int, grid: Sequence[int]) -> Tuple[float, ...]:
        """Return left, right, bottom, top in the picture of a map (H, W) of tokens."""
        height, width = grid
        right, bottom = (stride * n / s for n, s in zip((width, height), self.scale))
        return 0.0, right, bottom, 0.0

    def token_at(self, x: float, y: float, stride: int) -> Tuple[int, int]:
        """Return row and column of the token that covers a picture pixel."""
        return int(y * self.scale[1] // stride), int(x * self.scale[0] // stride)

    def contains(self, points: Tensor) -> np.ndarray:
        """Return whether input pixels show the picture rather than padding: (...)."""
        points = self.to_picture(points)
        return ((points >= 0) & (points < self.size)).all(axis=-1)


def load_image(
    path: Union[str, Path], transforms: Sequence[Callable], preprocessor: nn.Module
) -> SingleImage:
    """Load an image as a test pipeline and a data preprocessor do.

    Transforms that load annotations are skipped, as are those from packing on.

    Args:
        path: The file.
        transforms: Those of the pipeline: loading, resizing, padding.
        preprocessor: Normalises and pads; the model's ``data_preprocessor``.

    Raises:
        ValueError: Another transform, which could move pixels; or one fails, as on a
            broken image.
        OSError: The file cannot be read.
    """
    results = dict(img_path=str(path), img_id=0, seg_fields=[])
    picture, scale = None, np.ones(2)
    for transform in _unwrap(transforms):
        name = type(transform).__name__
        if name in ANNOTATION_LOADERS:
            continue
        if name.startswith('Pack'):
            break
        resizes = 'Resize' in name and not name.startswith('Random')
        if not resizes and name not in (LOADER, PADDING):
            raise ValueError(
                f'the test pipeline has a {name}, which may move pixels; supported are '
                f'{LOADER}, Resize and {PADDING}'
            )
        before = None if picture is None else results['img'].shape
        try:
            results = transform(results)
        except OSError:
            raise
        except Exception as error:  # AssertionError, cv2.error, ...
            text = f'{name} of the test pipeline fails: {spell_error(error)}'
            raise ValueError(text) from error
        if picture is None:
            # OpenCV's order to RGB, 16-bit and float images to whole numbers.
            picture = results['img'][..., ::-1].clip(0, 255).astype(np.uint8)
        elif resizes:
            after = results['img'].shape
            scale *= after[1] / before[1], after[0] / before[0]
    if picture is None:
        raise ValueError(f'the test pipeline has no {LOADER}')
    pixels = torch.from_numpy(np.ascontiguousarray(results['img'].transpose(2, 0, 1)))
    data = dict(inputs=[pixels], data_samples=[BaseDataElement()])
    inputs = preprocessor(data, False)['inputs']
    return SingleImage(np.ascontiguousarray(picture), inputs, tuple(scale.tolist()))


def _unwrap(transforms: Sequence[Callable]) -> Iterator[Callable]:
    """Yield the transforms of a pipeline, those of a `PipelineGuard` in its place."""
    for transform in transforms:
        guards = type(transform).__name__ == 'PipelineGuard'
        yield from transform.transforms if guards else [transform]
