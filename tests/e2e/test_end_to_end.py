"""Train, save, resume and test through the real tools, each in its own process."""

import importlib.util
import math
import pickle
import re
from pathlib import Path

import pytest
import torch

from support.running_tools import SPLITS, check_continued, finish, metrics, run, start

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'detection'
SHAPES = CONFIGS / 'mask-rcnn_lit-ti_fpn_shapes.py'


def check_resumed(output, work_dir, steps):
    """Epoch 2 followed on epoch 1: nothing was repeated, nothing forgotten."""
    assert f'resumed epoch: 1, iter: {steps}' in output
    assert 'Epoch(train) [2]' in output
    assert 'Epoch(train) [1]' not in output
    files = (work_dir / f'epoch_{i}.pth' for i in (1, 2))
    first, second = check_continued(*files, steps)
    assert (first['epoch'], second['epoch']) == (1, 2)


# --- mmlit's own tools, on drawn shapes -------------------------------------------


def shapes_options(data):
    options = [
        f'shapes.out={data}',
        'shapes.train=4',
        'shapes.val=2',
        'shapes.size=64',
        'train_dataloader.batch_size=2',
        'default_hooks.logger.interval=1',
        # A detector of two steps is sure of nothing.
        'model.test_cfg.rcnn.score_thr=0.0',
        'model.test_cfg.rcnn.max_per_img=5',
        f'val_evaluator.ann_file={data}/annotations/val.json',
        f'test_evaluator.ann_file={data}/annotations/val.json',
    ]
    return options + [f'{s}_dataloader.dataset.data_root={data}/' for s in SPLITS]


def test_own_tools_on_shapes(tmp_path):
    data = tmp_path / 'data' / 'shapes'
    options = ['--cfg-options', *shapes_options(data)]
    # Also a config that does not import mmlit itself.
    plain = tmp_path / 'plain.py'
    plain.write_text(
        f'_base_ = {str(SHAPES)!r}\ncustom_imports = dict(_delete_=True, imports=[])\n'
    )
    # Both want the data, which is not there.
    train = ROOT / 'tools' / 'train.py'
    once = [*options, 'train_cfg.max_epochs=1']
    processes = [
        start(train, SHAPES, *once, cwd=tmp_path),
        start(train, plain, '--work-dir', 'other', *once, cwd=tmp_path),
    ]
    first = [finish(process) for process in processes]
    assert sorted(p.name for p in data.parent.iterdir() if p.is_dir()) == ['shapes']
    work_dir = tmp_path / 'work_dirs' / SHAPES.stem
    assert (work_dir / 'epoch_1.pth').is_file()
    assert (tmp_path / 'other' / 'epoch_1.pth').is_file()
    assert all(re.search(r'coco/segm_mAP: -?[\d.]+', output) for output in first)

    resumed = run(
        *(train, SHAPES, '--resume', *options, 'train_cfg.max_epochs=2'), cwd=tmp_path
    )
    check_resumed(resumed, work_dir, steps=2)

    test = ROOT / 'tools' / 'test.py'
    out = tmp_path / 'predictions.pkl'
    show = ('--out', out, '--show-dir', 'drawn', '--work-dir', 'tested')
    run(test, SHAPES, work_dir / 'epoch_2.pth', *show, *options, cwd=tmp_path)
    found = metrics(tmp_path / 'tested', newest=1)
    assert 0 <= found['coco/bbox_mAP'] <= 1
    assert 0 <= found['coco/segm_mAP'] <= 1
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 2
    assert all(len(p['pred_instances']['scores']) == 5 for p in predictions)
    assert len(list((tmp_path / 'tested').glob('*/drawn/*'))) == 2


def test_mixed_precision_on_shapes(tmp_path):
    """Without a GPU: trained under autocast, tested in float32."""
    data = tmp_path / 'data' / 'shapes'
    options = ['--cfg-options', *shapes_options(data), 'train_cfg.max_epochs=2']
    output = run(ROOT / 'tools/train.py', SHAPES, '--amp', *options, cwd=tmp_path)
    if not torch.cuda.is_available():
        assert 'bfloat16 autocast' in output
    losses = re.findall(r'  loss: ([\w.]+)', output)
    assert len(losses) == 4 and all(math.isfinite(float(loss)) for loss in losses)
    assert re.search(r'coco/segm_mAP: -?[\d.]+', output)
    checkpoint = tmp_path / 'work_dirs' / SHAPES.stem / 'epoch_2.pth'
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    assert weights['backbone.stages.0.patch_embed.proj.weight'].dtype == torch.float32


# --- mmdet's own installed tools, on COCO images ----------------------------------


def coco_options(root, test_cfg):
    """Everything that differs from the config: data, scale, weights, length."""
    options = [
        'model.backbone.init_cfg=None',
        f'{test_cfg}.score_thr=0.0',
        f'{test_cfg}.max_per_img=10',
        'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=2',
        'train_dataloader.dataset.pipeline.2.scale=(160,96)',
        'val_dataloader.dataset.pipeline.1.scale=(160,96)',
        'test_dataloader.dataset.pipeline.1.scale=(160,96)',
        f'val_evaluator.ann_file={root}/annotations/instances_val2017.json',
        f'test_evaluator.ann_file={root}/annotations/instances_val2017.json',
    ]
    for split in SPLITS:
        options += [
            f'{split}_dataloader.num_workers=0',
            f'{split}_dataloader.persistent_workers=False',
            f'{split}_dataloader.dataset.data_root={root}/',
            f'{split}_dataloader.dataset.indices=4',
        ]
    return options


@pytest.mark.parametrize(
    ('name', 'test_cfg', 'names'),
    [
        (
            'mask-rcnn_lit-ti_fpn_1x_coco',
            'model.test_cfg.rcnn',
            ['coco/bbox_mAP', 'coco/segm_mAP'],
        ),
        ('retinanet_lit-s_fpn_1x_coco', 'model.test_cfg', ['coco/bbox_mAP']),
    ],
)
def test_mmdet_tools_on_coco(tmp_path, data_root, name, test_cfg, names):
    mmdet = importlib.util.find_spec('mmdet')
    if mmdet is None:
        pytest.skip('mmdet is not installed')
    tools = Path(mmdet.origin).parent / '.mim' / 'tools'
    config = CONFIGS / f'{name}.py'
    options = ['--cfg-options', *coco_options(data_root / 'coco_tiny', test_cfg)]
    train = (tools / 'train.py', config)
    run(*train, *options, 'train_cfg.max_epochs=1', cwd=tmp_path)
    resumed = run(
        *(*train, '--resume', *options, 'train_cfg.max_epochs=2'), cwd=tmp_path
    )
    work_dir = tmp_path / 'work_dirs' / name
    check_resumed(resumed, work_dir, steps=2)
    run(
        *(tools / 'test.py', config, work_dir / 'epoch_2.pth'),
        *('--work-dir', 'tested', *options),
        cwd=tmp_path,
    )
    found = metrics(tmp_path / 'tested', newest=1)
    for metric in names:
        assert 0 <= found[metric] <= 1
