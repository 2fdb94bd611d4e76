"""What commands share: one-line errors, reading configs, options of mmdet and mmseg."""

import importlib.util
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlit.errors import BrokenSampleError, UserError
from mmlit_tools import configs, paths, test, train
from mmlit_tools.cli import check_out_file, command
from support.running_tools import stopped

ROOT = Path(__file__).resolve().parents[2]


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise BrokenSampleError('a.jpg is broken')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_user_error_ends_a_command_in_one_line(workers):
    @command('my.py')
    def main(arguments):
        list(torch.utils.data.DataLoader(Broken(), num_workers=workers))

    assert stopped(main) == 'my.py: a.jpg is broken'


@pytest.mark.parametrize(('tool', 'lacking'), [(train, set()), (test, {'--tta'})])
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_options_are_those_of(package, tool, lacking, capsys):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f'{package} is not installed')
    with pytest.raises(SystemExit):
        tool.main(['--help'])
    said = capsys.readouterr().out
    name = re.match(r'usage: (\w+\.py) ', said)[1]
    theirs = (Path(spec.origin).parent / '.mim' / 'tools' / name).read_text()
    added = ' '.join(re.findall(r'add_argument\(([^)]+)', theirs))
    options = set(re.findall(r"'(--[\w-]+)'", added)) - {'--local_rank', '--local-rank'}
    assert options - set(re.findall(r'--[\w-]+', said)) == lacking


# --- configs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ("_base_ = 'none.py'", 'none.py'),
        ('model = dict(', 'SyntaxError'),
        (None, 'Only py/yml/yaml/json type are supported'),
    ],
)
def test_a_broken_config(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    name = 'picture.png' if text is None else 'broken.py'
    Path(name).write_text(text or '')
    message = stopped(train.main, name)
    assert message.startswith(f'train.py: config {name}: ') and said in message


def test_settings_of_the_command_line(tmp_path, capsys):
    config = tmp_path / 'list.py'
    config.write_text('steps = [1]')
    with pytest.raises(SystemExit):
        train.main([str(config), '--cfg-options', 'max_epochs'])
    assert "--cfg-options: 'max_epochs' is not KEY=VALUE" in capsys.readouterr().err
    message = stopped(train.main, config, '--cfg-options', 'steps.7=1')
    assert message.startswith('train.py: --cfg-options steps.7=1: KeyError: ')


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(configs, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'for mmseg .* pip install "mmlit\[seg\]"'):
        configs.import_scope(Config(dict(default_scope='mmseg')))
    configs.import_scope(Config(dict(default_scope='mmengine')))


def test_the_test_dataset_is_found_inside_of_wrappers():
    inner = dict(type='A', pipeline=[dict(type='Resize')])
    wrapped = dict(type='Repeat', dataset=dict(type='Concat', datasets=[inner]))
    config = Config(dict(val_dataloader=dict(dataset=wrapped)))
    assert configs.test_dataset(config) == inner
    first = dict(dataset=dict(inner, type='B'))
    config = Config(dict(config.to_dict(), test_dataloader=first))
    found = configs.test_dataset(config)
    found.pipeline.clear()
    assert found.type == 'B' and config.test_dataloader.dataset.pipeline
    with pytest.raises(UserError, match='no test_dataloader'):
        configs.test_dataset(Config({}))


def test_a_file_to_write(tmp_path):
    there = tmp_path / 'there.py'
    there.touch()
    (tmp_path / 'folder.py').mkdir()
    for name, said in (
        ('a.json', 'must end in .py, got '),
        ('no/a.py', 'the folder of --out .* does not exist'),
        ('folder.py', 'is a folder'),
        ('there.py', '--force replaces it'),
    ):
        with pytest.raises(UserError, match=said):
            check_out_file(tmp_path / name, '--out', False, '.py')
    check_out_file(there, '--out', True, '.py')
    check_out_file(tmp_path / 'new.py', '--out', False, '.py')


def test_an_installed_package_writes_to_the_current_folder(tmp_path):
    assert paths.ASSETS == paths.OUTPUTS == ROOT
    installed = tmp_path / 'mmlit_tools' / 'paths.py'
    installed.parent.mkdir()
    shutil.copy(paths.__file__, installed)
    found = runpy.run_path(str(installed))
    assert found['OUTPUTS'] == Path()
    assert found['ASSETS'] == ROOT / 'mmlit' / '.mim'
