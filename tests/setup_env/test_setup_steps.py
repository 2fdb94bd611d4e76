"""The set-up's steps: done once, resumed after a failure, redone when inputs change."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / 'tools' / 'setup'))

import setup_env  # noqa: E402
import setup_mim  # noqa: E402
import setup_mmcv  # noqa: E402
import setup_packages  # noqa: E402
import setup_steps  # noqa: E402
import setup_torch  # noqa: E402
from setup_process import SetupError  # noqa: E402

STEPS = 'venv build stack test docs torch mmcv mmlit check mim'.split()


def add_distribution(site, name, version, files=None):
    """Write a distribution as pip leaves it; `files` maps paths to contents."""
    folder = site / f'{name.replace("-", "_")}-{version}.dist-info'
    folder.mkdir(parents=True)
    rows = []
    for path, text in (files or {}).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        rows.append(f'{path},sha256=x,{len(text)}\n')
    (folder / 'RECORD').write_text(''.join(rows) + f'{folder.name}/RECORD,,\n')
    return folder


def note_origin(dist_info, origin):
    """Write where a distribution came from, as pip does."""
    (dist_info / 'direct_url.json').write_text(
        json.dumps({'url': 'file:///', **origin})
    )


class FakeSetup(setup_steps.Setup):
    """The real bookkeeping over actions that only write what pip would leave."""

    def __init__(self, root, stack='openmmlab'):
        super().__init__(root, stack)
        self.device = 'cpu'
        self.done = []
        self.failing = None
        self.steps = {step: lambda step=step: self.act(step) for step in self.steps}

    def act(self, step):
        if step == self.failing:
            raise KeyboardInterrupt
        self.done.append(step)
        if step == 'venv':
            self.python.parent.mkdir(parents=True, exist_ok=True)
            self.python.touch()
        site = setup_mim.site_of(self.mim) if step == 'mim' else self.site
        for name, version in self.pins_of(step).items():
            for folder in site.glob(f'{name.replace("-", "_")}-*.dist-info'):
                shutil.rmtree(folder)
            folder = add_distribution(site, name, version)
            if step == 'mmlit':
                note_origin(folder, {'dir_info': {'editable': True}})

    def pins_of(self, step):
        if step == 'mmlit':
            return {'mmlit': '0.1.0'}
        return {} if step in ('venv', 'check') else self.pins(step)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_mmcv, 'check_compiler', lambda: None)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    shutil.copytree(CHECKOUT / 'requirements', tmp_path / 'requirements')
    for name in ('setup.py', 'pyproject.toml', 'mmlit/version.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    return tmp_path


def run(root, device='cpu', stack='openmmlab'):
    """Run the set-up anew, as another command would, and return the steps done."""
    setup = FakeSetup(root, stack)
    setup.device = device
    setup_env.run(setup)
    return setup.done


def test_a_second_run_does_nothing(root):
    assert run(root) == STEPS
    assert run(root) == []


@pytest.mark.parametrize('step', STEPS)
def test_an_interrupted_run_goes_on_where_it_stopped(root, step):
    setup = FakeSetup(root)
    setup.failing = step
    with pytest.raises(KeyboardInterrupt):
        setup_env.run(setup)
    before = STEPS[: STEPS.index(step)]
    assert setup.done == before
    assert run(root) == STEPS[len(before) :]


@pytest.mark.parametrize(('step', 'name'), [('test', 'pytest'), ('docs', 'sphinx')])
def test_a_changed_pin_redoes_its_step_alone(root, step, name):
    run(root)
    file = root / 'requirements' / f'{step}.txt'
    file.write_text(file.read_text().replace(f'\n{name}==', f'\n{name}==1'))
    assert run(root) == [step, 'check']


def test_mim_is_apart_from_the_rest(root):
    run(root)
    setup = FakeSetup(root)
    installed = setup_packages.find_installed(setup_mim.site_of(setup.mim))
    assert 'setuptools==60.2.0' in installed
    assert 'setuptools==60.2.0' not in setup_packages.find_installed(setup.site)
    shutil.rmtree(setup.mim)
    assert run(root) == ['mim']


def test_a_mim_that_cannot_be_installed_says_that_the_rest_is_there(
    tmp_path, monkeypatch
):
    def fail(pip, *arguments, **options):
        raise SetupError('no network')

    monkeypatch.setattr(setup_packages.Pip, 'install', fail)
    monkeypatch.setattr(setup_mim, 'run_logged', lambda *arguments: 0)
    with pytest.raises(SetupError, match=r'no network\n\.venv itself is complete'):
        setup_mim.make(tmp_path / 'mim', tmp_path, [], {}, tmp_path)


def test_another_torch_redoes_mmcv(root):
    run(root)
    (root / 'requirements' / 'torch.txt').write_text('torch==2.99.0\n')
    assert run(root) == ['torch', 'mmcv', 'check']


def test_another_device_redoes_torch_and_mmcv(root):
    run(root)
    assert run(root, device='cuda') == ['torch', 'mmcv', 'check']


def test_another_python_redoes_everything(root, monkeypatch):
    run(root)
    monkeypatch.setattr(sys, 'version', '3.99.0 (another one)')
    assert run(root) == STEPS


def test_the_stacks_do_not_undo_each_other(root):
    assert run(root) == STEPS
    # mim's environment is that of the first.
    assert run(root, stack='onedl') == [step for step in STEPS if step != 'mim']
    assert run(root) == run(root, stack='onedl') == []
    file = root / 'requirements' / 'onedl' / 'stack.txt'
    file.write_text(file.read_text().replace('imaug==', 'imaug==1'))
    assert run(root) == []
    assert run(root, stack='onedl') == ['stack', 'check']


def test_a_wheel_of_the_other_stack_is_none(root):
    setups = [FakeSetup(root, stack) for stack in setup_steps.STACKS]
    for setup in setups:
        key = setup_mmcv.wheel_key(*setup.mmcv(), '2.13.0+cpu', 'cpu')
        (setup.wheels / key).mkdir(parents=True)
    assert not any(setup.has_wheel() for setup in setups)
    (setup.wheels / key / 'mmcv.whl').touch()
    assert [setup.has_wheel() for setup in setups] == [False, True]


def test_an_unknown_stack_is_refused_before_anything_is_made():
    command = ['make', 'lint', 'STACK=nonesuch']
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "'nonesuch' (choose from 'openmmlab', 'onedl')" in done.stderr
    assert not (CHECKOUT / '.venv-nonesuch').exists()


def test_make_works_in_the_environment_of_the_stack():
    for stack, venv in setup_steps.STACKS.items():
        command = ['make', '-n', 'test', f'STACK={stack}']
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
        assert f'setup_env.py --stack "{stack}"' in done.stdout
        assert f'\n{venv}/bin/python -m pytest' in done.stdout


def test_an_uninstalled_package_is_noticed(root):
    run(root)
    site = FakeSetup(root).site
    shutil.rmtree(next(site.glob('numpy-*.dist-info')))
    assert run(root) == ['stack']


@pytest.mark.parametrize(
    'origin',
    [
        {'archive_info': {}},  # pip install dist/mmlit-*.whl
        {'dir_info': {}},  # pip install .
        None,  # pip install mmlit
    ],
)
def test_an_mmlit_that_is_not_editable_is_replaced(root, origin):
    run(root)
    (folder,) = FakeSetup(root).site.glob('mmlit-*.dist-info')
    (folder / 'direct_url.json').unlink()
    if origin is not None:
        note_origin(folder, origin)
    assert run(root) == ['mmlit']
    assert run(root) == []


def test_a_half_written_stamp_counts_as_none(root):
    run(root)
    (FakeSetup(root).stamps / 'mmlit').write_text('{"key": "abc')
    assert run(root) == ['mmlit']


def test_a_damaged_installation_is_found(tmp_path):
    pins = {'whole': '1.0', 'cut': '1.0', 'local': '2.13.0', 'old': '2.0', 'two': '1.0'}
    add_distribution(tmp_path, 'whole', '1.0', {'whole/a.py': 'text'})
    add_distribution(tmp_path, 'cut', '1.0', {'cut/a.py': 'text'})
    add_distribution(tmp_path, 'local', '2.13.0+cpu', {'local.py': 'text'})
    add_distribution(tmp_path, 'old', '1.0')
    add_distribution(tmp_path, 'two', '1.0')
    add_distribution(tmp_path, 'two', '2.0')
    (tmp_path / 'cut/a.py').write_text('te')
    find = setup_packages.find_missing
    assert find(tmp_path, pins, deep=True) == ['cut==1.0', 'old==2.0', 'two==1.0']
    assert find(tmp_path, pins, deep=False) == ['old==2.0', 'two==1.0']


def test_what_a_killed_pip_leaves_is_removed(tmp_path):
    whole = add_distribution(tmp_path, 'whole', '1.0')
    killed = add_distribution(tmp_path, 'killed', '1.0')
    (killed / 'RECORD').unlink()
    (tmp_path / '~umpy').mkdir()
    setup_packages.remove_debris(tmp_path)
    assert list(tmp_path.iterdir()) == [whole]


def test_a_pin_that_is_no_pin_is_refused(tmp_path):
    file = tmp_path / 'stack.txt'
    file.write_text('numpy>=2.0\n')
    with pytest.raises(SetupError, match='numpy>=2.0'):
        setup_packages.read_pins(file)


def test_pip_check_with_the_expected_line_is_explained(capsys):
    line = 'mmengine 0.10.7 requires opencv-python, which is not installed.'
    setup_steps.explain_check(line, '.venv')
    assert 'opencv-python-headless' in capsys.readouterr().out
    setup_steps.explain_check('No broken requirements found.', '.venv')
    other = 'matplotlib 3.11.2 requires numpy, which is not installed.'
    with pytest.raises(SetupError, match='Delete .venv-onedl and') as failure:
        setup_steps.explain_check(f'{line}\n{other}', '.venv-onedl')
    assert other in str(failure.value)
    assert line not in str(failure.value)


def test_what_imaug_asks_for_in_vain_is_explained(capsys):
    needs = 'imaug 0.4.3 requires imagecorruptions-imaug, which is not installed.'
    older = 'imaug 0.4.3 has requirement opencv-python-headless<4.13, but you have '
    older += 'opencv-python-headless 5.0.0.93.'
    setup_steps.explain_check(f'{needs}\n{older}', '.venv-onedl')
    assert 'onedl-mmdetection imports it' in capsys.readouterr().out
    with pytest.raises(SetupError, match='scipy'):
        setup_steps.explain_check(needs.replace('imagecorruptions-imaug', 'scipy'), '')


class FakePip:
    """Remembers what it was asked to install; succeeds as often as `answers` say."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def try_install(self, what, arguments, total=0):
        self.asked.append(tuple(arguments))
        return self.answers.pop(0)

    def log(self, what):
        return Path('pip.log')


