"""Options, messages and config changes of the tools; test_end_to_end.py runs them."""

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
TOOLS, PARTS = ROOT / 'tools', ROOT / 'mmlit_tools'
CONFIG = """
default_scope = 'mmengine'
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
test_evaluator = dict(type='CocoMetric')
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Loads a tool as a module (`test` is also a module of Python), far from home."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG)

    def load(name):
        module = importlib.import_module(f'mmlit_tools.{Path(name).stem}')

        def main(*arguments):
            monkeypatch.setattr(sys, 'argv', [name, *arguments])
            module.main()

        module.run = main
        module.runners = []
        monkeypatch.setattr(module, 'build_runner', lambda c: Recorder(module, c))
        return module

    return load


class Recorder:
    """In the place of mmengine's Runner: keeps the config it was to be built from."""

    def __init__(self, module, config):
        module.runners.append(config)

    def train(self):
        pass

    def test(self):
        pass


def stopped(capsys, module, *arguments):
    """The one line with which a tool stops; nothing may have been built."""
    with pytest.raises(SystemExit) as stop:
        module.run(*arguments)
    assert module.runners == []
    assert isinstance(stop.value.code, str), capsys.readouterr().err
    assert '\n' not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(('name', 'lacking'), [('train', set()), ('test', {'--tta'})])
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_options_are_those_of(package, name, lacking):
    theirs = Path(pytest.importorskip(package).__file__).parent / '.mim' / 'tools'
    ours = options_in(PARTS / f'{name}.py') | options_in(PARTS / 'configs.py')
    assert options_in(theirs / f'{name}.py') - ours == lacking


def options_in(path):
    """The options that a tool's source adds to its parser."""
    added = re.findall(r'add_argument\(([^)]+)', path.read_text())
    return {name for text in added for name in re.findall(r"'(--[\w-]+)'", text)}


def test_the_option_that_test_py_lacks_is_said():
    for path in ('README.md', 'docs/get_started.md', 'tools/test.py'):
        text = ' '.join((TOOLS.parent / path).read_text().split())
        assert 'all but `--tta`' in text, path


# --- messages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ("_base_ = 'none.py'", 'none.py'),
        ('model = dict(', 'SyntaxError'),
        (None, 'Only py/yml/yaml/json type are supported'),
    ],
)
def test_a_config_that_is_none(tool, capsys, text, said):
    name = 'picture.png' if text is None else 'broken.py'
    Path(name).write_text(text or '')
    message = stopped(capsys, tool('train.py'), name)
    assert message.startswith(f'train.py: config {name}: ') and said in message


def test_settings_that_are_none(tool, capsys):
    train = tool('train.py')
    with pytest.raises(SystemExit):
        train.run('config.py', '--cfg-options', 'max_epochs')
    assert "--cfg-options: 'max_epochs' is not KEY=VALUE" in capsys.readouterr().err
    Path('list.py').write_text('steps = [1]')
    message = stopped(capsys, train, 'list.py', '--cfg-options', 'steps.7=1')
    assert message.startswith('train.py: --cfg-options steps.7=1: KeyError: ')


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_a_missing_config_is_named(tool, capsys, name):
    rest = [] if name == 'train.py' else ['epoch_1.pth']
    Path('epoch_1.pth').touch()
    message = stopped(capsys, tool(name), 'no such.py', *rest)
    assert message.startswith(f'{name}: config no such.py does not exist')


def test_a_missing_checkpoint_is_named(tool, capsys):
    message = stopped(capsys, tool('test.py'), 'config.py', 'no.pth')
    assert message.startswith('test.py: checkpoint no.pth does not exist')
    message = stopped(capsys, tool('train.py'), 'config.py', '--resume', 'no.pth')
    assert 'resume from, no.pth does not exist' in message


def test_a_missing_checkpoint_of_the_config_is_named(tool, capsys):
    load = ('--cfg-options', 'load_from=no.pth')
    message = stopped(capsys, tool('train.py'), 'config.py', *load)
    assert 'load_from of the config, no.pth does not exist' in message


