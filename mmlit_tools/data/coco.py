"""Check a COCO dataset of mmdet: the json, then the image files.

What may be wrong with one annotation (box, mask) is in coco_annotation.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections import Counter

from mmlit_tools.data.coco_annotation import AnnotationCheck, is_box, is_number
from mmlit_tools.data.findings import Findings, look_at_all
from mmlit_tools.data.images import HIDDEN_TURN, RESIZED_AWAY, ImageCheck


def _is_id(value) -> bool:
    return isinstance(value, (int, str))


def _is_text(value) -> bool:
    return isinstance(value, str) and value != ''


def _is_side(value) -> bool:
    return is_number(value) and value > 0


#: The lists at the top of the json, and what mmdet reads of their entries.
LISTS = dict(
    images=dict(id=_is_id, file_name=_is_text, height=_is_side, width=_is_side),
    annotations=dict(
        id=_is_id, image_id=_is_id, category_id=_is_id, bbox=is_box, area=is_number
    ),
    categories=dict(id=_is_id, name=_is_text),
)
MAX_NAMES = 5  # of categories or classes, in one line


def check_coco(
    dataset, with_masks: bool, look: ImageCheck, findings: Findings, workers: int
) -> None:
    """Check a `CocoDataset` that has not loaded its annotations yet.

    Args:
        dataset: Built with `lazy_init=True`.
        with_masks: Whether its pipeline loads masks, so that each box needs one.
        look: Reads image files.
        findings: Where to note them.
        workers: Threads that read image files.
    """
    images, is_whole = _check_json(dataset, with_masks, findings)
    if images is None:
        return
    if not images:
        findings.error(f'the split is empty: {dataset.ann_file} lists no image')
    elif is_whole:
        _check_filter(dataset, findings)
    _check_files(dataset, images, look, findings, workers)


def _check_json(dataset, with_masks: bool, findings: Findings):
    """Check the json by itself.

    Returns:
        Its images, and whether mmdet can read every entry. Nothing more is kept:
        mmdet's own copy comes next, and two of COCO's would fill the memory.
    """
    content = read_coco(dataset.ann_file, findings)
    if content is None:
        return None, False
    counts = [f'{len(content[name])} {name}' for name in ('images', 'annotations')]
    findings.extent = ', '.join(counts)
    sound = {
        name: list(_sound_entries(name, content[name], findings)) for name in LISTS
    }
    _check_ids(sound, findings)
    images = {image['id']: image for image in sound['images']}
    categories = {entry['id']: entry['name'] for entry in sound['categories']}
    check = AnnotationCheck(images, categories, with_masks, findings)
    for annotation in sound['annotations']:
        check(annotation)
    _check_classes(dataset, sound['categories'], check.per_category, findings)
    for image_id, image in images.items():
        if image_id not in check.annotated:
            findings.warn('image without an annotation', image['file_name'])
    is_whole = all(len(sound[name]) == len(content[name]) for name in LISTS)
    return sound['images'], is_whole


def read_coco(path: str, findings: Findings) -> dict | None:
    """Read an annotation file; `None`, and an error, where it is not COCO."""
    if not os.path.isfile(path):
        findings.error(f'annotation file {path} does not exist')
        return None
    # Half a minute for COCO's, and as much for mmdet's own reading later.
    print(f'reading {path}', file=sys.stderr, flush=True)
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        what = 'is not JSON' if isinstance(error, ValueError) else 'cannot be read'
        findings.error(f'annotation file {path} {what}: {error}')
        return None
    for name in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            findings.error(
                f'annotation file {path} is not in COCO format: it has no list '
                f'{name!r} at its top'
            )
            return None
    return content


def _sound_entries(name: str, entries: list, findings: Findings):
    """Yield the entries with all the keys that mmdet reads."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.error(f'entry of {name!r} that is no object', f'number {number}')
            continue
        wrong = [key for key, fits in LISTS[name].items() if not fits(entry.get(key))]
        if not wrong:
            yield entry
        for key in wrong:
            said = f'is {entry[key]!r:.60}' if key in entry else 'is missing'
            findings.error(
                f'entry of {name!r} without a proper {key!r}',
                f'id {entry.get("id")} (number {number} in the list): {key!r} {said}',
            )


def _check_ids(sound: dict, findings: Findings) -> None:
    for name, entries in sound.items():
        for key, count in Counter(entry['id'] for entry in entries).items():
            if count > 1:
                findings.error(f'id that is not unique in {name!r}', f'id {key}')


