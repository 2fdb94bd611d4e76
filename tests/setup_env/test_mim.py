"""Run mim, in an environment of its own, on an installed wheel of this checkout."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from support import dists
from support.this_stack import only_on
from support.tiny_data import CLASSES, write_coco

MIM = dists.CHECKOUT / '.build' / 'mim' / 'bin' / 'mim'
RETINANET = 'retinanet_lit-ti_fpn_1x_coco'

pytestmark = [
    pytest.mark.slow,
    only_on('openmmlab', "mim's environment shares the packages of .venv"),
    pytest.mark.skipif(not MIM.is_file(), reason=f'no {MIM} (`make mim` makes it)'),
]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A folder with mmlit installed from its wheel, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp('mim')
    wheel = dists.build(dists.CHECKOUT, folder / 'wheel', 'bdist_wheel')
    dists.install(wheel, folder / 'site')
    return folder / 'site'


def mim(*arguments, site, cwd):
    """Run mim with the mmlit of `site`; return what it printed."""
    # mim keeps a cache in the home folder.
    env = {**os.environ, 'PYTHONPATH': str(site), 'HOME': str(cwd)}
    done = subprocess.run(
        [str(MIM), *map(str, arguments)],
        cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_search(site, tmp_path):
    mim('search', 'mmlit', '--json', 'found.json', site=site, cwd=tmp_path)
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['config'][RETINANET] == f'configs/detection/{RETINANET}.py'
    figures = found['coco/box_ap_(authors)']
    assert figures[RETINANET] == 41.6
    assert figures['retinanet_lit-m_fpn_1x_coco'] is None
    # Of the collection, by way of mim.
    assert found['epochs'][RETINANET] == 12
    assert len(found['config']) == 20


def options_for(data):
    """What lets a COCO config run a few steps on three small images."""
    options = [
        'model.backbone.init_cfg=None',
        'model.bbox_head.num_classes=3',
        # A detector of three steps is sure of nothing.
        'model.test_cfg.score_thr=0.0',
        'model.test_cfg.max_per_img=5',
        'train_cfg.max_epochs=1',
        'default_hooks.checkpoint.save_optimizer=False',
        'default_hooks.logger.interval=1',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    ]
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        options += [
            f'{loader}.num_workers=0',
            f'{loader}.persistent_workers=False',
            f'{loader}.dataset.data_root={data}/',
            f'{loader}.dataset.ann_file=all.json',
            f'{loader}.dataset.data_prefix.img=images/',
            f'{loader}.dataset.metainfo.classes=({",".join(CLASSES)})',
        ]
        if split != 'train':
            options.append(f'{loader}.dataset.pipeline.1.scale=(64,64)')
            options.append(f'{split}_evaluator.ann_file={data}/all.json')
    return ['--cfg-options', *options]


def test_train_and_test(site, tmp_path):
    """An installed config by its name, then a user's own on top of it."""
    write_coco(tmp_path / 'data')
    options = options_for(tmp_path / 'data')
    trained = mim(
        *('train', 'mmlit', f'{RETINANET}.py', '--gpus', '0', '--work-dir', 'trained'),
        *options, site=site, cwd=tmp_path,
    )  # fmt: skip
    assert str(site / 'mmlit/.mim/tools/train.py') in trained
    assert 'Training finished successfully' in trained
    assert 'coco/bbox_mAP' in trained

    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = 'mmlit::detection/{RETINANET}.py'\n")
    checkpoint = tmp_path / 'trained' / 'epoch_1.pth'
    tested = mim(
        *('test', 'mmlit', mine, '--checkpoint', checkpoint, '--work-dir', 'tested'),
        *options, site=site, cwd=tmp_path,
    )  # fmt: skip
    assert str(site / 'mmlit/.mim/tools/test.py') in tested
    assert 'Testing finished successfully' in tested
    (result,) = Path(tmp_path / 'tested').glob('*/*.json')
    assert 0 <= json.loads(result.read_text())['coco/bbox_mAP'] <= 1