def test_an_address_is_no_missing_file(tool):
    load = ('--cfg-options', 'load_from=https://example.org/a.pth')
    assert built(tool('train.py'), 'config.py', *load).load_from == load[1][10:]
    test = tool('test.py')
    test.run('config.py', 'https://example.org/a.pth')
    assert test.runners[0].load_from == 'https://example.org/a.pth'


def test_a_missing_package_is_named(tool, capsys, monkeypatch):
    train = tool('train.py')
    find = importlib.util.find_spec
    monkeypatch.setattr(
        sys.modules['common'],
        'find_spec',
        lambda name: None if name == 'mmseg' else find(name),
    )
    message = stopped(
        *(capsys, train, 'config.py', '--cfg-options', 'default_scope=mmseg')
    )
    assert 'mmseg' in message
    assert 'pip install "mmlit[seg]"' in message


def test_amp_beside_another_wrapper(tool, capsys):
    other = ('--cfg-options', 'optim_wrapper.type=MyWrapper')
    message = stopped(capsys, tool('train.py'), 'config.py', '--amp', *other)
    assert 'MyWrapper' in message


def test_auto_scale_lr_without_a_base(tool, capsys):
    message = stopped(capsys, tool('train.py'), 'config.py', '--auto-scale-lr')
    assert 'base_batch_size' in message


def test_out_is_a_pickle_in_detection(tool, capsys):
    Path('a.pth').touch()
    message = stopped(capsys, tool('test.py'), 'config.py', 'a.pth', '--out', 'a.json')
    assert 'got a.json' in message


def test_show_dir_without_a_hook(tool, capsys):
    Path('a.pth').touch()
    no_hook = ('--cfg-options', 'default_hooks.visualization=None')
    message = stopped(
        *(capsys, tool('test.py'), 'config.py', 'a.pth', '--show-dir', 'd', *no_hook)
    )
    assert 'default_hooks.visualization' in message


def test_other_data_in_the_way(tool, capsys):
    options = ['--cfg-options', f'shapes.out={os.getcwd()}/s', 'shapes.size=1']
    message = stopped(capsys, tool('train.py'), 'config.py', *options)
    assert 'size must be' in message


def test_check_data_is_for_one_process(tool, capsys):
    options = ['--check-data', '--launcher', 'pytorch']
    message = stopped(capsys, tool('train.py'), 'config.py', *options)
    assert 'tools/check_data.py CONFIG' in message


# --- what reaches the runner ------------------------------------------------------


def built(module, *arguments):
    module.run(*arguments)
    (config,) = module.runners
    return config


def test_train_defaults(tool):
    config = built(tool('train.py'), 'config.py')
    assert config.work_dir == os.path.join('work_dirs', 'config')
    assert config.launcher == 'none'
    assert config.get('resume') is None
    assert config.optim_wrapper.type == 'OptimWrapper'


def test_work_dir_comes_from_the_command_line_then_the_config(tool):
    config = ('config.py', '--cfg-options', 'work_dir=theirs')
    assert built(tool('train.py'), *config).work_dir == 'theirs'
    assert built(tool('train.py'), *config, '--work-dir', 'mine').work_dir == 'mine'


def test_resume(tool, capsys):
    Path('pretrained.pth').touch()
    load = ('--cfg-options', 'load_from=pretrained.pth')
    # Nothing there yet: mmengine would train from scratch, without load_from.
    config = built(tool('train.py'), 'config.py', '--resume', *load)
    assert (config.get('resume'), config.load_from) == (None, 'pretrained.pth')
    assert 'No checkpoint to resume in work_dirs/config' in capsys.readouterr().out
    Path('work_dirs/config').mkdir(parents=True)
    last = 'work_dirs/config/epoch_1.pth'
    torch.save({'state_dict': {}}, last)
    Path('work_dirs/config/last_checkpoint').write_text(last)
    config = built(tool('train.py'), 'config.py', '--resume', *load)
    assert (config.resume, config.load_from) == (True, last)
    Path('a.pth').touch()
    config = built(tool('train.py'), 'config.py', '--resume', 'a.pth', *load)
    assert (config.resume, config.load_from) == (True, 'a.pth')
    config = built(tool('train.py'), 'config.py', *load)
    assert (config.get('resume'), config.load_from) == (None, 'pretrained.pth')


