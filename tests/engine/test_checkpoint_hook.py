"""A training stopped anywhere and resumed is the undisturbed one; no file is torn."""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from mmlit import AtomicCheckpointHook, read_checkpoint
from mmlit.checkpoints.atomic_backend import WholeFileBackend
from mmlit.engine.checkpoint_hook import INTERRUPTED
from mmlit.errors import CheckpointWriteError
from support.comparison import equal
from support.toy_resuming import (
    BATCH,
    BY_EPOCH,
    EPOCH,
    IMAGES,
    Untimely,
    build,
    check_same_end,
    noted,
    stopped,
)


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


# --- resuming ---------------------------------------------------------------------

MOMENTS = {
    'at the first iteration': ('train', 0),
    'in the middle of an epoch': ('train', EPOCH + 1),
    'at the end of an epoch': ('train', 2 * EPOCH - 1),
    'in an evaluation': ('val', 2 * EPOCH),
    'after an evaluation': ('after_val', 2 * EPOCH),
    'in the last evaluation': ('val', 3 * EPOCH),
}


@pytest.mark.parametrize('workers', [0, 1])
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
        check_same_end(straight, second)
        assert files(folder) == files(tmp_path / 'straight'), name


@BY_EPOCH
@pytest.mark.parametrize('loop', ['train', 'val'])
def test_sigterm_while_waiting_for_data(tmp_path, by_epoch, loop):
    """It goes to the workers too; data of a worker that is gone do not come."""
    options = dict(by_epoch=by_epoch, workers=1)
    straight = build(tmp_path / 'straight', **options)
    straight.train()
    first = build(tmp_path / 'a', **options)
    getattr(first, f'_{loop}_dataloader')['dataset'] = Untimely()
    stopped(first)
    done = read_checkpoint(noted(tmp_path / 'a'))['meta']['iter']
    assert done == len(first.model.seen) / BATCH
    assert done == EPOCH if loop == 'val' else done in (1, 2)
    second = build(tmp_path / 'a', resume=True, **options)
    second.train()
    assert first.model.seen + second.model.seen == straight.model.seen
    check_same_end(straight, second)


@pytest.mark.parametrize('moment', [('val', 2 * EPOCH), ('evaluated', 3 * EPOCH)])
def test_an_evaluation_that_a_kill_prevented_is_made_up_for(tmp_path, moment):
    options = dict(save_best='score', rule='greater')
    straight = build(tmp_path / 'straight', **options)
    straight.train()
    folder = tmp_path / 'killed'
    killed(build(folder, at=(moment, kill), **options))
    second = build(folder, resume=True, **options)
    second.train()
    check_same_end(straight, second)
    assert files(folder) == files(tmp_path / 'straight')


MADE_UP_FOR = {
    'stops': [(('val', EPOCH), terminate)] * 2,
    'stops in the next one': [(('val', 2 * EPOCH), terminate)] * 2,
    'kills': [(('val', EPOCH), kill), (('train', EPOCH + 1), kill)],
    'a stop after it': [(('val', EPOCH), kill), (('train', EPOCH + 1), terminate)],
}


@pytest.mark.parametrize('moments', MADE_UP_FOR.values(), ids=MADE_UP_FOR)
def test_what_is_saved_in_an_evaluation_that_is_made_up_for(tmp_path, moments):
    """It belongs to no epoch: the next one is run whole."""
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
    check_same_end(straight, last)
    assert files(tmp_path / 'disturbed') == files(tmp_path / 'straight')


def test_two_stops_in_one_epoch(tmp_path):
    straight = build(tmp_path / 'straight')
    straight.train()
    seen = []
    for moment in (1, 2, None):
        at = None if moment is None else (('train', moment), terminate)
        runner = build(tmp_path / 'twice', at=at, resume=True)
        runner.train() if at is None else stopped(runner)
        seen += runner.model.seen
    assert seen == straight.model.seen
    check_same_end(straight, runner)


def test_another_length_begins_the_epoch_anew(tmp_path, monkeypatch):
    folder = tmp_path / 'shorter'
    stopped(build(folder, at=(('train', EPOCH + 1), terminate)))
    monkeypatch.setattr('support.toy_resuming.Noisy.__len__', lambda self: IMAGES - 2)
    resumed = build(folder, resume=True)
    resumed.train()
    assert len(resumed.model.seen) == 2 * (IMAGES - 2)


