"""AtomicCheckpointHook: a run that is stopped and resumed equals an undisturbed one."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from mmlit import AtomicCheckpointHook, read_checkpoint
from mmlit.checkpoints.atomic import WholeFileBackend
from mmlit.engine.preemption import INTERRUPTED
from mmlit.errors import CheckpointWriteError
from support import toy_resuming
from support.attacks import nothing_allowed
from support.comparison import equal
from support.toy_resuming import BY_EPOCH, EPOCH, IMAGES, build, noted, stopped

SLOW = pytest.mark.slow


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(Exception):
    """Leaves a training as a kill does: nothing of the hook's runs any more."""


def kill():
    raise Killed


def killed(runner):
    try:
        with pytest.raises(Killed):
            runner.train()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return runner


def files(folder):
    return sorted(path.name for path in Path(folder).glob('*.pth'))


MOMENTS = {
    'at the first iteration': ('train', 0),
    'in the middle of an epoch': ('train', EPOCH + 1),
    'at the end of an epoch': ('train', 2 * EPOCH - 1),
    'in an evaluation': ('val', 2 * EPOCH),
    'after an evaluation': ('after_val', 2 * EPOCH),
    'in the last evaluation': ('val', 3 * EPOCH),
}


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=SLOW)])
@BY_EPOCH
def test_sigterm_anywhere_and_on(tmp_path, by_epoch, workers):
    options = dict(by_epoch=by_epoch, workers=workers, max_keep_ckpts=2)
    straight = build(tmp_path / 'straight', **options)
    straight.train()
    # With workers it takes seconds.
    moments = MOMENTS if workers == 0 else ['in the middle of an epoch']
    for name in moments:
        folder = tmp_path / name
        first = stopped(build(folder, at=(MOMENTS[name], terminate), **options))
        assert noted(folder).is_file()
        done = read_checkpoint(noted(folder))['meta']['iter']
        assert done == len(first.model.seen) / 2
        assert (noted(folder).name == INTERRUPTED) == (done % EPOCH > 0), name
        second = build(folder, resume=True, **options)
        second.train()
        # Every image of every epoch once.
        seen = first.model.seen + second.model.seen
        assert seen == straight.model.seen
        for epoch in range(3):
            of_epoch = seen[epoch * IMAGES : (epoch + 1) * IMAGES]
            assert sorted(of_epoch) == list(range(IMAGES))
        toy_resuming.check_same_end(straight, second)
        assert files(folder) == files(tmp_path / 'straight'), name


@BY_EPOCH
@pytest.mark.parametrize('loop', ['train', pytest.param('val', marks=SLOW)])
def test_sigterm_while_waiting_for_data(tmp_path, by_epoch, loop):
    """It goes to the workers too; data of a worker that is gone do not come."""
    options = dict(by_epoch=by_epoch, workers=1)
    straight = build(tmp_path / 'straight', **options)
    straight.train()
    first = build(tmp_path / 'a', **options)
    getattr(first, f'_{loop}_dataloader')['dataset'] = toy_resuming.Untimely()
    stopped(first)
    done = read_checkpoint(noted(tmp_path / 'a'))['meta']['iter']
    assert done == len(first.model.seen) / toy_resuming.BATCH
    assert done == EPOCH if loop == 'val' else done in (1, 2)
    second = build(tmp_path / 'a', resume=True, **options)
    second.train()
    assert first.model.seen + second.model.seen == straight.model.seen
    toy_resuming.check_same_end(straight, second)


IN_VALIDATION = {
    'a kill': [(('val', 2 * EPOCH), kill)],
    'a kill in the last': [(('evaluated', 3 * EPOCH), kill)],
    'stops': [(('val', EPOCH), terminate)] * 2,
    'stops in the next one': [(('val', 2 * EPOCH), terminate)] * 2,
    'stops in the epoch': [(('train', 1), terminate), (('train', 2), terminate)],
    'kills': [(('val', EPOCH), kill), (('train', EPOCH + 1), kill)],
    'a stop after it': [(('val', EPOCH), kill), (('train', EPOCH + 1), terminate)],
}


@pytest.mark.parametrize('moments', IN_VALIDATION.values(), ids=IN_VALIDATION)
def test_a_validation_that_was_prevented_is_done_on_resuming(tmp_path, moments):
    """What is saved in it belongs to no epoch: the next one is run whole."""
    options = dict(save_best='score', rule='greater')
    straight = build(tmp_path / 'straight', **options)
    straight.train()
    for at in moments:
        runner = build(tmp_path / 'disturbed', at=at, resume=True, **options)
        (stopped if at[1] is terminate else killed)(runner)
        found = read_checkpoint(noted(runner.work_dir))['resumption']
        assert found['batches_done'] < EPOCH
    last = build(tmp_path / 'disturbed', resume=True, **options)
    last.train()
    assert last.iter == 3 * EPOCH
    toy_resuming.check_same_end(straight, last)
    assert files(tmp_path / 'disturbed') == files(tmp_path / 'straight')


