"""test.py: messages, and the config that reaches the Runner."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmlit.errors import BrokenCheckpointError
from mmlit_tools import test as tool
from mmlit_tools.configs import build_runner
from support.official_files import ABSOLUTE_MICRO
from support.running_tools import stopped

CONFIG = """
default_scope = {scope!r}
default_hooks = dict(visualization=dict(type='VisualizationHook'))
visualizer = dict(type='Visualizer')
test_evaluator = dict(type='Metric')
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run test.py on a config and a.pth; return the config of its Runner."""

    class Recorder:
        def __init__(self, config):
            configs.append(config)

        def test(self):
            pass

    configs = []
    monkeypatch.setattr(tool, 'build_runner', Recorder)
    monkeypatch.chdir(tmp_path)
    Path('a.pth').touch()

    def run(*arguments, scope='mmengine', checkpoint='a.pth'):
        Path('config.py').write_text(CONFIG.format(scope=scope))
        tool.main(['config.py', checkpoint, *arguments])
        return configs.pop()

    return run


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ('no.pth', 'checkpoint no.pth does not exist'),
        ('a.pth --out a.json', 'got a.json'),
        (
            'a.pth --show-dir d --cfg-options default_hooks.visualization=None',
            'default_hooks.visualization',
        ),
    ],
)
def test_refusals(run, arguments, said):
    run()
    message = stopped(tool.main, 'config.py', *arguments.split())
    assert message.startswith('test.py: ') and said in message


def test_the_checkpoint_is_loaded_and_not_resumed(run):
    config = run(checkpoint='https://example.org/a.pth')
    assert (config.load_from, config.resume) == ('https://example.org/a.pth', False)


def test_a_broken_checkpoint_is_named(tmp_path):
    path = tmp_path / 'a.pth'
    path.touch()
    model = dict(type='LIT', arch=ABSOLUTE_MICRO)
    options = dict(work_dir=str(tmp_path), load_from=str(path), launcher='none')
    runner = build_runner(Config(dict(model=model, **options)))
    with pytest.raises(BrokenCheckpointError, match='a.pth is empty'):
        runner.load_or_resume()


def test_out(run):
    for scope, kind in (('mmdet', 'DumpDetResults'), ('mmengine', 'DumpResults')):
        dump = dict(type=kind, out_file_path='a.pkl')
        config = run('--out', 'a.pkl', scope=scope)
        assert config.test_evaluator == [dict(type='Metric'), dump]
    config = run('--out', 'maps', scope='mmseg')
    assert config.test_evaluator == dict(type='Metric', output_dir='maps')


@pytest.mark.parametrize(
    ('scope', 'options', 'hook', 'save_dir'),
    [
        ('mmdet', '--show-dir d', dict(test_out_dir='d'), None),
        ('mmseg', '--show-dir d', dict(interval=1), 'd'),
        ('mmdet', '--show --wait-time 3', dict(show=True, wait_time=3), None),
    ],
)
def test_pictures(run, scope, options, hook, save_dir):
    config = run(*options.split(), scope=scope)
    expected = dict(type='VisualizationHook', draw=True, **hook)
    assert dict(config.default_hooks.visualization) == expected
    assert config.visualizer.get('save_dir') == save_dir