def test_a_checkpoint_of_mmengines_own_hook_resumes(tmp_path):
    build(tmp_path / 'a', type='CheckpointHook', epochs=1).train()
    resumed = build(tmp_path / 'a', resume=True)
    resumed.train()
    assert len(resumed.model.seen) == 2 * IMAGES


def test_it_loads_with_weights_only_everywhere(tmp_path):
    runner = build(tmp_path / 'a', epochs=1)
    runner.train()
    found = read_checkpoint(noted(runner.work_dir))['resumption']
    torch.save(found, tmp_path / 'alone.pth')
    # With nothing allowed on top of torch's own list.
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        again = torch.load(tmp_path / 'alone.pth', weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert equal(again, found) and len(found['random_states']) == 1


# --- files ------------------------------------------------------------------------


def test_what_is_superseded_goes_last(tmp_path, monkeypatch):
    """At no time is there no whole checkpoint, and the note names one that is there."""
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


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of its own where one can be mounted."""
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f'no mount here: {error}')
    if done.returncode:
        pytest.skip(f'no tmpfs can be mounted here: {done.stderr.strip()}')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def test_a_full_disk(tmp_path):
    disk = tmp_path / 'disk'

    def fill():
        # The logs still fit, a checkpoint does not.
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / 'filler').write_bytes(bytes(free - 30_000))

    with small_disk(disk, '1m'):
        folder = disk / 'run'
        options = dict(max_keep_ckpts=1, save_best='score', rule='greater')
        full = build(folder, at=(('train', EPOCH), fill), **options)
        with pytest.raises(CheckpointWriteError) as error:
            full.train()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        said = str(error.value)
        assert 'epoch_2.pth cannot be written: No space left on device' in said
        assert said.endswith(f'which resuming goes on from, is {folder}/epoch_1.pth')
        assert noted(folder).name == 'epoch_1.pth'
        assert read_checkpoint(noted(folder))['meta']['epoch'] == 1
        assert not list(folder.glob('.*')), 'a part was left'
        # Once there is room it goes on, and ends as it would have.
        (disk / 'filler').unlink()
        resumed = build(folder, resume=True, **options)
        resumed.train()
        straight = build(tmp_path / 'straight', **options)
        straight.train()
        check_same_end(straight, resumed)


def test_no_room_for_the_best(tmp_path, monkeypatch):
    real = WholeFileBackend.put

    def full(self, content, path):
        if 'best_' in str(path):
            raise OSError(errno.ENOSPC, f'{path} cannot be written')
        real(self, content, path)

    monkeypatch.setattr(WholeFileBackend, 'put', full)
    folder = tmp_path / 'a'
    with pytest.raises(CheckpointWriteError) as error:
        build(folder, save_best='score', rule='greater').train()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert 'best_score_epoch_1.pth cannot be written' in str(error.value)
    assert str(error.value).endswith(f'goes on from, is {folder}/epoch_1.pth')


def test_parts_of_killed_runs_are_cleared_away(tmp_path):
    folder = tmp_path / 'a'
    folder.mkdir()
    stale, living = folder / '.epoch_7.pth.part', folder / '.epoch_8.pth.part'
    stale.write_bytes(b'half')
    fcntl = pytest.importorskip('fcntl')
    with living.open('wb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        build(folder, epochs=1).train()
        assert not stale.exists() and living.exists()


def test_an_unknown_argument_is_told_at_once():
    with pytest.raises(TypeError, match='unknown arguments: max_keep_ckpt$'):
        AtomicCheckpointHook(max_keep_ckpt=2)


def test_a_handler_of_others_stays(tmp_path):
    other = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        build(tmp_path / 'a', epochs=1).train()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, other)


def rest(running):
    running.set()
    time.sleep(60)


def test_a_training_after_one_that_failed(tmp_path):
    with pytest.raises(Killed):
        build(tmp_path / 'failed', at=(('train', 1), kill)).train()
    stopped(build(tmp_path / 'a', at=(('train', 1), terminate)))


def test_forked_processes_still_end(tmp_path):
    """A pool that was made during training is ended by SIGTERM, by its parent."""
    ended = []

    def pool():
        context = multiprocessing.get_context('fork')
        running = context.Event()
        process = context.Process(target=rest, args=(running,), daemon=True)
        process.start()
        assert running.wait(20)
        process.terminate()
        process.join(20)
        ended.append(process.exitcode)
        process.kill()

    build(tmp_path / 'a', epochs=1, at=(('train', 2), pool)).train()
    assert ended == [-signal.SIGTERM]
