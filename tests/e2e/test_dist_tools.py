"""dist_train.sh and dist_test.sh with two processes on CPUs, on drawn shapes."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from mmlit import read_checkpoint
from support.running_tools import check_continued, finish, metrics, run
from support.two_processes import free_port, launch

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / 'configs' / 'detection' / 'mask-rcnn_lit-ti_fpn_shapes.py'
# Five images to evaluate: two processes get three each, one of them twice.
CONFIG = """
_base_ = {base!r}
data_root = {data!r}
shapes = dict(out=data_root, train=4, val=5, size=64)
# A detector of a few steps is sure of nothing.
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)))
train_dataloader = dict(batch_size=1, dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size=1, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
metric = dict(
    type='CocoMetric',
    metric=['bbox', 'segm'],
    format_only=False,
    ann_file=data_root + 'annotations/val.json',
)
val_evaluator = [metric, dict(type='DumpDetResults', out_file_path='training.pkl')]
test_evaluator = dict(_delete_=True, **metric)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    # Sums are the same to the last bit on the same number of threads.
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(base=str(SHAPES), data=f'{tmp_path}/data/'))
    return path


def predictions(path):
    """By image, as plain values that can be compared."""
    found = {}
    for result in pickle.loads(path.read_bytes()):
        assert result['img_id'] not in found
        instances = result['pred_instances']
        found[result['img_id']] = [
            value.tolist() if isinstance(value, torch.Tensor) else value
            for _, value in sorted(instances.items())
        ]
    return found


def figures(work_dir):
    """What COCO's evaluation found, without the seconds that it took."""
    found = metrics(work_dir, newest=1)
    return {key: value for key, value in found.items() if key.startswith('coco/')}


def test_train_resume_and_evaluate(tmp_path, config):
    once = ('--cfg-options', 'train_cfg.max_epochs=1')
    output = finish(launch('dist_train.sh', config, 2, *once, cwd=tmp_path))
    if not torch.cuda.is_available():
        assert '2 processes on CPUs, over gloo' in output
    # Four images are two steps for two processes.
    assert 'Epoch(train) [1][2/2]' in output

    # Two machines, one process each.
    work_dir = tmp_path / 'work_dirs' / 'config'
    twice = ('--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    port = free_port()
    machines = [
        launch(
            *('dist_train.sh', config, 1, *twice),
            **dict(cwd=tmp_path, NNODES=2, NODE_RANK=rank, PORT=port),
        )
        for rank in range(2)
    ]
    output = [finish(machine) for machine in machines][0]
    assert 'resumed epoch: 1, iter: 2' in output
    checkpoint = work_dir / 'epoch_2.pth'
    check_continued(work_dir / 'epoch_1.pth', checkpoint, steps=2)

    out = [tmp_path / f'{name}.pkl' for name in ('training', 'two', 'one')]
    finish(
        launch(
            *('dist_test.sh', config, checkpoint, 2),
            *('--out', out[1], '--work-dir', 'two'),
            cwd=tmp_path,
        )
    )
    run(
        *(ROOT / 'tools' / 'test.py', config, checkpoint),
        *('--out', out[2], '--work-dir', 'one'),
        cwd=tmp_path,
    )
    during, two, one = map(predictions, out)
    assert len(one) == 5 and all(len(values[0]) == 20 for values in one.values())
    assert two == one
    assert len(figures(tmp_path / 'one')) == 12
    assert figures(tmp_path / 'two') == figures(tmp_path / 'one')
    # What two processes found while training is what their checkpoint finds, although
    # each has had BatchNorm statistics of its own.
    assert during == one


def test_sigterm_to_torchrun(tmp_path, config):
    """It tells its processes and theirs; they save, and it waits for that."""
    workers = ('--cfg-options', 'train_dataloader.num_workers=1')
    running = launch('dist_train.sh', config, 2, *workers, cwd=tmp_path)
    for line in running.stdout:
        if 'Epoch(train) [1][1/2]' in line:
            break
    running.terminate()
    output, _ = running.communicate(timeout=300)
    stopped = re.search(r'Stopped by SIGTERM after iteration (\d), with', output)
    assert stopped, output[-3000:]
    assert running.returncode == 1  # torchrun's own
    note = tmp_path / 'work_dirs' / 'config' / 'last_checkpoint'
    saved = read_checkpoint(note.read_text())
    assert saved['meta']['iter'] == int(stopped[1]) <= 2