def test_what_fits_no_more_restarts_the_epoch(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match='unknown arguments: max_keep_ckpt$'):
        AtomicCheckpointHook(max_keep_ckpt=2)
    # A checkpoint of mmengine's own hook, and a dataset of another length.
    build(tmp_path / 'a', type='CheckpointHook', epochs=1).train()
    resumed = build(tmp_path / 'a', resume=True)
    resumed.train()
    assert len(resumed.model.seen) == 2 * IMAGES
    folder = tmp_path / 'shorter'
    stopped(build(folder, at=(('train', EPOCH + 1), terminate)))
    monkeypatch.setattr('support.toy_resuming.Noisy.__len__', lambda self: IMAGES - 2)
    resumed = build(folder, resume=True)
    resumed.train()
    assert len(resumed.model.seen) == 2 * (IMAGES - 2)


def test_it_loads_with_weights_only_everywhere(tmp_path):
    runner = build(tmp_path / 'a', epochs=1)
    runner.train()
    found = read_checkpoint(noted(runner.work_dir))['resumption']
    torch.save(found, tmp_path / 'alone.pth')
    with nothing_allowed():
        again = torch.load(tmp_path / 'alone.pth', weights_only=True)
    assert equal(again, found) and len(found['random_states']) == 1


def test_superseded_checkpoints_are_removed_last(tmp_path, monkeypatch):
    """There is a whole checkpoint at any time, and `last_checkpoint` names one."""
    folder = tmp_path / 'watched'
    moments = []

    def watched(name, real):
        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if (folder / 'last_checkpoint').exists():
                moments.append((name, noted(folder).is_file(), len(files(folder))))
                for path in folder.glob('*.pth'):
                    read_checkpoint(path)
            return result

        return call

    for name in ('replace', 'remove', 'unlink', 'fsync'):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    options = dict(max_keep_ckpts=1, save_best='score', rule='greater')
    build(folder, **options).train()
    assert {'replace', 'remove'} <= {name for name, *_ in moments}
    assert all(is_there for _, is_there, _ in moments)
    assert min(number for *_, number in moments[2:]) >= 1
    assert files(folder)[-1:] == ['epoch_3.pth'] and len(files(folder)) == 2


@pytest.mark.parametrize('name', ['epoch_2', 'best_score_epoch_2'])
def test_a_full_disk(tmp_path, monkeypatch, name):
    """The error names the last whole checkpoint, from which the run can resume."""
    real = WholeFileBackend.put

    def put(self, content, path):
        if Path(path).stem == name:
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        real(self, content, path)

    options = dict(save_best='score', rule='greater', max_keep_ckpts=1)
    folder = tmp_path / 'full'
    with monkeypatch.context() as patch, pytest.raises(CheckpointWriteError) as error:
        patch.setattr(WholeFileBackend, 'put', put)
        build(folder, **options).train()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    last = noted(folder)
    assert last.name == f'epoch_{1 if name == "epoch_2" else 2}.pth'
    assert f"'{folder}/{name}.pth'; resuming continues" in str(error.value)
    assert str(error.value).endswith(f'from the last whole checkpoint: {last}')
    read_checkpoint(last)
    # What a kill in a write leaves is removed.
    (folder / '.epoch_7.pth.part').write_bytes(b'half')
    resumed = build(folder, resume=True, **options)
    resumed.train()
    assert not list(folder.glob('.*.part'))
    straight = build(tmp_path / 'straight', **options)
    straight.train()
    toy_resuming.check_same_end(straight, resumed)


def test_a_handler_of_others_stays(tmp_path):
    other = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        build(tmp_path / 'a', epochs=1).train()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, other)
    # A training that failed puts none back: the next one is stopped all the same.
    with pytest.raises(Killed):
        build(tmp_path / 'failed', at=(('train', 1), kill)).train()
    stopped(build(tmp_path / 'b', at=(('train', 1), terminate)))


def test_forked_processes_still_end(tmp_path):
    """A pool that was made during training is ended by SIGTERM, by its parent."""
    ended = []

    def pool():
        context = multiprocessing.get_context('fork')
        running = context.Event()
        process = context.Process(target=lambda: (running.set(), time.sleep(60)))
        process.start()
        assert running.wait(20)
        process.terminate()
        process.join(20)
        ended.append(process.exitcode)
        process.kill()

    build(tmp_path / 'a', epochs=1, at=(('train', 2), pool)).train()
    assert ended == [-signal.SIGTERM]
