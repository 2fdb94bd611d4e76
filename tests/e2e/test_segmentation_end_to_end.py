"""Segmentation: train, save, resume and test through mmseg's tools and mmlit's."""

import importlib.util
import math
import re
from pathlib import Path

import cv2
import pytest
import torch

from support.running_tools import SPLITS, check_continued, finish, metrics, run, start
from support.this_stack import STACK

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'segmentation'
SHAPES = CONFIGS / 'lit-ti_fpn_fpnhead_shapes.py'
pytest.importorskip('mmseg', reason='the segmentation configs are for mmseg')


def mmseg_tools():
    """The tools in the installed mmseg."""
    return Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'tools'


def ade_options(root):
    """Everything that differs from the config: data, crop, weights, workers, length."""
    options = [
        'model.backbone.init_cfg=None',
        'model.data_preprocessor.size=(64,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'train_cfg.val_interval=2',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=2',
        # Two of 24, and small ones: the whole size takes seconds an image.
        'val_dataloader.dataset.pipeline.1.scale=(256,64)',
        'test_dataloader.dataset.pipeline.1.scale=(256,64)',
        'val_dataloader.dataset.indices=2',
        'test_dataloader.dataset.indices=2',
    ]
    for split in SPLITS:
        options += [
            f'{split}_dataloader.num_workers=0',
            f'{split}_dataloader.persistent_workers=False',
            f'{split}_dataloader.dataset.data_root={root}',
        ]
    return options


@pytest.mark.parametrize(
    ('name', 'tools'),
    [
        ('lit-ti_fpn_fpnhead_8xb2-80k_ade20k-512x512', 'mmseg'),
        ('lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512', 'mmseg'),
        ('lit-s_upernet_8xb2-160k_ade20k-512x512', 'mmlit'),
        ('lit-ti_upernet_8xb2-160k_ade20k-512x512', 'mmseg'),
    ],
)
def test_tools_on_the_layout_of_ade20k(tmp_path, data_root, name, tools):
    tools = mmseg_tools() if tools == 'mmseg' else ROOT / 'tools'
    config = CONFIGS / f'{name}.py'
    options = ['--cfg-options', *ade_options(data_root / 'ade_layout')]
    train = (tools / 'train.py', config)
    run(*train, *options, 'train_cfg.max_iters=2', cwd=tmp_path)
    work_dir = tmp_path / 'work_dirs' / name
    assert list(work_dir.glob('best_mIoU_iter_2.pth'))
    resumed = run(
        *(*train, '--resume', *options, 'train_cfg.max_iters=4'), cwd=tmp_path
    )
    assert 'iter: 2' in resumed and 'Iter(train) [4/4]' in resumed
    assert 'Iter(train) [2/4]' not in resumed
    check_continued(work_dir / 'iter_2.pth', work_dir / 'iter_4.pth', steps=2)
    out = tmp_path / 'maps'
    show = ('--out', out, '--show-dir', tmp_path / 'drawn', '--work-dir', 'tested')
    run(
        *(tools / 'test.py', config, work_dir / 'iter_4.pth', *show, *options),
        cwd=tmp_path,
    )
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['mIoU'] <= 100 and 0 <= found['aAcc'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in out.iterdir()]
    # Numbered as in the files of the data set, where 0 is unlabelled.
    assert len(maps) == 2 and all(1 <= m.min() <= m.max() <= 150 for m in maps)
    # The test.py of mmseg 1.2.2 draws every 50th image only.
    drawn = list((tmp_path / 'drawn').rglob('*.png'))
    assert len(drawn) == (2 if tools.parent == ROOT or STACK == 'onedl' else 0)


def shapes_options(data):
    return [
        '--cfg-options',
        *(f'shapes.out={data}', 'shapes.train=4', 'shapes.val=2', 'shapes.size=64'),
        *('train_dataloader.batch_size=2', 'default_hooks.logger.interval=1'),
        *(f'{s}_dataloader.dataset.data_root={data}/' for s in SPLITS),
    ]


def test_mixed_precision_on_shapes(tmp_path):
    """Without a GPU: trained under autocast, tested in float32."""
    options = [*shapes_options(tmp_path / 'shapes'), 'train_cfg.max_epochs=1']
    output = run(ROOT / 'tools' / 'train.py', SHAPES, '--amp', *options, cwd=tmp_path)
    if not torch.cuda.is_available():
        assert 'bfloat16 autocast' in output
    losses = re.findall(r'  loss: ([\w.]+)', output)
    assert len(losses) == 2 and all(math.isfinite(float(loss)) for loss in losses)
    assert re.search(r'mIoU: [\d.]+', output)


def test_layer_decay_on_shapes(tmp_path):
    options = [
        *shapes_options(tmp_path / 'shapes'),
        'train_cfg.max_epochs=1',
        'optim_wrapper.constructor=LITLayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate=0.9',
    ]
    output = run(ROOT / 'tools' / 'train.py', SHAPES, *options, cwd=tmp_path)
    _, table = output.split('parameter groups, decay_rate 0.9 included')
    layers = re.findall(r'^ *(\d+|other) +[\d.]+ +\d', table, re.MULTILINE)
    assert set(layers) == {'other', *map(str, range(17))}
    assert re.search(r'mIoU: [\d.]+', output)


def test_own_tools_on_shapes(tmp_path):
    data = tmp_path / 'data' / 'shapes'
    options = shapes_options(data)
    # The data is not there yet.
    train = (ROOT / 'tools' / 'train.py', SHAPES, '--check-data')
    said = finish(start(*train, *options, 'train_cfg.max_epochs=1', cwd=tmp_path))
    for checked in ('training data (BaseSegDataset): 4', 'validation data'):
        assert checked in said
    run(*train, '--resume', *options, 'train_cfg.max_epochs=2', cwd=tmp_path)
    work_dir = tmp_path / 'work_dirs' / SHAPES.stem
    check_continued(work_dir / 'epoch_1.pth', work_dir / 'epoch_2.pth', steps=2)
    out = tmp_path / 'maps'
    run(
        *(ROOT / 'tools' / 'test.py', SHAPES, work_dir / 'epoch_2.pth', '--out', out),
        *('--work-dir', 'tested', *options),
        cwd=tmp_path,
    )
    assert 0 <= metrics(tmp_path / 'tested', newest=1)['mIoU'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in out.iterdir()]
    assert len(maps) == 2 and all(m.shape == (64, 64) and m.max() <= 3 for m in maps)
