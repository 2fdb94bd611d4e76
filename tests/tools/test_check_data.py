"""Checks of a config's data: wrappers, unknown types, heads, and the two commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from support.tiny_data import (
    TOOLS,
    check,
    coco_config,
    coco_content,
    found,
    masks_config,
)

from support.this_stack import without_imports_lines  # isort: skip
from support.tiny_data import only, write_coco, write_masks  # isort: skip

pytest.importorskip('mmdet', reason='the checks build the data sets of mmdet')
pytest.importorskip('mmseg', reason='the checks build the data sets of mmseg')
CONFIGS = TOOLS.parent / 'configs' / 'detection'


# --- which data sets --------------------------------------------------------------


def test_training_and_validation_data(tmp_path):
    from mmlit_tools.data.check import check_data

    write_coco(tmp_path)
    config = coco_config(tmp_path)
    config.val_dataloader = coco_config(tmp_path, ann_file='val.json').train_dataloader
    training, validation = check_data(config)
    assert training.title == 'training data (CocoDataset)' and not training.errors
    assert validation.title == 'validation data (CocoDataset)'
    (kind,) = validation.errors
    assert 'val.json does not exist' in kind.text


def test_no_data():
    from mmlit_tools.data.check import check_data

    with pytest.raises(SystemExit, match='neither train_dataloader nor val_dataloader'):
        check_data(Config(dict(default_scope='mmdet', val_dataloader=None)))


def test_wrappers(tmp_path):
    from mmlit_tools.data.check import check_data

    write_coco(tmp_path)
    config = coco_config(tmp_path)
    sound = config.train_dataloader.dataset
    missing = dict(sound, ann_file='none.json')
    config.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='ConcatDataset',
            datasets=[
                sound,
                dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=missing),
            ],
        ),
    )
    first, second = check_data(config)
    assert first.title == 'training data 1 of 2 (CocoDataset)' and not first.errors
    assert second.title == 'training data 2 of 2 (CocoDataset)'
    assert 'none.json does not exist' in second.errors[0].text


def test_subclasses_are_checked_but_for_those_with_their_own_json(tmp_path):
    from mmdet.registry import DATASETS

    coco = DATASETS.get('CocoDataset')

    @DATASETS.register_module(force=True)
    class OtherNames(coco):
        METAINFO = dict(classes=('circle', 'triangle', 'ring'))

    @DATASETS.register_module(force=True)
    class OtherJson(coco):
        def load_data_list(self):
            return []

    write_coco(tmp_path)
    (tmp_path / 'images' / '1.jpg').unlink()
    only(coco_config(tmp_path, type='OtherNames'), 'error', 'image does not exist')
    kinds = found(coco_config(tmp_path, type='OtherJson', filter_cfg=None))
    assert {level for level, _ in kinds} == {'error', 'warning'}
    assert ('error', 'the split is empty') in kinds
    assert any('do not know OtherJson' in text for _, text in kinds)


def test_an_unknown_type(tmp_path):
    write_coco(tmp_path)
    config = coco_config(tmp_path, type='CocoDatset')
    only(config, 'error', 'cannot be built', 'CocoDatset is not in the')


def test_a_misspelt_argument(tmp_path):
    config = coco_config(tmp_path, an_file='all.json')
    only(config, 'error', 'cannot be built', 'an_file')


def test_a_constructor_that_says_nothing(tmp_path):
    """mmseg's PascalContext asserts that the folder is there, and no more."""
    config = masks_config(
        *(tmp_path,), type='PascalContextDataset', ann_file='val.txt', metainfo=None
    )
    only(
        *(config, 'error', 'cannot be built: AssertionError: no more is said'),
        *(f'data_root={str(tmp_path)!r}', "'img_path': 'images'", "ann_file='val.txt'"),
    )


def test_files_behind_a_backend(tmp_path):
    write_coco(tmp_path)
    config = coco_config(tmp_path, backend_args=dict(backend='petrel'))
    kinds = found(config)
    assert any('petrel' in text for level, text in kinds if level == 'warning')


def test_no_pipeline_is_run(tmp_path):
    """A step of the pipeline that cannot even be built does not matter."""
    write_coco(tmp_path)
    config = coco_config(tmp_path, pipeline=[dict(type='NoSuchStep')])
    assert found(config) == {}


@pytest.mark.parametrize(('outputs', 'level'), [(2, 'error'), (3, ''), (80, 'warning')])
def test_outputs_of_the_heads(tmp_path, outputs, level):
    write_coco(tmp_path)
    config = coco_config(tmp_path)
    config.model = dict(
        backbone=dict(num_classes=1000),
        roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=outputs)]),
    )
    if not level:
        assert found(config) == {}
        return
    said = f'model.roi_head.bbox_head[1].num_classes={outputs}'
    only(config, level, said, '3 classes')


def test_a_text_for_classes(tmp_path):
    write_masks(tmp_path, ids=(1, 2))
    config = masks_config(tmp_path, metainfo=dict(classes='soil'))
    kinds = found(config)
    assert [level for level, text in kinds if "is the text 'soil'" in text] == ['error']


