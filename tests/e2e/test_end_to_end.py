"""Train, save, resume and test through the real tools, each in its own process."""

import importlib.util
import math
import pickle
import re
from pathlib import Path

import cv2
import pytest
import torch

from support.running_tools import (
    ROOT,
    SHAPES,
    SPLITS,
    TOOLS,
    check_continued,
    finish,
    metrics,
    run,
    start,
)
from support.this_stack import STACK

DETECTION = ROOT / 'configs' / 'detection'
SEGMENTATION = ROOT / 'configs' / 'segmentation'
SEGMENTED_SHAPES = SEGMENTATION / 'lit-ti_fpn_fpnhead_shapes.py'


def tools_of(package):
    """Return the tools in an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f'{package} is not installed')
    return Path(spec.origin).parent / '.mim' / 'tools'


def shapes_options(data, *more):
    size = (f'shapes.out={data}', 'shapes.train=4', 'shapes.val=2', 'shapes.size=64')
    few = ('train_dataloader.batch_size=2', 'default_hooks.logger.interval=1')
    roots = [f'{s}_dataloader.dataset.data_root={data}/' for s in SPLITS]
    return ['--cfg-options', *size, *few, *roots, *more]


def small_options(root, **changes):
    """Return settings for few images of a data root, without pretrained weights."""
    changes = {'model.backbone.init_cfg': None, **changes}
    changes['default_hooks.logger.interval'] = 1
    for split in SPLITS:
        changes[f'{split}_dataloader.num_workers'] = 0
        changes[f'{split}_dataloader.persistent_workers'] = False
        changes[f'{split}_dataloader.dataset.data_root'] = f'{root}/'
    return ['--cfg-options', *(f'{key}={value}' for key, value in changes.items())]


def check_resumed(output, work_dir):
    """Check that epoch 2 followed on epoch 1, with nothing repeated or forgotten."""
    assert 'resumed epoch: 1, iter: 2' in output
    assert 'Epoch(train) [2]' in output and 'Epoch(train) [1]' not in output
    files = (work_dir / f'epoch_{i}.pth' for i in (1, 2))
    first, second = check_continued(*files, steps=2)
    assert (first['epoch'], second['epoch']) == (1, 2)


def check_amp(output):
    """Check a training of two steps in mixed precision."""
    assert torch.cuda.is_available() or 'bfloat16 autocast' in output
    losses = re.findall(r'  loss: ([\w.]+)', output)
    assert len(losses) == 2 and all(math.isfinite(float(loss)) for loss in losses)


def test_detection_with_our_tools(tmp_path):
    data = tmp_path / 'data' / 'shapes'
    options = shapes_options(
        data,
        # A detector of two steps is sure of nothing.
        *('model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=5'),
        f'val_evaluator.ann_file={data}/annotations/val.json',
        f'test_evaluator.ann_file={data}/annotations/val.json',
    )
    # The second config does not import mmlit itself. Both want the data not yet there.
    plain = tmp_path / 'plain.py'
    no_imports = 'custom_imports = dict(_delete_=True, imports=[])'
    plain.write_text(f'_base_ = {str(SHAPES)!r}\n{no_imports}\n')
    train = TOOLS / 'train.py'
    once = [*options, 'train_cfg.max_epochs=1']
    processes = [
        start(train, SHAPES, *once, cwd=tmp_path),
        start(train, plain, '--amp', '--work-dir', 'other', *once, cwd=tmp_path),
    ]
    outputs = [finish(process) for process in processes]
    check_amp(outputs[1])
    assert sorted(p.name for p in data.parent.iterdir() if p.is_dir()) == ['shapes']
    work_dir = tmp_path / 'work_dirs' / SHAPES.stem
    assert (work_dir / 'epoch_1.pth').is_file()
    saved = torch.load(tmp_path / 'other' / 'epoch_1.pth', weights_only=False)
    patch_embed = saved['state_dict']['backbone.stages.0.patch_embed.proj.weight']
    assert patch_embed.dtype == torch.float32
    assert all(re.search(r'coco/segm_mAP: -?[\d.]+', output) for output in outputs)

    twice = [*options, 'train_cfg.max_epochs=2']
    resumed = run(train, SHAPES, '--resume', *twice, cwd=tmp_path)
    check_resumed(resumed, work_dir)

    out = tmp_path / 'predictions.pkl'
    show = ('--out', out, '--show-dir', 'drawn', '--work-dir', 'tested')
    tested = (TOOLS / 'test.py', SHAPES, work_dir / 'epoch_2.pth')
    run(*tested, *show, *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['coco/bbox_mAP'] <= 1 and 0 <= found['coco/segm_mAP'] <= 1
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 2
    assert all(len(p['pred_instances']['scores']) == 5 for p in predictions)
    assert len(list((tmp_path / 'tested').glob('*/drawn/*'))) == 2


def test_detection_with_the_tools_of_mmdet(tmp_path, data_root):
    tools, name = tools_of('mmdet'), 'mask-rcnn_lit-ti_fpn_1x_coco'
    root = data_root / 'coco_tiny'
    small = {f'{s}_dataloader.dataset.indices': 4 for s in SPLITS}
    small |= {'model.test_cfg.rcnn.score_thr': 0.0, 'train_dataloader.batch_size': 2}
    for split, resize in (('train', 2), ('val', 1), ('test', 1)):
        small[f'{split}_dataloader.dataset.pipeline.{resize}.scale'] = '(160,96)'
    for split in ('val', 'test'):
        annotations = f'{root}/annotations/instances_val2017.json'
        small[f'{split}_evaluator.ann_file'] = annotations
    small['model.test_cfg.rcnn.max_per_img'] = 10
    options = small_options(root, **small)
    train = (tools / 'train.py', DETECTION / f'{name}.py')
    run(*train, *options, 'train_cfg.max_epochs=1', cwd=tmp_path)
    twice = [*options, 'train_cfg.max_epochs=2']
    resumed = run(*train, '--resume', *twice, cwd=tmp_path)
    work_dir = tmp_path / 'work_dirs' / name
    check_resumed(resumed, work_dir)
    tested = (tools / 'test.py', train[1], work_dir / 'epoch_2.pth')
    run(*tested, '--work-dir', 'tested', *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['coco/bbox_mAP'] <= 1 and 0 <= found['coco/segm_mAP'] <= 1


@pytest.mark.parametrize(
    'name',
    [
        'lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512',
        'lit-ti_upernet_8xb2-160k_ade20k-512x512',
    ],
)
def test_segmentation_on_the_layout_of_ade20k(tmp_path, data_root, name):
    ours, tools = 'upernet' in name, tools_of('mmseg')
    tools = TOOLS if ours else tools
    small = {
        'model.data_preprocessor.size': '(64,64)',
        'train_dataloader.dataset.pipeline.3.crop_size': '(64,64)',
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
    }
    # Two of 24, and small ones: the whole size takes seconds an image.
    for split in ('val', 'test'):
        small[f'{split}_dataloader.dataset.pipeline.1.scale'] = '(256,64)'
        small[f'{split}_dataloader.dataset.indices'] = 2
    options = small_options(data_root / 'ade_layout', **small)
    train = (tools / 'train.py', SEGMENTATION / f'{name}.py')
    run(*train, *options, 'train_cfg.max_iters=2', cwd=tmp_path)
    work_dir = tmp_path / 'work_dirs' / name
    assert list(work_dir.glob('best_mIoU_iter_2.pth'))
    longer = [*options, 'train_cfg.max_iters=4']
    resumed = run(*train, '--resume', *longer, cwd=tmp_path)
    assert 'iter: 2' in resumed and 'Iter(train) [4/4]' in resumed
    assert 'Iter(train) [2/4]' not in resumed
    check_continued(work_dir / 'iter_2.pth', work_dir / 'iter_4.pth', steps=2)
    out = tmp_path / 'maps'
    show = ('--out', out, '--show-dir', tmp_path / 'drawn', '--work-dir', 'tested')
    tested = (tools / 'test.py', train[1], work_dir / 'iter_4.pth')
    run(*tested, *show, *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['mIoU'] <= 100 and 0 <= found['aAcc'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in out.iterdir()]
    # Numbered as in the files of the dataset, where 0 is unlabelled.
    assert len(maps) == 2 and all(1 <= m.min() <= m.max() <= 150 for m in maps)
    # The test.py of mmseg 1.2.2 draws every 50th image only.
    drawn = list((tmp_path / 'drawn').rglob('*.png'))
    assert len(drawn) == (2 if ours or STACK == 'onedl' else 0)


def test_segmentation_with_our_tools(tmp_path):
    """In mixed precision, with layer-wise decay, on data that is not there yet."""
    tools_of('mmseg')
    options = shapes_options(
        tmp_path / 'shapes',
        'optim_wrapper.constructor=LITLayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate=0.9',
    )
    train = (TOOLS / 'train.py', SEGMENTED_SHAPES, '--amp')
    once = [*options, 'train_cfg.max_epochs=1']
    said = run(*train, '--check-data', *once, cwd=tmp_path)
    for checked in ('training data (BaseSegDataset): 4', 'validation data'):
        assert checked in said
    check_amp(said)
    _, table = said.split('parameter groups, decay_rate 0.9 included')
    layers = re.findall(r'^ *(\d+|other) +[\d.]+ +\d', table, re.MULTILINE)
    assert set(layers) == {'other', *map(str, range(17))}
    twice = [*options, 'train_cfg.max_epochs=2']
    run(*train, '--resume', *twice, cwd=tmp_path)
    work_dir = tmp_path / 'work_dirs' / SEGMENTED_SHAPES.stem
    check_continued(work_dir / 'epoch_1.pth', work_dir / 'epoch_2.pth', steps=2)
    out = tmp_path / 'maps'
    tested = (TOOLS / 'test.py', SEGMENTED_SHAPES, work_dir / 'epoch_2.pth')
    run(*tested, '--out', out, '--work-dir', 'tested', *options, cwd=tmp_path)
    assert 0 <= metrics(tmp_path / 'tested', newest=1)['mIoU'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in out.iterdir()]
    assert len(maps) == 2 and all(m.shape == (64, 64) and m.max() <= 3 for m in maps)
