"""The drawn dataset: true to COCO's format, varied, repeatable, whole or absent."""

import json
import multiprocessing
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmlit_tools.shapes import command, dataset
from mmlit_tools.shapes.drawing import (
    CATEGORIES,
)

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {'train': 40, 'val': 20}
SIDE = 96
SMALL = {'train': 2, 'val': 2, 'size': 64, 'seed': 3, 'progress': False}


def load(shapes, split):
    return COCO(str(shapes / 'annotations' / f'{split}.json'))


def contents(folder):
    files = (path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize('split', COUNTS)
def test_files_agree(shapes, split):
    """Images, boxes, areas, instance masks and semantic masks."""
    coco, images, masks = load(shapes, split), shapes / split, shapes / 'masks' / split
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CATEGORIES)
    for folder in (images, masks):
        assert len(coco.imgs) == len(list(folder.iterdir())) == COUNTS[split]
    for image_id, image in coco.imgs.items():
        pixels = cv2.imread(str(images / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3) == (SIDE, SIDE, 3)
        items = coco.imgToAnns[image_id]
        assert 1 <= len(items) <= 4
        semantic = np.zeros((SIDE, SIDE), np.uint8)
        for item in items:
            mask = coco.annToMask(item)
            assert item['bbox'] == list(cv2.boundingRect(mask))
            assert item['area'] == mask.sum() > 0
            assert (item['iscrowd'], item['image_id']) == (0, image_id)
            # A pixel shows one object: the foremost.
            assert not semantic[mask == 1].any()
            semantic[mask == 1] = item['category_id']
        path = masks / Path(image['file_name']).with_suffix('.png')
        written = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert written.dtype == np.uint8 and (written == semantic).all()
    ids = [item['id'] for item in coco.dataset['annotations']]
    assert sorted(set(ids)) == ids


def test_a_complete_dataset_is_left_alone_and_another_one_refused(tmp_path):
    out = dataset.ensure_shapes(tmp_path / 'shapes', **SMALL)
    first = contents(out)
    # The seed decides every byte.
    assert contents(dataset.ensure_shapes(tmp_path / 'again', **SMALL)) == first
    (out / 'mark').touch()
    assert dataset.ensure_shapes(out, **SMALL) == out
    with pytest.raises(ValueError, match=r'drawn with seed=3, but wanted is seed=4'):
        dataset.ensure_shapes(out, **{**SMALL, 'seed': 4})
    assert (out / 'mark').exists()
    dataset.ensure_shapes(out, **{**SMALL, 'seed': 4}, replace=True)
    assert not (out / 'mark').exists()
    other = contents(out)
    assert not [name for name in first if other[name] == first[name]]
    assert json.loads((out / 'shapes.json').read_text())['seed'] == 4
    for missing in ('val/000001.jpg', 'masks/train/000002.png'):
        (out / missing).unlink()
        dataset.ensure_shapes(out, **{**SMALL, 'seed': 4})
        assert (out / missing).exists()


def test_foreign_files_are_never_replaced(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    for replace in (False, True):
        with pytest.raises(ValueError, match='something other than a shapes dataset'):
            dataset.ensure_shapes(tmp_path, **SMALL, replace=replace)
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'


def _ensure(out, barrier, drawn):
    draw = dataset.write_shapes

    def count(*args):
        with drawn.get_lock():
            drawn.value += 1
        draw(*args)

    dataset.write_shapes = count
    barrier.wait(timeout=60)
    dataset.ensure_shapes(out, **SMALL)
    assert len(list((out / 'train').iterdir())) == SMALL['train']


@pytest.mark.skipif(os.name != 'posix', reason='several processes need POSIX locks')
def test_of_three_processes_one_draws(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier, drawn = context.Barrier(3), context.Value('i', 0)
    given = (tmp_path / 'shapes', barrier, drawn)
    workers = [context.Process(target=_ensure, args=given) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert drawn.value == 1


@pytest.mark.parametrize(
    ('argument', 'value', 'words'),
    [
        ('train', 0, 'train must be from 1 to 999999, got 0'),
        ('size', 32, 'size must be from 64 to 2048, got 32'),
        ('size', 160.0, 'size must be a whole number, got 160.0'),
        ('seed', True, 'seed must be a whole number, got True'),
    ],
)
def test_wrong_arguments_are_named(tmp_path, argument, value, words):
    with pytest.raises(ValueError, match=f'^{re.escape(words)}$'):
        dataset.ensure_shapes(tmp_path / 'shapes', **{**SMALL, argument: value})
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    # The default does not depend on the working directory.
    assert dataset.DEFAULT_OUT == ROOT / 'data' / 'shapes'
    out = tmp_path / 'shapes'
    options = ['--out', str(out), '--train', '2', '--val', '1', '--size', '64']
    command.main(options)
    assert str(out) in capsys.readouterr().out
    with pytest.raises(SystemExit, match='make_shapes.* was drawn with val=1'):
        command.main([*options, '--val', '2'])
    command.main([*options, '--val', '2', '--force'])
    assert len(list((out / 'val').iterdir())) == 2