def test_a_cpu_torch_offered_by_pips_own_index_is_taken():
    pip = FakePip(True)
    setup_torch.install_cpu(pip, 'torch==2.13.0')
    assert len(pip.asked) == 1
    assert '--index-url' not in pip.asked[0]


def test_pytorchs_cpu_index_is_asked_second_and_with_little_patience():
    pip = FakePip(False, True)
    setup_torch.install_cpu(pip, 'torch==2.13.0')
    second = pip.asked[1]
    assert second[second.index('--index-url') + 1] == setup_torch.CPU_INDEX
    assert int(second[second.index('--timeout') + 1]) <= 15
    assert int(second[second.index('--retries') + 1]) <= 1


def test_without_a_cpu_torch_nothing_big_is_downloaded():
    pip = FakePip(False, False)
    with pytest.raises(SetupError, match='MMLIT_DEVICE=cuda'):
        setup_torch.install_cpu(pip, 'torch==2.13.0')
    # The bare requirement would bring CUDA and several GB.
    assert all(asked[-1] == 'torch==2.13.0+cpu' for asked in pip.asked)
    assert len(pip.asked) == 2


@pytest.mark.parametrize(
    ('script', 'expected'),
    [('echo "GPU 0: NVIDIA X"', 'cuda'), ('echo none; exit 9', 'cpu'), (None, 'cpu')],
)
def test_the_device_follows_nvidia_smi(tmp_path, monkeypatch, script, expected):
    monkeypatch.setattr(setup_torch, 'NVIDIA_DRIVER', tmp_path / 'absent')
    monkeypatch.delenv('MMLIT_DEVICE', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    if script:
        (tmp_path / 'nvidia-smi').write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / 'nvidia-smi').chmod(0o755)
    assert setup_torch.choose_device() == expected
    monkeypatch.setenv('MMLIT_DEVICE', 'cuda' if expected == 'cpu' else 'cpu')
    assert setup_torch.choose_device() != expected


def test_an_unknown_device_is_refused(monkeypatch):
    monkeypatch.setenv('MMLIT_DEVICE', 'gpu')
    with pytest.raises(SetupError, match="'gpu'.*'cpu' or 'cuda'"):
        setup_torch.choose_device()


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 10, 2, 'final', 0))
    with pytest.raises(SetupError, match='3.11 or newer.*3.10.2.*PYTHON='):
        setup_env.check_python()
