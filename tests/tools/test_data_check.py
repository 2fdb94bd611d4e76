"""A config's data: wrappers, unknown types, heads, the command; its pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmlit.errors import UserError
from mmlit_tools import train
from mmlit_tools.configs import import_scope
from mmlit_tools.data import command
from mmlit_tools.data.check import check_data
from mmlit_tools.data.draw import main as draw_command
from support.tiny_data import (
    check,
    coco_config,
    coco_content,
    found,
    masks_config,
    only,
    write_coco,
    write_masks,
)

pytest.importorskip('mmdet', reason='the checks build the datasets of mmdet')
pytest.importorskip('mmseg', reason='the checks build the datasets of mmseg')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'detection'


def test_which_datasets_are_checked(tmp_path):
    write_coco(tmp_path)
    config = coco_config(tmp_path)
    config.val_dataloader = coco_config(tmp_path, ann_file='val.json').train_dataloader
    training, validation = check_data(config)
    assert training.title == 'training data (CocoDataset)' and not training.errors
    assert validation.title == 'validation data (CocoDataset)'
    (kind,) = validation.errors
    assert 'val.json does not exist' in kind.text
    # Inside wrappers.
    config.pop('val_dataloader')
    sound = config.train_dataloader.dataset
    missing = dict(sound, ann_file='none.json')
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=missing)
    both = dict(type='ConcatDataset', datasets=[sound, balanced])
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=both)
    first, second = check_data(config)
    assert first.title == 'training data 1 of 2 (CocoDataset)' and not first.errors
    assert second.title == 'training data 2 of 2 (CocoDataset)'
    assert 'none.json does not exist' in second.errors[0].text
    with pytest.raises(UserError, match='no train_dataloader or val_dataloader'):
        check_data(Config(dict(default_scope='mmdet', val_dataloader=None)))


def test_samples_of_an_unknown_type_are_loaded(tmp_path):
    """As its pipeline does: image, then mask."""
    from mmengine.dataset import BaseDataset
    from mmseg.registry import DATASETS

    def load_data_list(self):
        fixed = dict(reduce_zero_label=False, label_map=None, seg_fields=[])
        image, mask = (
            f'{tmp_path}/{part}' for part in ('images/%s.jpg', 'masks/%s.png')
        )
        return [dict(fixed, img_path=image % n, seg_map_path=mask % n) for n in 'ab']

    pairs = type('Pairs', (BaseDataset,), dict(load_data_list=load_data_list))
    DATASETS.register_module(module=pairs, force=True)
    write_masks(tmp_path)
    config = masks_config(tmp_path, type='Pairs')
    for key in ('data_prefix', 'reduce_zero_label'):
        config.train_dataloader.dataset.pop(key)
    steps = config.train_dataloader.dataset.pipeline
    steps.append(dict(type='NoSuchStep'))  # That does not load is not run.
    (warning,) = found(config)
    assert warning[0] == 'warning' and 'do not know Pairs' in warning[1]
    torn = tmp_path / 'masks' / 'b.png'
    torn.write_bytes(torn.read_bytes()[:60])
    findings = check(config)
    (kind,) = findings.errors
    assert (findings.extent, kind.text) == ('2 samples', 'sample cannot be loaded')
    assert f'b.jpg with the mask {torn}: ' in kind.examples[0]
    assert not check(config, quick=True).errors


def test_datasets_that_cannot_be_built(tmp_path):
    write_coco(tmp_path)
    for changes, words in (
        (dict(type='CocoDatset'), 'CocoDatset is not in the'),
        (dict(an_file='all.json'), 'an_file'),
    ):
        only(coco_config(tmp_path, **changes), 'error', 'cannot be built', words)
    # mmseg's PascalContext asserts that the folder is there, and no more.
    none = tmp_path / 'none'
    kind = dict(type='PascalContextDataset', ann_file='val.txt', metainfo=None)
    said = 'cannot be built: AssertionError: no more is said'
    place = f'data_root={str(none)!r}', "'img_path': 'images'", "ann_file='val.txt'"
    only(masks_config(none, **kind), 'error', said, *place)
    # A step of the pipeline that cannot even be built does not matter.
    assert found(coco_config(tmp_path, pipeline=[dict(type='NoSuchStep')])) == {}
    kinds = found(coco_config(tmp_path, backend_args=dict(backend='petrel')))
    assert any('petrel' in text for level, text in kinds if level == 'warning')


@pytest.mark.parametrize(('outputs', 'level'), [(2, 'error'), (3, ''), (80, 'warning')])
def test_outputs_of_the_heads(tmp_path, outputs, level):
    write_coco(tmp_path)
    config = coco_config(tmp_path)
    heads = [dict(num_classes=3), dict(num_classes=outputs)]
    config.model = dict(backbone=dict(num_classes=1000), roi_head=dict(bbox_head=heads))
    if level:
        said = f'model.roi_head.bbox_head[1].num_classes={outputs}'
        only(config, level, said, '3 classes')
    else:
        assert found(config) == {}


def test_what_a_config_says_twice(tmp_path):
    write_masks(tmp_path)

    def config(step, **options):
        return masks_config(tmp_path, pipeline=[dict(type=step, **options)])

    assert found(config('LoadAnnotations', reduce_zero_label=True)) == {}
    said = 'reduce_zero_label=False, and the dataset True'
    twice = config('LoadAnnotations', reduce_zero_label=False)
    only(twice, 'error', said, 'leave it out')
    for crop in (64, (64, 32)):
        twice = config('RandomCrop', crop_size=crop)
        twice.model = dict(data_preprocessor=dict(size=(64, 64)))
        if crop == 64:
            assert found(twice) == {}
    only(twice, 'warning', 'crop_size=(64, 32)', 'data_preprocessor.size=(64, 64)')
    kinds = found(masks_config(tmp_path, metainfo=dict(classes='soil')))
    assert [level for level, text in kinds if "is the text 'soil'" in text] == ['error']


def test_heads_padding_and_metrics_that_ignore_another_id(tmp_path):
    write_masks(tmp_path, ids=(0, 1, 2, 7))
    config = masks_config(tmp_path, reduce_zero_label=False, ignore_index=7)
    config.model = dict(
        data_preprocessor=dict(type='SegDataPreProcessor'),
        decode_head=dict(num_classes=3, ignore_index=7),
        auxiliary_head=[dict(num_classes=3), dict(num_classes=3, ignore_index=None)],
    )
    assert {(level, text.partition(',')[0]) for level, text in found(config)} == {
        ('error', 'model.auxiliary_head[0].ignore_index=255'),
        ('error', 'model.data_preprocessor.seg_pad_val=255'),
    }
    config.model.auxiliary_head[0].ignore_index = 7
    config.model.data_preprocessor.seg_pad_val = 7
    assert found(config) == {}
    config.train_dataloader.dataset.ignore_index = 255
    assert len([text for _, text in found(config) if 'ignore_index=7' in text]) == 2
    # Which id the heads ignore does not matter where nothing is trained.
    config.model = dict(decode_head=dict(num_classes=3))
    config.val_dataloader = config.pop('train_dataloader')
    config.val_dataloader.dataset.ignore_index = 7
    for evaluator in (
        dict(type='IoUMetric'),
        [dict(type='DepthMetric'), dict(type='IoUMetric')],
    ):
        config.val_evaluator = evaluator
        only(config, 'error', 'val_evaluator.ignore_index=255', 'ignore_index=7')
    config.val_evaluator[1].ignore_index = 7
    assert found(config) == {}


def test_real_data(data_root):
    config = Config.fromfile(CONFIGS / 'mask-rcnn_lit-ti_fpn_1x_coco.py')
    import_scope(config)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = str(data_root / 'coco_tiny')
    for report in check_data(config):
        assert report.extent.startswith('80 images') and not report.kinds
    folders = dict(img_path='images/training', seg_map_path='annotations/training')
    ade = dict(type='ADE20KDataset', data_prefix=folders, metainfo=None)
    findings = check(masks_config(data_root / 'ade_layout', **ade))
    assert findings.extent == '60 images' and not findings.errors


def test_the_command(tmp_path, capsys):
    def run(*options):
        """Return the message that the command stops with or '', output, errors."""
        try:
            stopped = command.main([str(tmp_path / 'config.py'), *options]) or ''
        except SystemExit as end:
            stopped = end.code
        return stopped, *capsys.readouterr()

    content = coco_content()
    content['annotations'][0].update(bbox=[4, 5, 0, 10])
    write_coco(tmp_path, content)
    (tmp_path / 'images' / '2.jpg').unlink()
    coco_config(tmp_path).dump(tmp_path / 'config.py')
    stopped, output, errors = run()
    assert stopped.endswith(': 1 kind of errors in the data, see above')
    lines = [line.strip() for line in output.splitlines()]
    assert lines[0].endswith('1 kind of errors, 1 kind of warnings')
    assert lines[1].startswith('error: image does not exist') and lines[2] == '2.jpg'
    assert lines[3].startswith('warning: box without an area')
    assert errors.startswith('reading') and errors.endswith('all.json\n')
    option = 'train_dataloader.dataset.ann_file=none.json'
    stopped, output, _ = run('--cfg-options', option)
    assert stopped and 'none.json does not exist' in output
    (tmp_path / 'images' / '3.jpg').rename(tmp_path / 'images' / '2.jpg')
    del content['images'][2], content['annotations'][4:]
    (tmp_path / 'all.json').write_text(json.dumps(content))
    stopped, output, _ = run()
    assert not stopped and output.count('warning: ') == 1


def test_training_stops_before_the_runner(tmp_path, monkeypatch, capsys):
    """At errors in validation data, too."""
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile(CONFIGS / 'mask-rcnn_lit-ti_fpn_1x_coco.py')
    for part in ('train', 'val'):
        write_coco(tmp_path / part)
        data = coco_config(tmp_path / part).train_dataloader.dataset
        config[f'{part}_dataloader'].dataset = data
    (tmp_path / 'val' / 'images' / '2.jpg').unlink()
    config.dump('config.py')
    monkeypatch.setattr('sys.argv', ['train.py', 'config.py', '--check-data'])
    with pytest.raises(SystemExit, match='train.py: 1 kind of errors in the data'):
        train.main()
    output = capsys.readouterr().out
    assert 'error: image does not exist' in output and '2.jpg' in output
    # The Runner would have made it.
    assert not (tmp_path / 'work_dirs').exists()


def draw(config, folder, number, step=None, **visualizer):
    if step:
        config.train_dataloader.dataset.pipeline.append(dict(type=step))
        config.visualizer = visualizer
    path = folder.parent / 'config.py'
    path.parent.mkdir(exist_ok=True)
    config.dump(path)
    draw_command([str(path), str(folder), '--number', str(number)])
    paths = sorted(folder.iterdir())
    return [path.name for path in paths], np.asarray(Image.open(paths[0])).astype(int)


def test_boxes_and_outlines_are_drawn(tmp_path, capsys):
    write_coco(tmp_path)
    step = dict(step='PackDetInputs', type='DetLocalVisualizer')
    names, picture = draw(coco_config(tmp_path), tmp_path / 'out', number=2, **step)
    assert names == ['0001_1.png', '0002_2.png']
    assert f'2 pictures are in {tmp_path / "out"}' in capsys.readouterr().out
    # The image is all of one grey; its objects lie in the upper left.
    assert picture.shape == (48, 64, 3)
    assert picture[:20, :30].std() > 10 * picture[30:, 40:].std()


def test_masks_are_drawn(tmp_path):
    write_masks(tmp_path, ids=[1] * 32 + [0] * 32)
    config = masks_config(tmp_path)
    palette = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    config.train_dataloader.dataset.metainfo.palette = palette
    step = dict(step='PackSegInputs', type='SegLocalVisualizer', alpha=0.5)
    names, picture = draw(config, tmp_path / 'new' / 'out', number=9, **step)
    assert names == ['0001_a.png', '0002_b.png']
    red, green, blue = picture[5, 5]  # far from the name of the class
    assert red > 100 > 20 > max(green, blue)
    assert picture[5, 60].max() < 20


def test_nothing_to_draw(tmp_path):
    with pytest.raises(SystemExit, match='no visualizer to draw with'):
        draw(coco_config(tmp_path), tmp_path / 'out', number=1)
    assert not (tmp_path / 'out').exists()
