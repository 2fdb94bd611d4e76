"""Stand-ins for what the demo's test run leaves."""

import pickle
import shutil

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO


def write_results(shapes, path):
    """Results in the form of `test.py --out`: the truth, each object found twice, the
    second time with a low score."""
    coco = COCO(str(shapes / 'annotations' / 'val.json'))
    results = []
    for image_id, image in coco.imgs.items():
        items = coco.imgToAnns[image_id]
        x, y, width, height = np.array([item['bbox'] for item in items]).T
        scores = np.linspace(0.9, 0.6, len(items))
        masks = [np.asfortranarray(coco.annToMask(item)) for item in items * 2]
        found = {
            'bboxes': np.tile(np.stack([x, y, x + width, y + height], 1), (2, 1)),
            'labels': np.tile([item['category_id'] - 1 for item in items], 2),
            'scores': np.concatenate([scores, scores - 0.55]),
            'masks': [coco_mask.encode(mask) for mask in masks],
        }
        file = str(shapes / 'val' / image['file_name'])
        results.append(dict(img_id=image_id, img_path=file, pred_instances=found))
    path.write_bytes(pickle.dumps(results))


def write_label_maps(shapes, folder):
    """Label maps in the form of `test.py --out`: the truth."""
    shutil.copytree(shapes / 'masks' / 'val', folder, dirs_exist_ok=True)
