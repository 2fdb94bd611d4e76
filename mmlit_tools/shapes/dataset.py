"""Write the shapes dataset, for detection and for segmentation.

    DIR/train/000001.jpg ...        the images of a split
    DIR/annotations/train.json      their objects, in COCO's format
    DIR/masks/train/000001.png ...  the category of every pixel: 0 is the background,
                                    1 and up are `CATEGORIES` in their order

and the same for `val`; `DIR/shapes.json` holds the parameters. The dataset appears at
DIR whole or not at all, and any number of processes may ask for it at once: one draws,
the others wait.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.progress import Progress

from mmlit_tools.locking import lock_folder
from mmlit_tools.paths import OUTPUTS
from mmlit_tools.shapes.drawing import CATEGORIES, Scene, draw_scene

DEFAULT_OUT = OUTPUTS / 'data' / 'shapes'
MANIFEST = 'shapes.json'
# Raise it when the same arguments begin to give other images.
DRAWING_VERSION = 2
SPLITS = ('train', 'val')
HEADER = {
    'info': {'description': 'shapes drawn by mmlit', 'version': '1.0'},
    'licenses': [],
    'categories': [
        {'id': i, 'name': name, 'supercategory': 'shape'}
        for i, name in enumerate(CATEGORIES, start=1)
    ],
}


def ensure_shapes(
    out: str | Path = DEFAULT_OUT,
    train: int = 1600,
    val: int = 80,
    size: int = 160,
    seed: int = 0,
    progress: bool = True,
    replace: bool = False,
) -> Path:
    """Return the folder of the dataset with these parameters, drawn if needed.

    Args:
        out: The folder.
        train: Number of training images.
        val: Number of validation images.
        size: Side of the images in pixels.
        seed: Seed of the random numbers.
        progress: Whether to show a progress bar.
        replace: Whether to draw anew, in place of an earlier dataset.

    Raises:
        ValueError: A parameter is out of range, or `out` holds something else: a
            dataset of other parameters, or other files.
    """
    parameters = _parameters(train, val, size, seed)
    out = Path(out).expanduser().resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    waiting = f'Waiting for another process to draw {out}'
    with lock_folder(out, lambda: print(waiting, flush=True)):
        # We hold the lock, so a killed process left these.
        for leftover in out.parent.glob(f'.{glob.escape(out.name)}.*.tmp'):
            shutil.rmtree(leftover)
        found = _read_manifest(out)
        if not replace and found == parameters and _is_complete(out, parameters):
            return out
        if not replace and found is not None and found != parameters:
            raise ValueError(_difference(out, found, parameters))
        # Names of the pattern above, so that the next run removes what a kill leaves.
        fresh = out.with_name(f'.{out.name}.new-{os.getpid()}.tmp')
        old = out.with_name(f'.{out.name}.old-{os.getpid()}.tmp')
        write_shapes(fresh, parameters, progress)
        manifest = json.dumps(parameters, indent=2) + '\n'
        (fresh / MANIFEST).write_text(manifest)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    return out


def _parameters(train: int, val: int, size: int, seed: int) -> dict[str, int]:
    ranges = {
        'train': (train, 1, 999_999),
        'val': (val, 1, 999_999),
        'size': (size, 64, 2048),
        'seed': (seed, 0, 2**32 - 1),
    }
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f'{name} must be a whole number, got {value!r}')
        if not low <= value <= high:
            raise ValueError(f'{name} must be from {low} to {high}, got {value}')
    values = {name: value for name, (value, _, _) in ranges.items()}
    return {'drawing_version': DRAWING_VERSION, **values}


def _read_manifest(out: Path) -> dict | None:
    """Return the parameters of the dataset at `out`; None where there is nothing.

    Raises:
        ValueError: There is something that this tool did not write.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / MANIFEST).read_text())
        found['drawing_version']
        return found
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(
            f'{out} holds something other than a shapes dataset '
            f'(no readable {MANIFEST}); give an empty or new folder as out'
        ) from None


def _is_complete(out: Path, parameters: dict) -> bool:
    return all(
        (out / 'annotations' / f'{split}.json').is_file()
        and sum(1 for _ in out.glob(f'{split}/*.jpg')) == parameters[split]
        and sum(1 for _ in out.glob(f'masks/{split}/*.png')) == parameters[split]
        for split in SPLITS
    )


def _difference(out: Path, found: dict, wanted: dict) -> str:
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return (
        f'{out} was drawn with '
        + ', '.join(f'{name}={found.get(name)}' for name in names)
        + ', but wanted is '
        + ', '.join(f'{name}={wanted[name]}' for name in names)
        + '; remove the folder, draw it anew with tools/make_shapes.py --force, or '
        'give another folder as out'
    )


def write_shapes(folder: Path, parameters: dict, progress: bool) -> None:
    """Draw both splits and write their files.

    Args:
        folder: Where to; made here.
        parameters: `train` and `val`, the numbers of images, their side `size` in
            pixels, and the `seed`.
        progress: Whether to show a progress bar.
    """
    (folder / 'annotations').mkdir(parents=True)
    with Progress(disable=not progress) as bar:
        total = sum(parameters[split] for split in SPLITS)
        task = bar.add_task(f'Drawing {total} images', total=total)
        for split in SPLITS:
            photos, masks = folder / split, folder / 'masks' / split
            photos.mkdir()
            masks.mkdir(parents=True)
            images, annotations = [], []
            for number, scene in enumerate(_scenes(parameters, split), start=1):
                images.append(_write_image(photos, number, scene))
                _write_mask(masks, number, scene)
                for annotation in _describe(number, scene):
                    annotations.append({'id': len(annotations) + 1, **annotation})
                bar.advance(task)
            content = {**HEADER, 'images': images, 'annotations': annotations}
            path = folder / 'annotations' / f'{split}.json'
            path.write_text(json.dumps(content))


def _scenes(parameters: dict, split: str) -> Iterator[Scene]:
    for index in range(parameters[split]):
        # A seed for each image: splits share no random numbers, and a larger dataset
        # begins with the images of a smaller one.
        seed = (parameters['seed'], SPLITS.index(split), index)
        yield draw_scene(np.random.default_rng(seed), parameters['size'])


def _write_image(folder: Path, number: int, scene: Scene) -> dict:
    """Write an image; return its entry in the COCO file."""
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
    """Return the category of each pixel plus one, 0 without an object: uint8."""
    mask = np.zeros(scene.image.shape[:2], np.uint8)
    for category, visible in scene.objects:
        mask[visible] = category + 1
    return mask


def _describe(number: int, scene: Scene) -> Iterator[dict]:
    """Yield the COCO annotations of an image's objects, without their ids."""
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
