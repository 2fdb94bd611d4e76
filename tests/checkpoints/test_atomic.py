"""A file is written whole or not at all, whatever happens to its writer."""

import errno
import os
import signal

import pytest

from mmlit.checkpoints.atomic import WholeFileBackend, remove_parts, write_whole

CONTENT = memoryview(bytes(10_000_000))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('before', [None, b'what was there before'])
def test_a_kill_in_the_middle_leaves_the_file_as_it_was(tmp_path, before):
    path = tmp_path / 'new.pth'
    if before:
        path.write_bytes(before)
    process = os.fork()
    if not process:
        write_whole(path, CONTENT, True, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    (part,) = tmp_path.glob(f'.{process}-*.new.pth.part')
    assert 0 < part.stat().st_size < len(CONTENT), 'it was not killed in the middle'
    assert (path.read_bytes() if path.exists() else None) == before
    # The next one is not disturbed by what was left.
    write_whole(path, CONTENT)
    assert path.read_bytes() == CONTENT
    # Nor is one that was left under a name without a process.
    (tmp_path / '.epoch_1.pth.part').touch()
    remove_parts(tmp_path)
    assert names(tmp_path) == ['new.pth']


def test_two_at_once_do_not_mix(tmp_path):
    path = tmp_path / 'new.pth'

    def step(_):
        write_whole(path, memoryview(b'other'))
        remove_parts(tmp_path)  # This process lives: it keeps its file.
        assert path.read_bytes() == b'other'

    write_whole(path, CONTENT, advance=step)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ['new.pth']


def test_what_fails_leaves_the_file_that_is_there(tmp_path):
    path = tmp_path / 'new.pth'
    with pytest.raises(FileExistsError, match='new.pth has appeared meanwhile'):
        write_whole(path, CONTENT, False, lambda _: path.write_text('other'))
    assert path.read_text() == 'other' and names(tmp_path) == ['new.pth']

    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(OSError, match='new.pth cannot be written: No space left'):
        write_whole(path, CONTENT, True, full)
    assert path.read_text() == 'other' and names(tmp_path) == ['new.pth']


def test_who_may_read_a_new_file_is_up_to_the_umask(tmp_path):
    write_whole(tmp_path / 'new.pth', CONTENT)
    (tmp_path / 'usual').touch()
    assert os.stat(tmp_path / 'new.pth').st_mode == os.stat(tmp_path / 'usual').st_mode


def test_the_backend_removes_last(tmp_path):
    backend, old, new = WholeFileBackend(), tmp_path / 'old', tmp_path / 'a' / 'new'
    backend.put(b'1', old)
    with backend.removing_last():
        backend.remove(old)
        backend.put(b'2', new)
        assert old.exists()
    assert not old.exists() and new.read_bytes() == b'2'
    with pytest.raises(ValueError), backend.removing_last():
        backend.remove(new)
        raise ValueError
    assert new.exists()
