"""Check a dataset of mmseg: images, masks, and the ids in the masks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmlit_tools.data.findings import IMAGE_ERRORS, Findings, look_at_all
from mmlit_tools.data.images import HIDDEN_TURN, RESIZED_AWAY, ImageCheck

# A mask of 8 bits a pixel, with or without a palette, or of 1 bit.
MASK_MODES = ('L', 'P', '1')
MAX_IDS = 5  # named of one mask


@dataclass
class Look:
    """The findings in one image and its mask.

    Args:
        error: Kind of error, or ''.
        detail: Text to add to the file's name.
        pixels: Pixels of each id 0..255 in the mask; `None` without a sound mask.
        turned: Whether EXIF data turn the image without changing its size.
    """

    error: str = ''
    detail: str = ''
    pixels: np.ndarray | None = None
    turned: bool = False


def check_masks(dataset, check: ImageCheck, findings: Findings, workers: int) -> None:
    """Check a `BaseSegDataset` that has not loaded its list yet.

    Args:
        dataset: Built with `lazy_init=True`. Its `ignore_index` is taken for that of
            loss and metric, which `check_config` compares.
        check: Reads image files.
        findings: Where to note them.
        workers: Threads that read files.
    """
    if not _check_folders(dataset, findings):
        return
    pairs = [
        (entry['img_path'], entry.get('seg_map_path'))
        for entry in dataset.load_data_list()
    ]
    findings.extent = f'{len(pairs)} images'
    if not pairs:
        _say_empty(dataset, findings)
        return
    if not dataset.ann_file:
        _check_spare_masks(dataset, {mask for _, mask in pairs}, findings)
    classes = dataset.metainfo.get('classes')
    if classes is None:
        findings.error("the dataset has no metainfo['classes']: ids mean nothing")
        classes = ()
    trained = trained_ids(dataset)
    allowed = (trained < len(classes)) | (trained == dataset.ignore_index)
    total = np.zeros(256, dtype=np.int64)
    look_at = partial(_look, check)
    for (image, mask), look in look_at_all(look_at, pairs, 'masks', workers):
        if look.error:
            findings.error(look.error, f'{mask or image}{look.detail}')
        if look.turned:
            findings.warn(HIDDEN_TURN, image)
        if look.pixels is None:
            continue
        total += look.pixels
        if classes and look.pixels[~allowed].any():
            findings.error(
                f'mask with ids beyond the {len(classes)} classes '
                f'({_spell_ids(dataset, len(classes))})',
                f'{mask}: {_spell_pixels(look.pixels * ~allowed)}',
            )
        elif not look.pixels[trained != dataset.ignore_index].any():
            findings.warn('mask in which every pixel is ignored', mask)
    if total.any() and not total[trained != dataset.ignore_index].any():
        findings.error(
            'every pixel of every mask is ignored: there is nothing to learn '
            f'({_spell_ids(dataset, len(classes))})'
        )
        return
    for index, name in enumerate(classes if total.any() else ()):
        if not total[trained == index].any():
            findings.warn('class without a pixel in any mask', str(name))


def trained_ids(dataset) -> np.ndarray:
    """Return the label that mmseg trains on for each id of a mask: (256,) of uint8.

    As its `LoadAnnotations` does: the zero label first, then the choice of classes.
    """
    ids = np.arange(256)
    if dataset.reduce_zero_label:
        ids = np.where((ids == 0) | (ids == 255), 255, ids - 1)
    trained = ids.copy()
    for old, new in (dataset.label_map or {}).items():
        trained[ids == old] = new
    return trained.astype(np.uint8)


def _check_folders(dataset, findings: Findings) -> bool:
    sound = True
    for key, what in (('img_path', 'image'), ('seg_map_path', 'mask')):
        folder = dataset.data_prefix.get(key)
        if not folder:
            findings.error(f'data_prefix.{key} of the dataset is missing')
        elif not os.path.isdir(folder):
            findings.error(f'{what} folder {folder} does not exist')
        else:
            continue
        sound = False
    ann_file = dataset.ann_file
    if ann_file and not os.path.exists(ann_file):
        findings.error(f'ann_file {ann_file} (the list of images) does not exist')
        sound = False
    return sound


def _say_empty(dataset, findings: Findings) -> None:
    """Note an empty split, and what could be the cause."""
    if dataset.ann_file:
        findings.error(f'the split is empty: {dataset.ann_file} lists no image')
        return
    folder = Path(dataset.data_prefix['img_path'])
    held = sorted({path.suffix for path in folder.rglob('*') if path.is_file()})
    findings.error(
        f'the split is empty: no file in {folder} ends in img_suffix='
        f'{dataset.img_suffix!r}; there are '
        + (', '.join(f'*{suffix}' for suffix in held) or 'no files at all')
    )


def _check_spare_masks(dataset, wanted: set, findings: Findings) -> None:
    """Warn of masks without an image."""
    folder = dataset.data_prefix['seg_map_path']
    wanted = {os.path.normpath(mask) for mask in wanted if mask}
    for path in sorted(Path(folder).rglob(f'*{dataset.seg_map_suffix}')):
        if os.path.normpath(path) not in wanted:
            findings.warn('mask without an image (it is not used)', str(path))


def _look(check: ImageCheck, pair: tuple[str, str | None]) -> Look:
    """Read an image and its whole mask."""
    image_path, mask_path = pair
    if not os.path.isfile(image_path):
        return Look('image does not exist', f' (its image is {image_path})')
    if not mask_path or not os.path.isfile(mask_path):
        return Look('mask does not exist', f' (of {image_path})')
    try:
        seen = check(image_path)
    except OSError as error:
        return Look('image cannot be read', f' (its image is {image_path}: {error})')
    try:
        with Image.open(mask_path) as mask:
            if mask.mode not in MASK_MODES:
                bands = f'{len(mask.getbands())} channels, mode {mask.mode!r} of Pillow'
                return Look('mask is not single-channel 8-bit', f': {bands}')
            ids = np.asarray(mask, dtype=np.uint8)
    except IMAGE_ERRORS as error:
        return Look('mask cannot be read', f': {error}')
    look = Look(pixels=np.bincount(ids.ravel(), minlength=256))
    look.turned = seen.hides_its_turn
    fault = check.resizing_fault(*seen.size)
    if ids.shape[::-1] != seen.size:
        look.error = 'mask and image differ in size'
        sizes = '{}x{} px, its image {}x{} px'.format(*ids.shape[::-1], *seen.size)
        look.detail = f': {sizes}' + ' (its EXIF data turn it)' * (seen.turn > 1)
    elif 1 in ids.shape:
        look.error = 'mask with a side of 1 px (mmseg cannot load it)'
        look.detail = ': {}x{} px'.format(*ids.shape[::-1])
    elif fault:
        look.error, look.detail = RESIZED_AWAY, f' (its image is {image_path}): {fault}'
    return look


def _spell_ids(dataset, classes: int) -> str:
    """Spell which ids are valid, for the usual cases."""
    if dataset.label_map:
        return 'after label_map'
    if dataset.reduce_zero_label:
        return f'reduce_zero_label=True: 1..{classes}, 0 and 255 are ignored'
    return f'0..{classes - 1}, {dataset.ignore_index} is ignored'


def _spell_pixels(pixels: np.ndarray) -> str:
    ids = np.flatnonzero(pixels)
    said = ', '.join(f'id {i} ({pixels[i]} px)' for i in ids[:MAX_IDS])
    more = len(ids) - MAX_IDS
    return said + (f' and {more} more ids' if more > 0 else '')
