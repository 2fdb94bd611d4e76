"""The real tools/train.py on data full of broken files, odd ones and empty labels."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.bad_files import BROKEN, HEIGHT, ODD, SIZES, WIDTH, coco_of, encoded

from support.bad_files import of_sizes, write, write_files, write_pairs  # isort: skip
from support.micro_models import MICRO
from support.running_tools import PIPED, ROOT
from support.tiny_data import CLASSES, write_mask

SIZE = (WIDTH, HEIGHT)
# At a scale of 128 px a strip of 3x2000 px is resized to nothing, too.
RESIZED_AWAY = {'line', 'lying-line', 'strip', 'lying-strip'}


#: Annotations that teach nothing or are impossible.
CHANGES = {
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


def train(base, text, cwd):
    """Train on a config made of `base`; return the output and the number of losses."""
    config, arch = cwd / 'config.py', dict(MICRO, _delete_=True)
    start = f"""
_base_ = {str(ROOT / 'configs' / base)!r}
shapes = None
model = dict(backbone=dict(arch={arch}, img_size=64))
model.update(neck=dict(in_channels={list(MICRO['embed_dims'])}))
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
    config.write_text(start + text)
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools/train.py', config]
    done = subprocess.run(command, cwd=cwd, **PIPED, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]
    losses = [float(loss) for loss in re.findall(r'  loss: (\S+)', done.stdout)]
    assert all(map(math.isfinite, losses))
    return done.stdout, len(losses)


def left_out(output):
    """Return the names of the images that the log says are left out."""
    lines = [line for line in output.splitlines() if 'Left out of training' in line]
    assert all(' fails: ' in line for line in lines)
    return {re.search(r'images/([\w-]+)\.jpg', line)[1] for line in lines}


def bad_content(names):
    content = coco_of({name: SIZES.get(name, SIZE) for name in names})
    of = {Path(i['file_name']).stem: i['id'] for i in content['images']}
    annotations = {a['image_id']: a for a in content['annotations']}
    for name, change in CHANGES.items():
        annotations[of[name]].update(change)
    for name in ('nothing', 'nothing-either'):
        content['annotations'].remove(annotations[of[name]])
    return content


def test_detection(tmp_path):
    pytest.importorskip('mmdet', reason='trains a detector of mmdet')
    labels = dict.fromkeys([*CHANGES, 'nothing', 'nothing-either'], encoded())
    files = {**ODD, **BROKEN, **of_sizes(SIZES), **labels}
    data = tmp_path / 'data'
    write_files(data, files)
    (data / 'all.json').write_text(json.dumps(bad_content([*files, 'missing'])))
    sizes = {'one-pixel': (1, 1), 'strip': (3, 500)}
    val = {**ODD, **of_sizes(sizes)}
    write_files(data / 'val', val, {name: sizes.get(name, SIZE) for name in val})
    text = f"""
files = dict(ann_file='all.json', data_prefix=dict(img='images/'))
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(
    data_root={str(data)!r}, filter_cfg=dict(_delete_=True), **files))
val_dataloader = dict(
    batch_size=4, dataset=dict(data_root={str(data / 'val')!r}, **files))
val_evaluator = dict(ann_file={str(data / 'val' / 'all.json')!r})
test_dataloader, test_evaluator = val_dataloader, val_evaluator
"""
    output, losses = train('detection/mask-rcnn_lit-ti_fpn_shapes.py', text, tmp_path)
    assert left_out(output) == {*BROKEN, *RESIZED_AWAY, 'missing'}
    assert losses == math.ceil((len(files) + 1) / 2)
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
labels = dict(metainfo=metainfo, reduce_zero_label=True, {folders})
train_dataloader = dict(batch_size=2, dataset=dict(data_root={str(data)!r}, **labels))
val_dataloader = dict(
    batch_size=1, dataset=dict(data_root={str(data / 'val')!r}, **labels))
test_dataloader = val_dataloader
"""
    output, losses = train('segmentation/lit-ti_fpn_fpnhead_shapes.py', text, tmp_path)
    wrong = {'one-pixel', 'small-mask', 'torn-mask', 'odd-ids'}
    assert left_out(output) == {*BROKEN, *RESIZED_AWAY, *wrong}
    assert 'beyond the 3 classes, as they are after loading: [8]' in output
    assert losses == math.ceil(len(files) / 2)
    assert (tmp_path / 'work_dirs' / 'config' / 'epoch_1.pth').is_file()
