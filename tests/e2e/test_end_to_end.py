"""Train, save, resume and test through the real tools, each in its own process."""

import importlib.util
import math
import pickle
import re
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from support.config_helpers import shrink
from support.running_tools import ROOT, SPLITS, TINY, TOOLS, check_continued, finish

from support.running_tools import metrics, run, start, write_tiny  # isort: skip

DETECTION = ROOT / 'configs' / 'detection'
SEGMENTATION = ROOT / 'configs' / 'segmentation'
SEGMENTED_SHAPES = SEGMENTATION / 'lit-ti_fpn_fpnhead_shapes.py'


def tools_of(package):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f'{package} is not installed')
    return Path(spec.origin).parent / '.mim' / 'tools'


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
    assert torch.cuda.is_available() or 'bfloat16 autocast' in output
    losses = re.findall(r'  loss: ([\w.]+)', output)
    assert len(losses) == 2 and all(math.isfinite(float(loss)) for loss in losses)


def test_detection_with_our_tools(tmp_path):
    config = write_tiny(tmp_path)
    options = ['--cfg-options', 'shapes.train=4', 'shapes.val=2']
    options += ['default_hooks.checkpoint.max_keep_ckpts=2']
    # The second config does not import mmlit itself. Both want the data not yet there.
    plain = tmp_path / 'plain.py'
    no_imports = 'custom_imports = dict(_delete_=True, imports=[])'
    plain.write_text(f'_base_ = {str(config)!r}\n{no_imports}\n')
    train = TOOLS / 'train.py'
    once = [*options, 'train_cfg.max_epochs=1']
    both = (config,), (plain, '--amp', '--work-dir', 'other')
    outputs = map(finish, [start(train, *one, *once, cwd=tmp_path) for one in both])
    outputs = list(outputs)
    check_amp(outputs[1])
    folders = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert folders == ['data', 'other', 'work_dirs']
    work_dir = tmp_path / 'work_dirs' / 'config'
    assert (work_dir / 'epoch_1.pth').is_file()
    saved = torch.load(tmp_path / 'other' / 'epoch_1.pth', weights_only=False)
    patch_embed = saved['state_dict']['backbone.stages.0.patch_embed.proj.weight']
    assert patch_embed.dtype == torch.float32
    assert all(re.search(r'coco/segm_mAP: -?[\d.]+', output) for output in outputs)

    twice = [*options, 'train_cfg.max_epochs=2']
    check_resumed(run(train, config, '--resume', *twice, cwd=tmp_path), work_dir)

    out = tmp_path / 'predictions.pkl'
    show = ('--out', out, '--show-dir', 'drawn', '--work-dir', 'tested')
    tested = (TOOLS / 'test.py', config, work_dir / 'epoch_2.pth')
    run(*tested, *show, *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['coco/bbox_mAP'] <= 1 and 0 <= found['coco/segm_mAP'] <= 1
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 2
    assert all(len(p['pred_instances']['scores']) == 20 for p in predictions)
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
    config = shrink(Config.fromfile(DETECTION / f'{name}.py'), TINY)
    config.dump(tmp_path / f'{name}.py')
    train = (tools / 'train.py', tmp_path / f'{name}.py')
    run(*train, *options, 'train_cfg.max_epochs=1', cwd=tmp_path)
    twice = [*options, 'train_cfg.max_epochs=2']
    work_dir = tmp_path / 'work_dirs' / name
    check_resumed(run(*train, '--resume', *twice, cwd=tmp_path), work_dir)
    tested = (tools / 'test.py', train[1], work_dir / 'epoch_2.pth')
    run(*tested, '--work-dir', 'tested', *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['coco/bbox_mAP'] <= 1 and 0 <= found['coco/segm_mAP'] <= 1


def test_segmentation_with_the_tools_of_mmseg(tmp_path, data_root):
    tools, name = tools_of('mmseg'), 'lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512'
    small = {
        'model.data_preprocessor.size': '(64,64)',
        'train_dataloader.dataset.pipeline.3.crop_size': '(64,64)',
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
    }
    for split in ('val', 'test'):
        small[f'{split}_dataloader.dataset.pipeline.1.scale'] = '(256,64)'
        small[f'{split}_dataloader.dataset.indices'] = 2
    options = small_options(data_root / 'ade_layout', **small)
    config = shrink(Config.fromfile(SEGMENTATION / f'{name}.py'), TINY)
    config.dump(tmp_path / f'{name}.py')
    train = (tools / 'train.py', tmp_path / f'{name}.py')
    run(*train, *options, 'train_cfg.max_iters=2', cwd=tmp_path)
    work_dir = tmp_path / 'work_dirs' / name
    assert list(work_dir.glob('best_mIoU_iter_2.pth'))
    longer = [*options, 'train_cfg.max_iters=4']
    resumed = run(*train, '--resume', *longer, cwd=tmp_path)
    assert 'iter: 2' in resumed and 'Iter(train) [4/4]' in resumed
    assert 'Iter(train) [2/4]' not in resumed
    check_continued(work_dir / 'iter_2.pth', work_dir / 'iter_4.pth', steps=2)
    out = tmp_path / 'maps'
    tested = (tools / 'test.py', train[1], work_dir / 'iter_4.pth')
    run(*tested, '--out', out, '--work-dir', 'tested', *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['mIoU'] <= 100 and 0 <= found['aAcc'] <= 100
    maps = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in out.iterdir()]
    # Numbered as in the files of the dataset, where 0 is unlabelled.
    assert len(maps) == 2 and all(1 <= m.min() <= m.max() <= 150 for m in maps)


def test_segmentation_with_our_tools(tmp_path):
    """In mixed precision, with layer-wise decay, on data that is not there yet."""
    tools_of('mmseg')
    data = tmp_path / 'shapes'
    changes = {f'shapes.{k}': v for k, v in dict(train=4, val=2, size=64).items()}
    changes |= {'shapes.out': data, 'train_dataloader.batch_size': 2}
    changes['optim_wrapper.constructor'] = 'LITLayerDecayOptimWrapperConstructor'
    changes['optim_wrapper.paramwise_cfg.decay_rate'] = 0.9
    options = small_options(data, **changes)
    train = (TOOLS / 'train.py', SEGMENTED_SHAPES, '--amp')
    options += ['train_cfg.max_epochs=1']
    said = run(*train, '--check-data', *options, cwd=tmp_path)
    for checked in ('training data (BaseSegDataset): 4', 'validation data'):
        assert checked in said
    check_amp(said)
    _, table = said.split('parameter groups, decay_rate 0.9 included')
    layers = re.findall(r'^ *(\d+|other) +[\d.]+ +\d', table, re.MULTILINE)
    assert set(layers) == {'other', *map(str, range(17))}