@pytest.mark.parametrize(('pipeline', 'level'), [(False, 'error'), (True, '')])
def test_two_meanings_of_zero(tmp_path, pipeline, level):
    write_masks(tmp_path)
    steps = [dict(type='LoadAnnotations', reduce_zero_label=pipeline)]
    config = masks_config(tmp_path, pipeline=steps)
    assert ([kind[0] for kind in found(config)] or [''])[0] == level
    if level:
        said = 'reduce_zero_label=False, and the data set True'
        only(config, level, said, 'leave it out')


@pytest.mark.parametrize('crop', [64, (64, 32)])
def test_two_crop_sizes(tmp_path, crop):
    write_masks(tmp_path)
    config = masks_config(tmp_path, pipeline=[dict(type='RandomCrop', crop_size=crop)])
    config.model = dict(data_preprocessor=dict(size=(64, 64)))
    if crop == 64:
        assert found(config) == {}
    else:
        only(config, 'warning', 'crop_size=(64, 32)', 'data_preprocessor.size=(64, 64)')


# --- real data --------------------------------------------------------------------


def test_real_coco(data_root):
    config = Config.fromfile(CONFIGS / 'mask-rcnn_lit-ti_fpn_1x_coco.py')
    from mmlit_tools.configs import import_scope
    from mmlit_tools.data.check import check_data

    import_scope(config)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = str(data_root / 'coco_tiny')
    for report in check_data(config):
        assert report.extent.startswith('80 images') and not report.kinds


def test_real_masks(data_root):
    config = masks_config(
        data_root / 'ade_layout',
        type='ADE20KDataset',
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        metainfo=None,
    )
    findings = check(config)
    assert findings.extent == '60 images' and not findings.errors


# --- the commands -----------------------------------------------------------------


def run(tool, config, cwd, *options):
    """Status, output and error output of a tool."""
    path = Path(cwd) / 'config.py'
    config.dump(path)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(TOOLS / tool), str(path), *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, without_imports_lines(done.stdout), done.stderr


def test_command_on_sound_data(tmp_path):
    write_masks(tmp_path)
    status, output, errors = run('check_data.py', masks_config(tmp_path), tmp_path)
    assert status == 0, errors
    assert output == 'training data (BaseSegDataset): 2 images: nothing found\n'


def test_command_on_spoilt_masks(tmp_path):
    write_masks(tmp_path)
    config = masks_config(tmp_path)
    (tmp_path / 'masks' / 'b.png').unlink()
    status, output, errors = run('check_data.py', config, tmp_path)
    assert status == 1
    assert 'error: mask does not exist' in output and 'b.png' in output
    assert errors.endswith('check_data.py: 1 kind of errors in the data, see above\n')


def test_command_on_spoilt_data(tmp_path):
    content = coco_content()
    content['annotations'][0].update(bbox=[4, 5, 0, 10])
    write_coco(tmp_path, content)
    (tmp_path / 'images' / '2.jpg').unlink()
    config = coco_config(tmp_path)
    status, output, errors = run('check_data.py', config, tmp_path)
    assert status == 1
    lines = [line.strip() for line in output.splitlines()]
    assert lines[0].endswith('1 kind of errors, 1 kind of warnings')
    assert lines[1].startswith('error: image does not exist') and lines[2] == '2.jpg'
    assert lines[3].startswith('warning: box without an area')
    reading, stopped = errors.splitlines()
    assert reading.startswith('reading') and reading.endswith('all.json')
    assert stopped == 'check_data.py: 1 kind of errors in the data, see above'

    options = ['--cfg-options', 'train_dataloader.dataset.ann_file=none.json']
    status, output, _ = run('check_data.py', config, tmp_path, *options)
    assert status == 1 and 'none.json does not exist' in output
    (tmp_path / 'images' / '3.jpg').rename(tmp_path / 'images' / '2.jpg')
    del content['images'][2], content['annotations'][4:]
    (tmp_path / 'all.json').write_text(json.dumps(content))
    status, output, _ = run('check_data.py', config, tmp_path)
    assert status == 0 and output.count('warning: ') == 1


def test_train_stops_before_the_runner(tmp_path):
    write_coco(tmp_path)
    (tmp_path / 'images' / '2.jpg').unlink()
    config = Config.fromfile(CONFIGS / 'mask-rcnn_lit-ti_fpn_1x_coco.py')
    config.train_dataloader.dataset = coco_config(tmp_path).train_dataloader.dataset
    config.val_dataloader = config.val_evaluator = config.val_cfg = None
    status, output, errors = run('train.py', config, tmp_path, '--check-data')
    assert status == 1
    assert 'error: image does not exist' in output and '2.jpg' in output
    assert errors.strip().endswith('train.py: 1 kind of errors in the data, see above')
    # The Runner would have made it.
    assert not (tmp_path / 'work_dirs').exists()
