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
        hooks = dict(checkpoint=hook)
        self.config = Config(dict(work_dir=str(path), default_hooks=hooks))
        self._time = 1_600_000_000

    def _written(self, path):
        self._time += 10
        os.utime(path, (self._time, self._time))

    def save(self, name, torn=False):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {'state_dict': {'weight': torch.ones(1000)}, 'name': path.name}
        torch.save(saved, path)
        if torn:
            os.truncate(path, path.stat().st_size // 2)
        self._written(path)

    def note(self, text):
        self.path.mkdir(exist_ok=True)
        (self.path / 'last_checkpoint').write_text(str(text))
        self._written(self.path / 'last_checkpoint')

    def find(self):
        found = find_whole_checkpoint(self.config)
        return found if found is None else Path(found).name


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / 'run')


def test_nothing_yet(folder, capsys):
    assert folder.find() is None
    folder.path.mkdir()
    (folder.path / 'best_mIoU_epoch_1.pth').touch()
    assert folder.find() is None
    assert capsys.readouterr().out == ''


# What is written, in this order: NAME is saved (NAME~: torn), NAME* is noted as the
# last one too, @TEXT is noted alone. =NAME is what must be found then.
@pytest.mark.parametrize(
    'story',
    [
        'epoch_9.pth* epoch_10.pth* =epoch_10.pth interrupted.pth* =interrupted.pth',
        # Killed before the note.
        'epoch_1.pth =epoch_1.pth epoch_1.pth* epoch_2.pth =epoch_2.pth',
        # As mmengine's own hook leaves it: torn and not noted yet.
        'epoch_1.pth* epoch_2.pth* epoch_3.pth~ =epoch_2.pth',
        # Torn and noted, as after a power failure.
        'iter_100.pth* iter_200.pth~* =iter_100.pth',
        'epoch_1.pth~ =None',
        # A note that is torn or leads nowhere.
        'epoch_1.pth* epoch_2.pth @ =epoch_2.pth',
        'epoch_1.pth* epoch_2.pth @run/epoch_ =epoch_2.pth',
        'epoch_1.pth* epoch_2.pth @somewhere/else/epoch_7.pth =epoch_2.pth',
        # An earlier training in the folder is not gone on with.
        'epoch_12.pth* epoch_1.pth* =epoch_1.pth epoch_2.pth~* =epoch_1.pth',
        # The folder was moved.
        'epoch_1.pth* @where/it/was/once/epoch_1.pth =epoch_1.pth',
        # Copying changes the times: the note may seem to be the oldest.
        'epoch_1.pth* epoch_2.pth* epoch_1.pth =epoch_2.pth',
        # Other storage is taken by its word.
        '@s3://bucket/run/epoch_3.pth =epoch_3.pth',
    ],
)
def test_the_latest_whole_one_is_found(folder, story, capsys):
    for step in story.split():
        name = step.strip('*~=@')
        if step.startswith('@'):
            folder.note(name)
        elif step.startswith('='):
            assert str(folder.find()) == name, step
        else:
            folder.save(name, torn='~' in step)
            if step.endswith('*'):
                folder.note(folder.path / name)
    out = capsys.readouterr().out
    for torn in (step.strip('*~') for step in story.split() if '~' in step):
        assert out.startswith('Passed over: ') and f'{torn} is cut off' in out


def test_an_empty_one_is_named(folder, capsys):
    """As an open file of a full disk is."""
    folder.save('iter_100.pth')
    folder.note(folder.path / 'iter_200.pth')
    (folder.path / 'iter_200.pth').touch()
    assert folder.find() == 'iter_100.pth'
    assert 'iter_200.pth is empty' in capsys.readouterr().out


def test_where_the_hook_says(tmp_path):
    out = tmp_path / 'out'
    folder = Folder(tmp_path / 'run', out_dir=str(out), filename_tmpl='e{}.pt')
    folder.note('nowhere/e1.pt')
    folder.save(out / 'run' / 'e1.pt')
    folder.save(out / 'run' / 'e2.pt', torn=True)
    assert folder.find() == 'e1.pt'


class Evil:
    def __reduce__(self):
        return os.system, ('touch ran',)


def test_one_that_cannot_be_read_or_is_unsafe_ends_it(folder, monkeypatch, tmp_path):
    """It may be whole: no earlier one is gone on from in its place."""

    def fail(*_):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.chdir(tmp_path)
    folder.save('epoch_1.pth')
    folder.save('epoch_2.pth')
    folder.note(folder.path / 'epoch_2.pth')
    with monkeypatch.context() as patch:
        patch.setattr('mmlit_tools.resume.read_checkpoint', fail)
        with pytest.raises(UserError, match='epoch_2.pth cannot be read now: .* error'):
            folder.find()
    torch.save({'state_dict': {}, 'x': Evil()}, folder.path / 'epoch_2.pth')
    with pytest.raises(UnsafeCheckpointError, match='is refused'):
        folder.find()
    assert not Path('ran').exists()
