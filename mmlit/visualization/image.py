"""One image file as the network gets it, and the way back to its own pixels."""

from pathlib import Path
from typing import Callable, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import spell_error

#: What a test pipeline may hold besides resizing, by name: all else could move pixels.
LOADER = 'LoadImageFromFile'
HARMLESS = ('Pad',)
LEFT_OUT = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadProposals')


class SingleImage(NamedTuple):
    """An image, and the network's input made of it.

    In either, pixels are squares, so that it spans 0..w and 0..h. The input is the
    picture, scaled, with padding on the right and below.

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
        """Pixels of the input as pixels of the picture: (..., 2), x and y."""
        return points.cpu().numpy() / np.array(self.scale, dtype=np.float32)

    def extent(self, stride: int, grid: Sequence[int]) -> Tuple[float, ...]:
        """Left, right, bottom, top in the picture of a map (H, W) of tokens."""
        height, width = grid
        right, bottom = (stride * n / s for n, s in zip((width, height), self.scale))
        return 0.0, right, bottom, 0.0

    def token_at(self, x: float, y: float, stride: int) -> Tuple[int, int]:
        """Row and column of the token that a place in the picture belongs to."""
        return int(y * self.scale[1] // stride), int(x * self.scale[0] // stride)

    def holds(self, points: Tensor) -> np.ndarray:
        """Whether pixels of the input show the picture, and not padding: (...)."""
        points = self.to_picture(points)
        return ((points >= 0) & (points < self.size)).all(axis=-1)


def load_image(
    path: Union[str, Path], transforms: Sequence[Callable], preprocessor: nn.Module
) -> SingleImage:
    """Read an image as a test pipeline and a data preprocessor do.

    Transforms that load annotations are left out, and those from packing on.

    Args:
        path: The file.
        transforms: Those of the pipeline: loading, resizing, padding.
        preprocessor: Normalises and pads; the model's ``data_preprocessor``.

    Raises:
        ValueError: Another transform, by which places in the image could be lost; or
            one fails, as on a broken image.
        OSError: The file cannot be read.
    """
    results = dict(img_path=str(path), img_id=0, seg_fields=[])
    picture, scale = None, np.ones(2)
    for transform in transforms:
        name = type(transform).__name__
        if name in LEFT_OUT:
            continue
        if name.startswith('Pack'):
            break
        resizes = 'Resize' in name and not name.startswith('Random')
        if not resizes and name not in (LOADER, *HARMLESS):
            raise ValueError(
                f'the test pipeline has a {name}, after which it is not known where in '
                f'the image a pixel was; known are {LOADER}, Resize and '
                + ', '.join(HARMLESS)
            )
        before = None if picture is None else results['img'].shape
        try:
            results = transform(results)
        except OSError:
            raise
        except Exception as error:  # AssertionError, cv2.error, ...
            said = f'{name} of the test pipeline fails: {spell_error(error)}'
            raise ValueError(said) from error
        if picture is None:
            picture = _rgb(results['img'])
        elif resizes:
            after = results['img'].shape
            scale *= after[1] / before[1], after[0] / before[0]
    if picture is None:
        raise ValueError(f'the test pipeline has no {LOADER}')
    pixels = torch.from_numpy(np.ascontiguousarray(results['img'].transpose(2, 0, 1)))
    data = dict(inputs=[pixels], data_samples=[BaseDataElement()])
    inputs = preprocessor(data, False)['inputs']
    return SingleImage(picture, inputs, tuple(scale.tolist()))


def _rgb(image: np.ndarray) -> np.ndarray:
    """OpenCV's order to RGB, whole numbers."""
    return np.ascontiguousarray(image[..., ::-1].clip(0, 255).astype(np.uint8))