def test_amp(tool, monkeypatch):
    train = tool('train.py')
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    wrapper = built(train, 'config.py', '--amp').optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert wrapper.optimizer.lr == 0.1
    theirs = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.loss_scale=512.']
    arguments = ('config.py', '--amp', '--cfg-options', *theirs)
    train.runners.clear()
    wrapper = built(train, *arguments).optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 512.0)


@pytest.mark.parametrize('asked', [(), ('--amp',)])
def test_amp_on_the_cpu(tool, monkeypatch, capsys, asked):
    """Also for a config that names mmengine's wrapper, which would refuse."""
    theirs = ['optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=float16']
    theirs = ['--cfg-options', *theirs, 'optim_wrapper.loss_scale=512.']
    for options in (theirs, theirs if not asked else ()):
        config = built(tool('train.py'), 'config.py', *asked, *options)
        assert config.optim_wrapper.type == 'CpuAmpOptimWrapper'
        assert set(config.optim_wrapper) == {'type', 'optimizer'}
    assert 'bfloat16' in capsys.readouterr().out
    plain = built(tool('train.py'), 'config.py').optim_wrapper
    assert plain.get('type', 'OptimWrapper') == 'OptimWrapper'


def test_auto_scale_lr(tool):
    base = ('--cfg-options', 'auto_scale_lr.base_batch_size=16')
    config = built(tool('train.py'), 'config.py', '--auto-scale-lr', *base)
    assert config.auto_scale_lr == dict(base_batch_size=16, enable=True)


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_launcher_and_local_rank(tool, monkeypatch, spelling):
    monkeypatch.delenv('LOCAL_RANK')
    arguments = ('config.py', '--launcher', 'pytorch', spelling, '3')
    assert built(tool('train.py'), *arguments).launcher == 'pytorch'
    assert os.environ.pop('LOCAL_RANK') == '3'


@pytest.mark.parametrize(
    ('scope', 'kind'), [('mmdet', 'DumpDetResults'), ('mmengine', 'DumpResults')]
)
def test_out_in_detection(tool, scope, kind):
    test = tool('test.py')
    config = Config(dict(default_scope=scope, test_evaluator=dict(type='CocoMetric')))
    test.write_predictions(config, 'a.pkl')
    dump = dict(type=kind, out_file_path='a.pkl')
    assert config.test_evaluator == [dict(type='CocoMetric'), dump]


def test_out_in_segmentation(tool):
    config = Config(dict(default_scope='mmseg', test_evaluator=dict(type='IoUMetric')))
    tool('test.py').write_predictions(config, 'maps')
    assert config.test_evaluator == dict(type='IoUMetric', output_dir='maps')


def visualization(tool, scope, **options):
    options = {'show': False, 'show_dir': None, 'wait_time': 2, **options}
    config = Config(
        dict(
            default_scope=scope,
            default_hooks=dict(visualization=dict(type='VisualizationHook')),
            visualizer=dict(type='Visualizer'),
        )
    )
    tool('test.py').draw_predictions(config, argparse.Namespace(**options))
    hook = dict(config.default_hooks.visualization)
    assert hook.pop('type') == 'VisualizationHook'
    return hook, config.visualizer.get('save_dir')


def test_show_dir(tool):
    hook, save_dir = visualization(tool, 'mmdet', show_dir='d')
    assert (hook, save_dir) == (dict(draw=True, test_out_dir='d'), None)
    hook, save_dir = visualization(tool, 'mmseg', show_dir='d')
    assert (hook, save_dir) == (dict(draw=True, interval=1), 'd')


def test_show(tool):
    hook, save_dir = visualization(tool, 'mmdet', show=True, wait_time=3)
    assert (hook, save_dir) == (dict(draw=True, show=True, wait_time=3), None)
