"""tools/convert_checkpoint.py never leaves half a file, and says what is wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.official_files import (
    ABSOLUTE_MICRO,
    RELATIVE_MICRO,
    official_file,
    official_state,
)

TOOLS = Path(__file__).resolve().parents[2] / 'tools'

# Writes 10 MB in steps of 4; the lines in the place of ... see what is there by then.
WRITE = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(TOOLS.parent / 'mmlit/checkpoints')!r})
import atomic as whole_file
def step(written):
    ...
whole_file.write_whole(
    pathlib.Path('new.pth'), memoryview(bytes(10_000_000)), True, step)
"""


@pytest.fixture
def convert(monkeypatch, tmp_path, capsys):
    """Runs the tool in an empty folder; returns what it stops with."""
    monkeypatch.chdir(tmp_path)
    from mmlit_tools.convert import command as convert_checkpoint

    def run(*arguments):
        arguments = ['convert_checkpoint.py', *map(str, arguments)]
        monkeypatch.setattr(sys, 'argv', arguments)
        with pytest.raises(SystemExit) as stopped:
            convert_checkpoint.main()
        assert stopped.value.code != 0
        assert not Path('new.pth').exists()
        return f'{stopped.value.code}\n{capsys.readouterr().err}'

    return run


def save_official(name='lit_ti.pth'):
    saved = official_file(official_state(ABSOLUTE_MICRO, 'imagenet'), 'imagenet')
    torch.save(saved, name)
    return saved


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


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """The whole tool, with a limit on file sizes in the place of the disk's."""
    resource = pytest.importorskip('resource')
    monkeypatch.chdir(tmp_path)
    save_official()
    size = Path('lit_ti.pth').stat().st_size
    Path('new.pth').write_text('before')
    command = [sys.executable, str(TOOLS / 'convert_checkpoint.py'), '--force']
    done = subprocess.run(
        [*command, 'lit_ti.pth', 'new.pth'],
        env={**os.environ, 'PYTHONPATH': str(TOOLS.parent)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2,) * 2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    message = 'convert_checkpoint.py: new.pth cannot be written: File too large\n'
    assert done.stderr == message
    assert Path('new.pth').read_text() == 'before'
    assert sorted(os.listdir()) == ['lit_ti.pth', 'new.pth']


def test_wrong_arguments(convert):
    save_official()
    Path('there.pth').write_text('before')
    Path('folder').mkdir()
    for arguments, message in (
        (['lit_ti.pth'], 'DST is missing: the file to write (or give --dry-run)'),
        (['missing.pth', 'new.pth'], 'SRC missing.pth does not exist'),
        (['lit_ti.pth', 'folder'], 'DST folder is a folder; give the file to write'),
        (['lit_ti.pth', 'no/new.pth'], 'the folder of DST no/new.pth does not exist'),
        (['lit_ti.pth', './lit_ti.pth'], 'is SRC itself'),
        (['lit_ti.pth', 'there.pth'], 'DST there.pth exists; --force replaces it'),
        (
            ['lit_ti.pth', 'new.pth', '--img-size', 31],
            'img_size=31 must be at least 32',
        ),
        (
            ['lit_ti.pth', 'new.pth', '--img-size', '1', '2', '3'],
            'img_size=[1, 2, 3] must be an int or a pair (h, w)',
        ),
        (
            ['lit_ti.pth', 'new.pth', '--img-size', 512],
            'lit_ti.pth cannot be converted: --img-size has no effect: there are no '
            'relative position tables',
        ),
        (
            ['lit_ti.pth', 'new.pth', '--to-official'],
            "the state dict is in the authors' absolute layout already",
        ),
    ):
        assert message in convert(*arguments), arguments
    assert Path('there.pth').read_text() == 'before'


class Evil:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_wrong_files(convert):
    state = official_state(ABSOLUTE_MICRO, 'imagenet')
    unknown = {**state, 'block1.0.mlp.fc3.weight': torch.ones(1)}
    ours = {'state_dict': {'stages.0.patch_embed.proj.weight': torch.ones(1)}}
    for saved, message in (
        (
            {'epoch': 3},
            'it holds no weights: neither state_dict nor model is among its',
        ),
        (
            {'model': {'conv1.weight': torch.ones(1)}},
            'no backbone of the authors among',
        ),
        ({'model': unknown}, 'block1.0.mlp.fc3.weight'),
        (ours, "the weights are in mmlit's layout already; --img-size resizes"),
        (
            {'model': state, 'args': Evil()},
            'wrong.pth is refused: it asks for posix.sy',
        ),
        ([1], 'wrong.pth holds a list and no checkpoint'),
    ):
        torch.save(saved, 'wrong.pth')
        said = convert('wrong.pth', 'new.pth')
        assert message in said and said.startswith('convert_checkpoint.py: ')
        assert 'wrong.pth' in said
    assert not Path('ran').exists()
    table = 'layers.2.blocks.0.attn.relative_position_bias_table'
    for value in (None, torch.ones(()), torch.ones(4)):
        state = {**official_state(RELATIVE_MICRO, 'imagenet'), table: value}
        torch.save({'model': state}, 'wrong.pth')
        assert table in convert('wrong.pth', 'new.pth')
        said = convert('--to-official', 'wrong.pth', 'new.pth')
        assert "in the authors' relative layout already" in said
    Path('wrong.pth').write_text('<html>')
    assert 'looks like a web page' in convert('wrong.pth', 'new.pth')