def _check_classes(
    dataset, categories: list[dict], per_category: Counter, findings: Findings
) -> None:
    """Check that mmdet's labels mean the classes of the config.

    mmdet numbers the categories that it knows in the order of the json, and takes the
    class of that number: one missing class shifts all that follow.
    """
    classes = list(dataset.metainfo.get('classes', ()))
    used = [entry for entry in categories if entry['name'] in classes]
    names = [entry['name'] for entry in used]
    if not names:
        found = _spell_names([entry['name'] for entry in categories]) or 'none at all'
        findings.error(
            f'no category of the json ({found}) is among the {len(classes)} classes '
            f'in metainfo ({_spell_names(classes)})'
        )
        return
    spare = [entry['name'] for entry in categories if entry not in used]
    missing = [str(name) for name in classes if name not in names]
    if spare and missing:
        findings.error(
            f'the json has {_spell_names(spare)}, which metainfo lacks, and metainfo '
            f'has {_spell_names(missing)}, which the json lacks: a misspelt name?'
        )
    for entry in categories:
        if entry not in used:
            lost = per_category[entry['id']]
            findings.warn(
                "category of the json that metainfo['classes'] leaves out",
                f'{entry["name"]}: {lost} annotations are not used',
            )
    for label, name in enumerate(names):
        if label >= len(classes) or classes[label] != name:
            taken = classes[label] if label < len(classes) else f'label {label}'
            findings.error(
                'category that mmdet takes for another class: the json must list all '
                'classes of metainfo, in their order',
                f'{name} counts as {taken}',
            )
    ids = {entry['name']: entry['id'] for entry in used}
    for name in classes:
        if name not in ids:
            findings.warn('class that is not in the json', str(name))
        elif not per_category[ids[name]]:
            findings.warn('class without an annotation', str(name))


def _spell_names(names: list) -> str:
    more = len(names) - MAX_NAMES
    said = ', '.join(map(str, names[:MAX_NAMES]))
    return said + (f' and {more} more' if more > 0 else '')


def _check_filter(dataset, findings: Findings) -> None:
    """Check with mmdet's own filter that `filter_cfg` leaves something."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints.
            dataset.data_list = dataset.load_data_list()
    except Exception as error:
        # A dataset's own class may raise anything.
        findings.error(
            f'{type(dataset).__name__} cannot load {dataset.ann_file}: '
            f'{type(error).__name__}: {error}'
        )
        return
    if not any(entry['instances'] for entry in dataset.data_list):
        findings.error('mmdet drops every annotation: none is left to learn from')
    if dataset.filter_data():
        return
    left, whole = [], dataset.filter_cfg
    for key, value in whole.items():
        dataset.filter_cfg = {key: value}
        left.append(f'{key}={value} alone leaves {len(dataset.filter_data())}')
    dataset.filter_cfg = whole
    findings.error(
        f'the split is empty: filter_cfg leaves none of the {len(dataset.data_list)} '
        f'images ({", ".join(left)})'
    )


def _check_files(
    dataset, images: list, look: ImageCheck, findings: Findings, workers: int
) -> None:
    """Check that the image files can be loaded and have the sizes of the json."""
    folder = dataset.data_prefix.get('img')
    # With '' the names in the json are whole paths, or seen from the working directory.
    if folder != '' and not (folder and os.path.isdir(folder)):
        findings.error(f'image folder {folder!r} does not exist (data_prefix.img)')
        return
    where = f' in {folder}' if folder else ''

    def look_at(image: dict):
        try:
            return look(os.path.join(folder, image['file_name']))
        except OSError as error:
            return error

    # What mmdet's filter drops never meets the pipeline.
    least = 0 if dataset.test_mode else (dataset.filter_cfg or {}).get('min_size', 0)
    for image, seen in look_at_all(look_at, images, 'images', workers):
        name, wanted = image['file_name'], (image['width'], image['height'])
        if isinstance(seen, FileNotFoundError):
            findings.error(f'image does not exist{where}', name)
            continue
        if isinstance(seen, OSError):
            findings.error(f'image{where} cannot be read', f'{name}: {seen}')
            continue
        if seen.size != wanted:
            said = '{}: {}x{} px, in the json {}x{}'.format(name, *seen.size, *wanted)
            said += ' (its EXIF data turn it)' * (seen.turn > 1)
            findings.error('image of another size than in the json', said)
        elif seen.hides_its_turn:
            findings.warn(HIDDEN_TURN, name)
        fault = look.resizing_fault(*seen.size)
        if fault and min(wanted) >= least:
            findings.error(RESIZED_AWAY, f'{name}: {fault}')
