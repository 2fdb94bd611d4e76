"""`train.py --resume` takes the latest whole checkpoint."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlit.errors import UnsafeCheckpointError, UserError
from mmlit_tools.resume import find_whole_checkpoint


class Folder:
    """A work folder whose files get later and later."""

    def __init__(self, path, **hook):
        self.path = path
        self.config = Config(
            dict(work_dir=str(path), default_hooks=dict(checkpoint=hook))
        )
        self._time = 1_600_000_000

    def _written(self, path):
        self._time += 10
        os.utime(path, (self._time, self._time))

    def save(self, name, torn=False):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {'state_dict': {'weight': torch.ones(1000)}, 'name': path.name}, path
        )
        if torn:
            os.truncate(path, path.stat().st_size // 2)
        self._written(path)

    def note(self, text):
        self.path.mkdir(exist_ok=True)
        (self.path / 'last_checkpoint').write_text(str(text))
        self._written(self.path / 'last_checkpoint')

    def both(self, name, torn=False):
        self.save(name, torn)
        self.note(self.path / name)


def find(folder):
    found = find_whole_checkpoint(folder.config)
    return found if found is None else Path(found).name


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / 'run')


def test_nothing_yet(folder, capsys):
    assert find(folder) is None
    folder.path.mkdir()
    (folder.path / 'best_mIoU_epoch_1.pth').touch()
    assert find(folder) is None
    assert capsys.readouterr().out == ''


def test_the_noted_one(folder):
    folder.both('epoch_9.pth')
    folder.both('epoch_10.pth')
    assert find(folder) == 'epoch_10.pth'
    folder.both('interrupted.pth')
    assert find(folder) == 'interrupted.pth'


def test_a_kill_before_the_note(folder):
    folder.save('epoch_1.pth')
    assert find(folder) == 'epoch_1.pth'
    folder.note(folder.path / 'epoch_1.pth')
    folder.save('epoch_2.pth')
    assert find(folder) == 'epoch_2.pth'


def test_a_torn_one_is_passed_over_and_named(folder, capsys):
    """As mmengine's own hook leaves it: torn and not noted yet."""
    folder.both('epoch_1.pth')
    folder.both('epoch_2.pth')
    folder.save('epoch_3.pth', torn=True)
    assert find(folder) == 'epoch_2.pth'
    out = capsys.readouterr().out
    assert out.startswith('Passed over: ') and 'epoch_3.pth is cut off' in out


def test_a_torn_one_that_is_noted(folder, capsys):
    """As after a power failure; and empty, as an open file of a full disk is."""
    folder.both('iter_100.pth')
    folder.both('iter_200.pth', torn=True)
    assert find(folder) == 'iter_100.pth'
    (folder.path / 'iter_200.pth').write_bytes(b'')
    assert find(folder) == 'iter_100.pth'
    assert 'iter_200.pth is empty' in capsys.readouterr().out


@pytest.mark.parametrize('note', ['', 'run/epoch_', 'somewhere/else/epoch_7.pth'])
def test_a_note_that_is_torn_or_leads_nowhere(folder, note):
    folder.both('epoch_1.pth')
    folder.save('epoch_2.pth')
    folder.note(note)
    assert find(folder) == 'epoch_2.pth'


def test_only_torn_ones(folder, capsys):
    folder.save('epoch_1.pth', torn=True)
    assert find(folder) is None
    assert 'epoch_1.pth is cut off' in capsys.readouterr().out


def test_an_earlier_training_in_the_folder_is_not_gone_on_with(folder):
    folder.both('epoch_12.pth')
    folder.both('epoch_1.pth')
    assert find(folder) == 'epoch_1.pth'
    folder.both('epoch_2.pth', torn=True)
    assert find(folder) == 'epoch_1.pth'


def test_a_folder_that_was_moved_or_copied(folder):
    folder.both('epoch_1.pth')
    folder.note('where/it/was/once/epoch_1.pth')
    assert find(folder) == 'epoch_1.pth'
    # Copying changes the times: the note may seem to be the oldest.
    folder.both('epoch_2.pth')
    folder.save('epoch_1.pth')
    assert find(folder) == 'epoch_2.pth'


def test_where_the_hook_says(tmp_path):
    folder = Folder(
        tmp_path / 'run', out_dir=str(tmp_path / 'out'), filename_tmpl='e{}.pt'
    )
    folder.note('nowhere/e1.pt')
    folder.save(tmp_path / 'out' / 'run' / 'e1.pt')
    folder.save(tmp_path / 'out' / 'run' / 'e2.pt', torn=True)
    assert find(folder) == 'e1.pt'


def test_other_storage_is_taken_by_its_word(folder):
    folder.note('s3://bucket/run/epoch_3.pth')
    assert find(folder) == 'epoch_3.pth'


class Evil:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_one_that_the_disk_fails_on_ends_it(folder, monkeypatch):
    """It may be whole: no earlier one is gone on from in its place."""

    def fail(*_):
        raise OSError(errno.EIO, 'Input/output error')

    folder.both('epoch_1.pth')
    folder.both('epoch_2.pth')
    monkeypatch.setattr('mmlit_tools.resume.read_checkpoint', fail)
    with pytest.raises(UserError, match='epoch_2.pth cannot be read now: .* error'):
        find(folder)


def test_an_unsafe_one_ends_it(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder.both('epoch_1.pth')
    torch.save({'state_dict': {}, 'x': Evil()}, folder.path / 'epoch_1.pth')
    with pytest.raises(UnsafeCheckpointError, match='is refused'):
        find(folder)
    assert not Path('ran').exists()
