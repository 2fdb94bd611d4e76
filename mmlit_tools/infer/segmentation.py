"""Predict and draw the class of each pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmseg.apis import MMSegInferencer

from mmlit_tools.infer.model import load_weights, prepare, read_image
from mmlit_tools.infer.results import Prediction

OPACITY = 0.5
# Classes below this share of the image get no name.
MIN_NAMED = 0.005


class Segmentor(MMSegInferencer):
    """mmseg's inferencer, with strict weights, records and its own drawing.

    mmseg's drawing takes seconds to minutes for the names of classes.
    """

    def __init__(self, config: Config, checkpoint: str, device: str | None):
        config = prepare(config, 'SegLocalVisualizer')
        self.checkpoint = checkpoint
        super().__init__(config, device=device)
        self.show_progress = False

    def _load_weights_to_model(self, model, checkpoint, cfg) -> None:
        # mmengine's documentation tells subclasses to override it.
        load_weights(model, self.checkpoint, cfg)

    def read(self, path: Path) -> np.ndarray:
        """Read an image, see `model.read_image`."""
        return read_image(self, path)

    def predict(self, image: np.ndarray) -> Prediction:
        """Classify the pixels of an image (H, W, 3), BGR."""
        sample = self(image, return_datasamples=True)
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        counts = np.bincount(labels.ravel())
        names = self.model.dataset_meta['classes']
        classes = [
            {
                'label': int(label),
                'class': names[label],
                'pixels': int(counts[label]),
                'share': counts[label] / labels.size,
            }
            for label in np.flatnonzero(counts)
        ]
        return Prediction(
            {'classes': classes}, self._draw(image.astype(np.uint8), labels), labels
        )

    def _draw(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Tint an image by class, each name amid the largest region of its class."""
        palette = np.array(self.model.dataset_meta['palette'], np.uint8)[:, ::-1]
        tint = palette[labels]
        picture = cv2.addWeighted(image, 1 - OPACITY, tint, OPACITY, 0)
        for label in np.unique(labels):
            region, area = _largest_region(labels == label)
            if area >= MIN_NAMED * labels.size:
                name = self.model.dataset_meta['classes'][label]
                _write_name(picture, name, _inmost(region), palette[label].tolist())
        return picture


def _largest_region(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the largest connected part of a mask (H, W), and its pixels."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    # The first is what lies outside the mask.
    areas = stats[1:, cv2.CC_STAT_AREA]
    return parts == areas.argmax() + 1, int(areas.max())


def _inmost(region: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) of a region (H, W) that is farthest from its edge."""
    padded = np.pad(region.astype(np.uint8), 1)
    distances = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(distances.argmax(), distances.shape)
    return int(x), int(y)


def _write_name(picture: np.ndarray, name: str, at: tuple[int, int], colour) -> None:
    """Write a name on a ground of its colour, centred at (x, y) but inside."""
    height, width = picture.shape[:2]
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, min(height, width) / 1000)
    thick = max(1, round(1.5 * scale))
    (w, h), below = cv2.getTextSize(name, font, scale, thick)
    x = min(max(at[0] - w // 2, 2), max(width - w - 2, 2))
    y = min(max(at[1] + h // 2, h + 2), height - below - 2)
    cv2.rectangle(picture, (x - 2, y - h - 2), (x + w + 2, y + below), colour, -1)
    blue, green, red = colour
    dark = 0.114 * blue + 0.587 * green + 0.299 * red > 128
    ink = (0, 0, 0) if dark else (255, 255, 255)
    cv2.putText(picture, name, (x, y), font, scale, ink, thick, cv2.LINE_AA)
