"""The files of the shapes data set, for detection and for segmentation.

    DIR/train/000001.jpg ...        the pictures of a split
    DIR/annotations/train.json      their objects, in COCO's format
    DIR/masks/train/000001.png ...  the category of every pixel: 0 is the background,
                                    1 and up are `CATEGORIES` in their order

and the same for `val`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.progress import Progress

from mmlit_tools.shapes.drawing import CATEGORIES, Scene, draw_scene

SPLITS = ('train', 'val')
HEADER = {
    'info': {'description': 'shapes drawn by mmlit', 'version': '1.0'},
    'licenses': [],
    'categories': [
        {'id': i, 'name': name, 'supercategory': 'shape'}
        for i, name in enumerate(CATEGORIES, start=1)
    ],
}


def is_written(folder: Path, split: str, count: int) -> bool:
    """Whether all files of a split with `count` pictures are there."""
    return (
        (folder / 'annotations' / f'{split}.json').is_file()
        and sum(1 for _ in folder.glob(f'{split}/*.jpg')) == count
        and sum(1 for _ in folder.glob(f'masks/{split}/*.png')) == count
    )


def write_shapes(folder: Path, parameters: dict, progress: bool) -> None:
    """Draws both splits and writes their files.

    Args:
        folder: where to; made here.
        parameters: `train` and `val`, the numbers of pictures, their side `size` in
            pixels, and the `seed`.
        progress: whether to show a progress bar.
    """
    (folder / 'annotations').mkdir(parents=True)
    with Progress(disable=not progress) as bar:
        total = sum(parameters[split] for split in SPLITS)
        task = bar.add_task(f'Drawing {total} pictures', total=total)
        for split in SPLITS:
            pictures, masks = folder / split, folder / 'masks' / split
            pictures.mkdir()
            masks.mkdir(parents=True)
            images, annotations = [], []
            for number, scene in enumerate(_scenes(parameters, split), start=1):
                images.append(_write_image(pictures, number, scene))
                _write_mask(masks, number, scene)
                for annotation in _describe(number, scene):
                    annotations.append({'id': len(annotations) + 1, **annotation})
                bar.advance(task)
            content = {**HEADER, 'images': images, 'annotations': annotations}
            path = folder / 'annotations' / f'{split}.json'
            path.write_text(json.dumps(content))


def _scenes(parameters: dict, split: str) -> Iterator[Scene]:
    for index in range(parameters[split]):
        # A seed of its own for each picture: splits share no random numbers, and a
        # longer set begins with the pictures of a shorter one.
        seed = (parameters['seed'], SPLITS.index(split), index)
        yield draw_scene(np.random.default_rng(seed), parameters['size'])


def _write_image(folder: Path, number: int, scene: Scene) -> dict:
    """Writes a picture and returns its entry in the COCO file."""
    name = f'{number:06d}.jpg'
    _write(folder / name, scene.image, cv2.IMWRITE_JPEG_QUALITY, 95)
    height, width = scene.image.shape[:2]
    return {'id': number, 'file_name': name, 'height': height, 'width': width}


def _write_mask(folder: Path, number: int, scene: Scene) -> None:
    path = folder / f'{number:06d}.png'
    _write(path, semantic_mask(scene), cv2.IMWRITE_PNG_COMPRESSION, 9)


def _write(path: Path, pixels: np.ndarray, *options: int) -> None:
    if not cv2.imwrite(str(path), pixels, options):
        raise OSError(f'could not write {path}')


def semantic_mask(scene: Scene) -> np.ndarray:
    """The category of each pixel plus one, 0 where no object is: (size, size) uint8."""
    mask = np.zeros(scene.image.shape[:2], np.uint8)
    for category, visible in scene.objects:
        mask[visible] = category + 1
    return mask


def _describe(number: int, scene: Scene) -> Iterator[dict]:
    """The COCO annotations of a picture's objects, less their ids."""
    for category, mask in scene.objects:
        # Run lengths, not polygons: exact, and they can hold a ring's hole.
        encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        counts = encoded['counts'].decode()
        yield {
            'image_id': number,
            'category_id': category + 1,
            'segmentation': {'size': encoded['size'], 'counts': counts},
            'bbox': [int(v) for v in cv2.boundingRect(mask.astype(np.uint8))],
            'area': int(mask.sum()),
            'iscrowd': 0,
        }
