"""A training that is killed, stopped or out of disk ends as an undisturbed one."""

import shutil
import signal
import sys
import time

import pytest

from mmlit.engine.checkpoint_hook import INTERRUPTED, STOPPED
from support import running_tools
from support.comparison import equal
from support.running_tools import (
    Training,
    final_metrics,
    last_checkpoint,
    progress,
    resumed,
)

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL on Windows')


@pytest.fixture(autouse=True, scope='module')
def needs_mmdet():
    pytest.importorskip('mmdet', reason='the demo is for mmdet')


def tiny(folder):
    """Four iterations an epoch, seconds in all; data by a worker."""
    return running_tools.write_config(
        folder,
        shapes=dict(train=8, val=4, size=64, seed=0),
        scale=(64, 64),
        model=dict(
            backbone=dict(arch=dict(running_tools.TINY, _delete_=True)),
            neck=dict(in_channels=list(running_tools.TINY['embed_dims'])),
            test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)),
        ),
        train_dataloader=dict(batch_size=2, num_workers=1),
        train_cfg=dict(max_epochs=4),
        default_hooks=dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1)),
    )


def demo(folder):
    """The demo's own network and images, a fiftieth of their number."""
    return running_tools.write_config(
        folder,
        shapes=dict(train=32, val=4, size=160, seed=0),
        train_cfg=dict(max_epochs=4),
        default_hooks=dict(logger=dict(interval=1)),
    )


def check_same_end(one, other, epochs):
    """The same number of epochs, AP and weights, bit by bit."""
    measured = [final_metrics(folder, epochs) for folder in (one, other)]
    assert measured[0] == measured[1] and 'coco/segm_mAP' in measured[0]
    one, other = (last_checkpoint(folder) for folder in (one, other))
    assert one['meta']['epoch'] == other['meta']['epoch'] == epochs
    assert one['meta']['iter'] == other['meta']['iter']
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert equal(one[key], other[key]), key
    # The loss of every iteration: none was left out, none is there twice.
    curves = [c['message_hub']['log_scalars']['train/loss'] for c in (one, other)]
    losses = [curve.data[0].tolist() for curve in curves]
    assert losses[0] == losses[1] and len(losses[0]) == one['meta']['iter']
    return measured[0]


def test_one_training_through_everything(tmp_path):
    """Kills at random, in a write, in an evaluation; SIGTERM; a full disk."""
    config, work_dir = tiny(tmp_path), tmp_path / 'disturbed'
    straight = Training(config, tmp_path / 'straight')
    assert straight.finish() == 0, straight.output[-3000:]
    draw = running_tools.chance('the moment of the first kill')

    # In the first epoch, anywhere.
    run = Training(config, work_dir)
    moment = f'Epoch(train) [1][{draw.randint(1, 4)}/4]'
    assert run.wait_for(lambda: moment in run.output)
    assert run.kill() == -signal.SIGKILL
    done = progress(work_dir)

    # SIGTERM, to the worker too, in the middle of an epoch.
    run = Training(config, work_dir)
    assert run.wait_for(lambda: '[1/4]' in run.output)
    assert run.terminate() == STOPPED, run.output[-3000:]
    assert resumed(run.output) == done
    assert 'Stopped by SIGTERM after iteration' in run.output
    assert (work_dir / 'last_checkpoint').read_text().endswith(INTERRUPTED)
    done = progress(work_dir)
    assert done[1] % 4 > 0

    # A disk that is full.
    size = (work_dir / INTERRUPTED).stat().st_size
    run = Training(config, work_dir, preexec_fn=running_tools.limit_files(size // 2))
    assert run.finish() == 1
    assert resumed(run.output) == done
    assert run.lines[-1].startswith('train.py: ')
    assert 'pth cannot be written: File too large; resuming' in run.lines[-1]
    assert run.lines[-1].endswith(f'checkpoint: {work_dir}/{INTERRUPTED}\n')
    assert 'Traceback' not in run.output and not list(work_dir.glob('.*'))
    assert progress(work_dir) == done

    # While a checkpoint is being written.
    run = Training(config, work_dir)
    assert run.wait_for(run.writes)
    assert run.kill() == -signal.SIGKILL
    assert resumed(run.output) == done
    print('left of the write:', [p.stat().st_size for p in run.parts()], 'of', size)
    done = progress(work_dir)

    # In an evaluation, which follows on the note.
    note = work_dir / 'last_checkpoint'
    before = note.read_text()
    run = Training(config, work_dir)
    assert run.wait_for(lambda: note.read_text() != before)
    assert run.kill() == -signal.SIGKILL
    assert resumed(run.output) == done
    assert f'Epoch(val) [{done[0] + 1}]' not in run.output
    done = progress(work_dir)

    run = Training(config, work_dir)
    assert run.finish() == 0, run.output[-3000:]
    assert resumed(run.output) == done
    check_same_end(tmp_path / 'straight', work_dir, epochs=4)
    names = sorted(p.name for p in work_dir.iterdir() if p.is_file())
    assert names == ['config.py', 'epoch_4.pth', 'last_checkpoint']


@pytest.mark.soak
def test_twenty_kills(tmp_path):
    """At any moment, every fourth in a write; as many trainings as that takes."""
    config, straight = demo(tmp_path), tmp_path / 'straight'
    began = time.monotonic()
    first = Training(config, straight)
    assert first.finish() == 0, first.output[-3000:]
    duration = time.monotonic() - began
    draw = running_tools.chance('the moments of the kills')
    kills, trainings, in_writes = 0, 0, 0
    while kills < 20:
        trainings += 1
        work_dir, done = tmp_path / f'killed{trainings}', (0, 0)
        while True:
            run = Training(config, work_dir)
            writing = kills % 4 == 3
            moment = time.monotonic() + draw.uniform(0, duration / 2)
            due = run.writes if writing else lambda end=moment: time.monotonic() > end
            if kills == 20 or not run.wait_for(due, patience=3600):
                break
            if run.kill() != -signal.SIGKILL:
                break
            kills += 1
            in_writes += bool(run.parts())
            if 'Epoch(' in run.output:
                assert resumed(run.output) == done, run.output[-3000:]
            before, done = done, progress(work_dir)
            assert done >= before
        assert run.finish() == 0, run.output[-3000:]
        assert resumed(run.output) == done
        metrics = check_same_end(straight, work_dir, epochs=4)
        shutil.rmtree(work_dir)
    print(f'{kills} kills, {in_writes} in writes, {trainings} trainings; {metrics}')
