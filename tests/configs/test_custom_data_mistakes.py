"""Make each common mistake of docs/custom_data.md: its message comes."""

import json
import re

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmlit_tools.configs import import_scope
from mmlit_tools.data.check import check_data
from support.config_helpers import blocks, drop_outlines, make_workplace, section
from support.tiny_data import coco_config, found, write_image

pytest.importorskip('mmdet', reason='a recipe is for mmdet')
pytest.importorskip('mmseg', reason='a recipe is for mmseg')


def to_png(folder):
    for path in folder.glob('data/field/images/*/*.jpg'):
        path.rename(path.with_suffix('.png'))


def to_colours(folder):
    for path in folder.glob('data/field/masks/train/*.png'):
        Image.open(path).convert('RGB').save(path)


def found_by_check(config):
    return '\n'.join(line for report in check_data(config) for line in report.lines())


def raised_by_test_data(config):
    with pytest.raises(FileNotFoundError) as caught:
        DATASETS.build(config.test_dataloader.dataset)
    return str(caught.value)


def raised_by_loader(config):
    with pytest.raises(ValueError) as caught:
        Runner.build_dataloader(config.train_dataloader)
    return str(caught.value)


#: How the mistake is made: in the file, (old, new) pairs, or in the data; who says it.
MISTAKES = {
    'model.roi_head.mask_head.num': [('mask_head=dict(num_classes=num_classes),', '')],
    "metainfo['classes']": [("'screw', 'nut', 'washer'", "'screw'")],
    'category that': [("'screw', 'nut'", "'nut', 'screw'")],
    'image folder': [("'train/'", "'pictures/'")],
    'annotation without': drop_outlines,
    'mask with ids': [('reduce_zero_label=True', 'reduce_zero_label=False')],
    'mask is not': to_colours,
    'the split is empty': to_png,
    'LoadAnnotations of': [
        ('reduce_zero_label=True,', ''),
        ("(type='LoadAnnotations'", "(type='LoadAnnotations', reduce_zero_label=True"),
    ],
    'RandomCrop of': [('data_preprocessor=dict(size=crop_size),', '')],
    'No such file': [('test_dataloader = val_dataloader', '')],
    'persistent_workers': [('num_workers=2', 'num_workers=0')],
}
OF_SEGMENTATION = ('mask ', 'the split', 'LoadAnn', 'RandomCrop')
SAYS = {'No such file': raised_by_test_data, 'persistent_workers': raised_by_loader}
MESSAGES = re.findall(r'^\| `(.*?)` \|', section('Common mistakes'), re.M)


@pytest.mark.parametrize('message', MESSAGES)
def test_a_common_mistake_is_said(tmp_path, monkeypatch, message):
    (start,) = [start for start in MISTAKES if message.startswith(start)]
    mistake, says = MISTAKES[start], SAYS.get(start, found_by_check)
    title = 'Segmentation' if start.startswith(OF_SEGMENTATION) else 'Detection'
    name = make_workplace(tmp_path, title)
    monkeypatch.chdir(tmp_path)
    if callable(mistake):
        mistake(tmp_path)
    else:
        text = (tmp_path / name).read_text()
        for old, new in mistake:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    config = Config.fromfile(name)
    import_scope(config)
    init_default_scope(config.default_scope)
    pattern = re.escape(message).replace(re.escape('...'), '.*')
    assert re.search(pattern, says(config))


def test_the_example_of_a_json_is_sound(tmp_path):
    (text,) = blocks(section('Detection'), 'json')
    write_image(tmp_path / 'train' / '000001.jpg', width=640, height=480)
    (tmp_path / 'all.json').write_text(text)
    classes = ('screw', 'nut', 'washer')
    options = dict(data_prefix=dict(img='train/'), metainfo=dict(classes=classes))
    kinds = found(coco_config(tmp_path, **options))
    # One annotation is no dataset for three classes.
    assert set(kinds) == {('warning', 'class without an annotation')}
    (polygon,) = json.loads(text)['annotations'][0]['segmentation']
    x, y = np.reshape(polygon, (-1, 2)).T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert area == json.loads(text)['annotations'][0]['area']
