"""A training that is killed, stopped or out of disk ends as an undisturbed one."""

import shutil
import signal
import sys
import time
from functools import partial

import pytest

from mmlit.engine.preemption import INTERRUPTED, STOPPED
from support.comparison import equal
from support.running_tools import Training, chance, final_metrics, last_checkpoint

from support.running_tools import limit_files, progress, resumed  # isort: skip
from support.running_tools import write_config, write_tiny  # isort: skip

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL on Windows')


@pytest.fixture(autouse=True, scope='module')
def needs_mmdet():
    pytest.importorskip('mmdet', reason='the demo is for mmdet')


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


def test_one_training_through_everything(tmp_path):
    """Kills in a write and in an evaluation; SIGTERM; a full disk."""
    config, work_dir = write_tiny(tmp_path), tmp_path / 'disturbed'
    straight = Training(config, tmp_path / 'straight')
    assert straight.finish() == 0, straight.output[-3000:]

    # While the first checkpoint is being written.
    run = Training(config, work_dir)
    assert run.wait_for(run.writes)
    assert run.kill() == -signal.SIGKILL
    done = progress(work_dir)

    # SIGTERM, to the worker too, in the middle of an epoch.
    run = Training(config, work_dir)
    assert run.wait_for(lambda: '[1/4]' in run.output)
    assert run.kill(signal.SIGTERM) == STOPPED, run.output[-3000:]
    assert resumed(run.output) == done
    assert 'Stopped by SIGTERM after iteration' in run.output
    assert (work_dir / 'last_checkpoint').read_text().endswith(INTERRUPTED)
    done = progress(work_dir)
    assert done[1] % 4 > 0

    # A disk that is full.
    size = (work_dir / INTERRUPTED).stat().st_size
    run = Training(config, work_dir, preexec_fn=limit_files(size // 2))
    assert run.finish() == 1
    assert resumed(run.output) == done
    assert run.lines[-1].startswith('train.py: ')
    assert 'pth cannot be written: File too large; resuming' in run.lines[-1]
    assert run.lines[-1].endswith(f'checkpoint: {work_dir}/{INTERRUPTED}\n')
    assert 'Traceback' not in run.output and not list(work_dir.glob('.*'))
    assert progress(work_dir) == done

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
    # The demo's own network and images, a fiftieth of their number.
    settings = dict(shapes=dict(train=32, val=4, size=160, seed=0))
    settings['default_hooks'] = dict(logger=dict(interval=1))
    config = write_config(tmp_path, train_cfg=dict(max_epochs=4), **settings)
    straight, began = tmp_path / 'straight', time.monotonic()
    first = Training(config, straight)
    assert first.finish() == 0, first.output[-3000:]
    duration = time.monotonic() - began
    draw, kills = chance('the moments of the kills'), 0
    while kills < 20:
        work_dir, done = tmp_path / f'killed{kills}', (0, 0)
        run = Training(config, work_dir)
        while kills < 20:
            moment = time.monotonic() + draw.uniform(0, duration / 2)
            due = run.writes if kills % 4 == 3 else partial(passed, moment)
            if not run.wait_for(due, patience=3600) or run.kill() != -signal.SIGKILL:
                break
            kills += 1
            if 'Epoch(' in run.output:
                assert resumed(run.output) == done, run.output[-3000:]
            before, done = done, progress(work_dir)
            assert done >= before
            run = Training(config, work_dir)
        assert run.finish() == 0, run.output[-3000:]
        assert resumed(run.output) == done
        check_same_end(straight, work_dir, epochs=4)
        shutil.rmtree(work_dir)


def passed(moment):
    return time.monotonic() > moment
