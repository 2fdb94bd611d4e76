"""The real tools/train.py on data full of broken files, odd ones and empty labels."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.bad_files import (
    BROKEN,
    HEIGHT,
    ODD,
    SIZES,
    WIDTH,
    coco_of,
    encoded,
    of_sizes,
)
from support.micro_models import MICRO

from support.bad_files import write, write_files, write_pairs  # isort: skip
from support.tiny_data import CLASSES, write_mask  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
SIZE = (WIDTH, HEIGHT)
# At a scale of 128 px a strip of 3x2000 px is resized to nothing, too.
RESIZED_AWAY = {'line', 'lying-line', 'strip', 'lying-strip'}


def train(base, text, cwd):
    """Return status, output and losses of tools/train.py on a config made of `base`."""
    config = cwd / 'config.py'
    arch = dict(MICRO, _delete_=True)
    channels = list(MICRO['embed_dims'])
    start = f"""
_base_ = {str(ROOT / 'configs' / base)!r}
shapes = None
model = dict(
    backbone=dict(arch={arch}, img_size=64), neck=dict(in_channels={channels}))
"""
    config.write_text(start + text)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', ROOT / 'tools/train.py', config],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    losses = [float(loss) for loss in re.findall(r'  loss: (\S+)', done.stdout)]
    return done.returncode, done.stdout, losses


def left_out(output):
    """Return the names of the images that the log says are left out."""
    lines = [line for line in output.splitlines() if 'Left out of training' in line]
    assert all(' fails: ' in line for line in lines)
    return {re.search(r'images/([\w-]+)\.jpg', line)[1] for line in lines}


def bad_content(names, sizes):
    """Return annotations that teach nothing or are impossible, one kind an image."""
    content = coco_of({name: sizes.get(name, SIZE) for name in names})
    of = {Path(i['file_name']).stem: i['id'] for i in content['images']}
    annotations = {a['image_id']: a for a in content['annotations']}
    changes = {
        'no-width': dict(bbox=[5, 5, 0, 10]),
        'nan-box': dict(bbox=[5, 5, float('nan'), 10]),
        'infinite-box': dict(bbox=[5, 5, float('inf'), 10]),
        'nan-corner': dict(bbox=[float('nan'), 5, 9, 9]),
        'outside': dict(bbox=[500, 500, 20, 20]),
        'over-the-edge': dict(bbox=[40, 30, 200, 200]),
        'no-area': dict(area=0),
        'unknown-class': dict(category_id=77),
        'crowd': dict(iscrowd=1),
        'two-points': dict(segmentation=[[1, 1, 5, 5]]),
    }
    for name, change in changes.items():
        annotations[of[name]].update(change)
    for name in ('nothing', 'nothing-either'):
        content['annotations'].remove(annotations[of[name]])
    return content


def test_detection(tmp_path):
    pytest.importorskip('mmdet', reason='trains a detector of mmdet')
    labels = (
        'no-width nan-box infinite-box nan-corner outside over-the-edge no-area '
        'unknown-class crowd two-points nothing nothing-either'
    ).split()
    files = {**ODD, **BROKEN, **of_sizes(SIZES), **{n: encoded() for n in labels}}
    data = tmp_path / 'data'
    write_files(data, files)
    content = bad_content([*files, 'missing'], SIZES)
    (data / 'all.json').write_text(json.dumps(content))
    sizes = {'one-pixel': (1, 1), 'strip': (3, 500)}
    val = {**ODD, **of_sizes(sizes)}
    write_files(data / 'val', val, {name: sizes.get(name, SIZE) for name in val})
    text = f"""
train_dataloader = dict(
    batch_size=2, num_workers=1, dataset=dict(
        data_root={str(data)!r}, ann_file='all.json', data_prefix=dict(img='images/'),
        filter_cfg=dict(_delete_=True)))
val_dataloader = dict(batch_size=4, dataset=dict(
    data_root={str(data / 'val')!r}, ann_file='all.json',
    data_prefix=dict(img='images/')))
val_evaluator = dict(ann_file={str(data / 'val' / 'all.json')!r})
test_dataloader, test_evaluator = val_dataloader, val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
    base = 'detection/mask-rcnn_lit-ti_fpn_shapes.py'
    status, output, losses = train(base, text, tmp_path)
    assert status == 0, output[-5000:]
    assert left_out(output) == {*BROKEN, *RESIZED_AWAY, 'missing'}
    assert len(losses) == math.ceil((len(files) + 1) / 2)
    assert all(map(math.isfinite, losses))
    assert re.search(r'coco/segm_mAP: -?[\d.]+', output)


def test_segmentation(tmp_path):
    pytest.importorskip('mmseg', reason='trains a segmentor of mmseg')
    labels = 'ignored-mask small-mask torn-mask odd-ids'.split()
    # Sound ones among them, of which a random one takes the place of a broken one: ten
    # broken ones in a row end the training.
    sound = [*labels, *(f'sound-{i}' for i in range(20))]
    files = {**ODD, **BROKEN, **of_sizes(SIZES), **{n: encoded() for n in sound}}
    data = tmp_path / 'data'
    write_pairs(data, files, SIZES)
    write_mask(data / 'masks' / 'ignored-mask.png', (255,))
    write_mask(data / 'masks' / 'small-mask.png', (1, 2), width=20)
    write(data / 'masks' / 'torn-mask.png', encoded('L', 'PNG')[:900])
    write_mask(data / 'masks' / 'odd-ids.png', (1, 2, 9))
    sizes = {'strip': (3, 500)}
    write_pairs(data / 'val', {**ODD, **of_sizes(sizes)}, sizes)
    folders = "data_prefix=dict(img_path='images', seg_map_path='masks')"
    text = f"""
metainfo = dict(classes={CLASSES}, palette=[[9, 9, 9], [99, 9, 9], [9, 9, 99]])
model.update(decode_head=dict(
    num_classes=3, loss_decode=dict(_delete_=True, type='CrossEntropyLoss')))
train_dataloader = dict(batch_size=2, dataset=dict(
    data_root={str(data)!r}, {folders}, metainfo=metainfo, reduce_zero_label=True))
val_dataloader = dict(batch_size=1, dataset=dict(
    data_root={str(data / 'val')!r}, {folders}, metainfo=metainfo,
    reduce_zero_label=True))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
    base = 'segmentation/lit-ti_fpn_fpnhead_shapes.py'
    status, output, losses = train(base, text, tmp_path)
    assert status == 0, output[-5000:]
    assert left_out(output) == {
        *(*BROKEN, *RESIZED_AWAY, 'one-pixel', 'small-mask', 'torn-mask', 'odd-ids')
    }, output[-5000:]
    assert 'beyond the 3 classes, as they are after loading: [8]' in output
    assert len(losses) == math.ceil(len(files) / 2)
    assert all(map(math.isfinite, losses))
    assert (tmp_path / 'work_dirs' / 'config' / 'epoch_1.pth').is_file()
