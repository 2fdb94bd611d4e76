"""Predict and draw objects: boxes, and masks where the model has them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmdet.apis import DetInferencer
from mmengine.config import Config

from mmlit_tools.infer.model import load_weights, prepare, read_image
from mmlit_tools.infer.results import Prediction


class Detector(DetInferencer):
    """mmdet's inferencer, which draws, with strict weights and records."""

    def __init__(
        self, config: Config, checkpoint: str, device: str | None, min_score: float
    ):
        config = prepare(config, 'DetLocalVisualizer')
        self.checkpoint = checkpoint
        super().__init__(config, device=device, show_progress=False)
        self.min_score = min_score

    def _load_weights_to_model(self, model, checkpoint, cfg) -> None:
        # mmengine's documentation tells subclasses to override it.
        load_weights(model, self.checkpoint, cfg)

    def read(self, path: Path) -> np.ndarray:
        """Read an image, see `model.read_image`."""
        return read_image(self, path)

    def predict(self, image: np.ndarray) -> Prediction:
        """Find the objects in an image (H, W, 3), BGR."""
        (sample,) = self(image, return_datasamples=True)['predictions']
        objects = sample.pred_instances
        sample.pred_instances = objects[objects.scores >= self.min_score]
        picture = image.astype(np.uint8)
        if len(sample.pred_instances):
            # mmdet takes an array for RGB, in spite of its pipeline.
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            (rgb,) = self.visualize([rgb], [sample], return_vis=True, pred_score_thr=-1)
            picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        return Prediction({'objects': self._describe(sample)}, picture)

    def _describe(self, sample) -> list[dict]:
        found = self.pred2dict(sample)
        names = self.model.dataset_meta['classes']
        columns = zip(found['labels'], found['scores'], found['bboxes'])
        objects = [
            {'label': label, 'class': names[label], 'score': score, 'box': box}
            for label, score, box in columns
        ]
        for entry, mask in zip(objects, found.get('masks', ())):
            entry['mask'] = mask
        return objects
