"""Files are written whole or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKPOINTS = Path(__file__).resolve().parents[2] / 'mmlit/checkpoints'

# Writes 10 MB in steps of 4; the lines in the place of ... see what is there by then.
WRITE = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(CHECKPOINTS)!r})
import atomic as whole_file
def step(written):
    ...
whole_file.write_whole(
    pathlib.Path('new.pth'), memoryview(bytes(10_000_000)), True, step)
"""


def write(folder, step='pass', **options):
    command = [sys.executable, '-c', WRITE.replace('...', step)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize('before', [None, b'what was there before'])
def test_a_kill_in_the_middle_leaves_the_file_as_it_was(tmp_path, before):
    file, part = tmp_path / 'new.pth', tmp_path / '.new.pth.part'
    if before:
        file.write_bytes(before)
    done = write(tmp_path, 'os.kill(os.getpid(), signal.SIGKILL)')
    assert done.returncode == -signal.SIGKILL
    assert 0 < part.stat().st_size < 10_000_000, 'it was not killed in the middle'
    assert (file.read_bytes() if file.exists() else None) == before
    # The next one is not disturbed by what was left, and clears it away.
    done = write(tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == bytes(10_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ['new.pth']


def test_two_at_once_do_not_mix(tmp_path):
    again = "import subprocess; print(subprocess.run([sys.executable, '-c', {}], "
    again += 'capture_output=True, text=True).stderr, flush=True)'
    done = write(tmp_path, again.format(repr(WRITE.replace('...', 'pass'))))
    assert 'another process is writing .new.pth.part' in done.stdout
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'new.pth').read_bytes() == bytes(10_000_000)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    step = "pathlib.Path('new.pth').write_text('other')"
    replacing = write(tmp_path, step)
    assert replacing.returncode == 0
    (tmp_path / 'new.pth').unlink()
    code = WRITE.replace('...', step).replace(', True, step', ', False, step')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert 'new.pth has appeared meanwhile' in done.stderr
    assert (tmp_path / 'new.pth').read_text() == 'other'
    assert [path.name for path in tmp_path.iterdir()] == ['new.pth']
