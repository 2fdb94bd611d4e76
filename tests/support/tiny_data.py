"""Tiny datasets in COCO's and ADE20K's layouts, sound until a test spoils them."""

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
WIDTH, HEIGHT = 64, 48
CLASSES = ('circle', 'triangle', 'ring')


def write_image(path, width=WIDTH, height=HEIGHT, mode='RGB', **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), 1).save(path, **options)


def coco_content():
    """Three images, six annotations, two of each class; a polygon each."""
    images, annotations = [], []
    for i in (1, 2, 3):
        images.append(dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT))
        for n in (0, 1):
            own = dict(id=10 * i + n, image_id=i, category_id=(i + n) % 3 + 7)
            own.update(area=200, iscrowd=0, bbox=[4 + n, 5, 20, 10])
            annotations.append(dict(own, segmentation=[[4, 5, 24, 5, 24, 15]]))
    categories = [dict(id=7 + i, name=name) for i, name in enumerate(CLASSES)]
    return dict(images=images, annotations=annotations, categories=categories)


def write_coco(root, content=None):
    """Write images and json under `root`; `content` as it is where it is text."""
    for i in (1, 2, 3):
        write_image(root / 'images' / f'{i}.jpg')
    content = coco_content() if content is None else content
    text = content if isinstance(content, str) else json.dumps(content)
    (root / 'all.json').write_text(text)


def config_of(scope, fixed, dataset):
    loader = dict(batch_size=1, dataset={**fixed, **dataset})
    return Config(dict(default_scope=scope, train_dataloader=loader))


def coco_config(root, masks=True, **dataset):
    """Return a config for train.py without a model; `dataset` changes the dataset's."""
    annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
    data = dict(type='CocoDataset', data_root=str(root), ann_file='all.json')
    data.update(metainfo=dict(classes=CLASSES), data_prefix=dict(img='images/'))
    data['filter_cfg'] = dict(filter_empty_gt=True, min_size=32)
    data['pipeline'] = [dict(type='LoadImageFromFile'), annotations]
    return config_of('mmdet', data, dataset)


def write_masks(root, ids=(0, 1, 2, 3)):
    """Write images a, b and their masks, which hold the ids in columns."""
    for name in 'ab':
        write_image(root / 'images' / f'{name}.jpg')
        write_mask(root / 'masks' / f'{name}.png', ids)


def write_mask(path, ids, width=WIDTH, height=HEIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.asarray(ids, dtype=np.uint8), width)
    Image.fromarray(np.tile(row, (height, 1))).save(path)


def masks_config(root, **dataset):
    """Return the same for segmentation; ids 1..3 are the classes."""
    data = dict(type='BaseSegDataset', data_root=str(root), reduce_zero_label=True)
    data['data_prefix'] = dict(img_path='images', seg_map_path='masks')
    data['metainfo'] = dict(classes=CLASSES)
    data['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    return config_of('mmseg', data, dataset)


def check(config, **options):
    """Return the findings in the training data of a config."""
    from mmlit_tools.configs import import_scope
    from mmlit_tools.data.check import check_data

    import_scope(config)
    (findings,) = check_data(config, **options)
    return findings


def found(config, **options):
    """Return {(level, text): examples} of the findings."""
    return {
        ('error' if kind.is_error else 'warning', kind.text): kind.examples
        for kind in check(config, **options).kinds
    }


def only(config, level, *words):
    """Return the examples of the only kind of finding; its text has the words."""
    ((kind, examples),) = found(config).items()
    assert kind[0] == level, kind
    for word in words:
        assert word in kind[1], kind
    return examples


def errors(config, **options):
    """Return the examples of the only kind of error, whatever the warnings."""
    (examples,) = (e for kind, e in found(config, **options).items() if 'error' in kind)
    return examples
