"""train.py: messages, and the config that reaches the Runner."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmlit_tools import train
from support.running_tools import stopped

CONFIG = """
default_scope = 'mmengine'
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture(autouse=True)
def built(monkeypatch, tmp_path):
    """Record the configs that Runners would be built from; write config.py."""

    class Recorder:
        def __init__(self, config):
            configs.append(config)

        def train(self):
            pass

    configs = []
    monkeypatch.setattr(train, 'build_runner', Recorder)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    return configs


@pytest.fixture
def run(built):
    """Run train.py on config.py; return the config of its Runner."""

    def run(*arguments):
        train.main(['config.py', *arguments])
        return built.pop()

    return run


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ('--resume no.pth', 'the checkpoint to resume from, no.pth does not exist'),
        ('--cfg-options load_from=no.pth', 'load_from of the config, no.pth does not'),
        ('--amp --cfg-options optim_wrapper.type=MyWrapper', 'MyWrapper'),
        ('--auto-scale-lr', 'base_batch_size'),
        ('--cfg-options shapes.out=s shapes.size=1', 'size must be'),
        ('--check-data --launcher pytorch', 'tools/check_data.py CONFIG'),
    ],
)
def test_refusals(built, options, said):
    message = stopped(train.main, 'config.py', *options.split())
    assert message.startswith('train.py: ') and said in message
    assert built == []


def test_the_config_of_a_run(run):
    config = run()
    assert config.work_dir == os.path.join('work_dirs', 'config')
    assert (config.launcher, config.get('resume')) == ('none', None)
    assert config.optim_wrapper.type == 'OptimWrapper'
    # The folder comes from the command line, then the config.
    theirs = ('--cfg-options', 'work_dir=theirs')
    assert run(*theirs).work_dir == 'theirs'
    assert run(*theirs, '--work-dir', 'mine').work_dir == 'mine'
    # An address is not looked for.
    address = 'https://example.org/a.pth'
    assert run('--cfg-options', f'load_from={address}').load_from == address
    config = run('--auto-scale-lr', '--cfg-options', 'auto_scale_lr.base_batch_size=16')
    assert config.auto_scale_lr == dict(base_batch_size=16, enable=True)


def test_resume(run, capsys):
    Path('pretrained.pth').touch()

    def resumed(*options):
        config = run(*options, '--cfg-options', 'load_from=pretrained.pth')
        return config.get('resume'), config.load_from

    # Nothing there yet: mmengine would train from scratch, without load_from.
    assert resumed('--resume') == (None, 'pretrained.pth')
    assert 'No checkpoint to resume in work_dirs/config' in capsys.readouterr().out
    Path('work_dirs/config').mkdir(parents=True)
    last = 'work_dirs/config/epoch_1.pth'
    torch.save({'state_dict': {}}, last)
    Path('work_dirs/config/last_checkpoint').write_text(last)
    assert resumed('--resume') == (True, last)
    Path('a.pth').touch()
    assert resumed('--resume', 'a.pth') == (True, 'a.pth')
    assert resumed() == (None, 'pretrained.pth')


def test_amp(run, monkeypatch):
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    wrapper = run('--amp').optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert wrapper.optimizer.lr == 0.1
    theirs = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.loss_scale=512.']
    wrapper = run('--amp', '--cfg-options', *theirs).optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 512.0)


@pytest.mark.parametrize('asked', [(), ('--amp',)])
def test_amp_on_the_cpu(run, monkeypatch, capsys, asked):
    """Also for a config that names mmengine's wrapper, which would refuse."""
    monkeypatch.setattr(train, 'get_device', lambda: 'cpu')
    theirs = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=float16']
    theirs = ['--cfg-options', *theirs, 'optim_wrapper.loss_scale=512.']
    for options in (theirs, theirs if not asked else ()):
        config = run(*asked, *options)
        assert config.optim_wrapper.type == 'CpuAmpOptimWrapper'
        assert set(config.optim_wrapper) == {'type', 'optimizer'}
    assert 'bfloat16' in capsys.readouterr().out


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_launcher_and_local_rank(run, monkeypatch, spelling):
    monkeypatch.delenv('LOCAL_RANK')
    assert run('--launcher', 'pytorch', spelling, '3').launcher == 'pytorch'
    assert os.environ.pop('LOCAL_RANK') == '3'


def test_check_val_loads_the_validation_samples(built, monkeypatch):
    monkeypatch.setitem(DATASETS.module_dict, 'BaseDataset', BaseDataset)
    list_of_one = json.dumps(dict(metainfo={}, data_list=[dict(img_path='a.jpg')]))
    Path('list.json').write_text(list_of_one)
    data = dict(type='BaseDataset', ann_file='list.json')
    data.update(data_prefix=dict(img_path='images'))
    data.update(pipeline=[dict(type='LoadImageFromFile')])
    train_data = dict(data, ann_file='none.json')
    Path('config.py').write_text(
        f'{CONFIG}\nval_dataloader = dict(dataset={data})\n'
        f'train_dataloader = dict(dataset={train_data})\n'
    )
    assert 'errors in the data' in stopped(train.main, 'config.py', '--check-val')
    assert built == []
    Path('images').mkdir()
    cv2.imwrite('images/a.jpg', np.zeros((8, 8, 3), np.uint8))
    train.main(['config.py', '--check-val'])
    assert len(built) == 1
    assert 'errors in the data' in stopped(train.main, 'config.py', '--check-data')
