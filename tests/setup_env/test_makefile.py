"""Run the Makefile's set-up with a Python that only notes what it is to do."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from support.dists import REQUIREMENTS

CHECKOUT = REQUIREMENTS.parent
# Stands in for the Python of the user and for those of the environments it makes.
PYTHON = """#!/bin/sh
case "$*" in
"-m venv "*)
    for venv; do :; done
    mkdir -p $venv/bin $venv/lib/python3.11/site-packages && touch $venv/bin/activate
    cp "$0" $venv/bin/python ;;
*torch.version*) [ -e ROOT/torch-fits ]; exit ;;
*_base_executable*) echo ROOT/python; exit ;;
*" --version") exit ;;
"-c "*) exec REAL "$@" ;;
esac
echo "$*" >> ROOT/done
case "$*" in *"$(cat ROOT/stop 2>/dev/null || echo nothing)"*) ACTION ;; esac
"""
STEPS = ['-m venv', 'build.lock', 'common.lock', 'torch==', 'build_mmcv.py', '-e .']


class Checkout:
    """A copy of what the set-up reads."""

    def __init__(self, root):
        self.root = root
        shutil.copytree(REQUIREMENTS, root / 'requirements')
        for name in ('Makefile', 'setup.py', 'pyproject.toml', 'mmlit/version.py'):
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(CHECKOUT / name, root / name)
        self.stop_at(None)

    def stop_at(self, step, action='exit 1'):
        """Let the Python do `action` when it comes to `step`."""
        text = PYTHON.replace('ROOT', str(self.root)).replace('REAL', sys.executable)
        self.python = self.root / 'python'
        self.python.write_text(text.replace('ACTION', action))
        self.python.chmod(0o755)
        if (self.root / '.venv/bin').exists():
            shutil.copy(self.python, self.root / '.venv/bin/python')
        (self.root / 'stop').write_text(step or 'nothing')

    def start(self, *arguments, **env):
        command = ['make', 'setup', f'PYTHON={self.python}', *arguments]
        # `make test-all` runs this test, and tells a make inside of it.
        ours = {
            k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFL'))
        }
        return subprocess.Popen(
            command, cwd=self.root, text=True, start_new_session=True,
            env={**ours, 'MMLIT_DEVICE': 'cpu', **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments, status=0, **env):
        """Return what the Python was asked to do, step by step, and the output."""
        (self.root / 'done').write_text('')
        child = self.start(*arguments, **env)
        output = child.communicate(timeout=60)[0]
        assert child.returncode == status, output
        return self.done(), output

    def done(self):
        """Return which of the steps were begun."""
        lines = (self.root / 'done').read_text().splitlines()
        return [step for line in lines for step in STEPS if step in line]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_a_second_run_does_nothing(checkout):
    assert checkout.run()[0] == STEPS
    assert checkout.run() == ([], '')
    assert checkout.run(PYTHONPATH='/elsewhere')[0] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ('step', 'number'), [*zip(STEPS[:3], [2, 9, 2]), *zip(STEPS[3:], [9, 2, 9])]
)
def test_an_interrupted_run_goes_on_where_it_stopped(checkout, step, number):
    here = checkout.root / 'here'
    # One process: a shell that gets SIGINT between two commands may begin the second.
    code = f'import time; open("{here}", "w").close(); time.sleep(60)'
    checkout.stop_at(step, f"exec {sys.executable} -S -c '{code}'")
    (checkout.root / 'done').touch()
    child = checkout.start()
    while not here.exists():
        assert child.poll() is None and not time.sleep(0.02)
    os.killpg(child.pid, number)
    child.communicate(timeout=30)
    checkout.stop_at(None)
    done, output = checkout.run()
    assert done == STEPS[STEPS.index(step) + (step == '-m venv') :], output
    assert checkout.run()[0] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'first'),
    [
        ('build.lock', 'build.lock'),
        ('common.lock', 'common.lock'),
        ('openmmlab.lock', 'common.lock'),
        ('torch.txt', 'torch=='),
        ('mmcv.lock', 'build_mmcv.py'),
        ('onedl.lock', None),
    ],
)
def test_a_changed_list_redoes_what_stands_on_it(checkout, name, first):
    checkout.run()
    later = time.time() + 5
    os.utime(checkout.root / 'requirements' / name, (later, later))
    expected = STEPS[STEPS.index(first) :] if first else []
    assert checkout.run()[0] == expected


def test_another_device_is_another_torch(checkout):
    checkout.run()
    done, _ = checkout.run(MMLIT_DEVICE='cuda')
    assert done == STEPS[1:]  # The environment itself is adopted.
    (checkout.root / 'done').write_text('')
    # Back again: what the other device left is not taken for this one's.
    assert checkout.run(MMLIT_DEVICE='cpu')[0] == STEPS[1:]
    assert 'expected cpu or cuda' in checkout.run(MMLIT_DEVICE='gpu', status=2)[1]


def test_the_stacks_have_environments_and_packages_of_their_own(checkout):
    checkout.run()
    assert checkout.run('STACK=onedl')[0] == STEPS
    log = (checkout.root / 'done').read_text()
    assert '/onedl.lock' in log and 'onedl-mmcv.lock' in log
    assert 'openmmlab' not in log
    assert checkout.run()[0] == checkout.run('STACK=onedl')[0] == []
    assert 'expected openmmlab or onedl' in checkout.run('STACK=none', status=2)[1]


def test_pip_gets_hashes_and_nothing_beside_them(checkout):
    checkout.run()
    lines = (checkout.root / 'done').read_text().splitlines()
    installed = [line for line in lines if 'pip install' in line]
    assert len(installed) == 4
    for line in installed:
        assert '--no-deps' in line
        own = line.endswith('+cpu') or line.endswith('-e .')
        assert ('--require-hashes' in line) == (not own)
        assert '==' not in line or own


def test_an_opencv_beside_the_headless_one_goes(checkout):
    checkout.run()
    site = checkout.root / '.venv/lib/python3.11/site-packages'
    (site / 'opencv_python-4.12.0.88.dist-info').mkdir()
    done, _ = checkout.run()
    log = (checkout.root / 'done').read_text()
    assert 'uninstall -q -y opencv-python ' in log and 'common.lock' in done


def test_what_a_killed_pip_left_goes(checkout):
    checkout.stop_at('common.lock')
    _, output = checkout.run(status=2)
    assert 'the same command goes on where this stopped' in output
    site = checkout.root / '.venv/lib/python3.11/site-packages'
    for name in ('whole-1.0.dist-info', 'killed-1.0.dist-info', '~umpy'):
        (site / name).mkdir()
    (site / 'whole-1.0.dist-info' / 'RECORD').touch()
    checkout.stop_at(None)
    checkout.run()
    assert [folder.name for folder in site.iterdir()] == ['whole-1.0.dist-info']


def test_a_cpu_torch_comes_from_pips_index_or_pytorchs_and_nothing_big_else(checkout):
    checkout.stop_at('torch==')
    _, output = checkout.run(status=2)
    log = (checkout.root / 'done').read_text().splitlines()
    tried = [line for line in log if 'torch==' in line]
    assert len(tried) == 2 and all(line.endswith('+cpu') for line in tried)
    assert '--index-url' not in tried[0]
    assert '--timeout 15 --retries 1 --index-url https://download.pyt' in tried[1]
    assert 'MMLIT_DEVICE=cuda' in output


def test_a_torch_that_fits_stays(checkout):
    (checkout.root / 'torch-fits').touch()
    assert checkout.run()[0] == [step for step in STEPS if step != 'torch==']


@pytest.mark.slow
def test_two_at_a_time_wait_for_each_other(checkout):
    checkout.stop_at('common.lock', 'sleep 2')
    (checkout.root / 'done').touch()
    first = checkout.start()
    while 'common.lock' not in checkout.done():
        assert not time.sleep(0.02)
    second = checkout.start()
    outputs = [child.communicate(timeout=60)[0] for child in (first, second)]
    assert first.returncode == second.returncode == 0
    assert 'waiting for another set-up' in outputs[1]
    assert checkout.done() == STEPS


def test_a_python_that_is_too_old_or_missing_is_one_sentence(checkout):
    (checkout.root / 'old').write_text('#!/bin/sh\nexit 1\n')
    (checkout.root / 'old').chmod(0o755)
    for python in ('./old', '/nonexistent'):
        _, output = checkout.run(f'PYTHON={python}', status=2)
        assert output.startswith('[setup] stopped: no Python 3.11 or newer was found')
        assert len(output.splitlines()) == 2  # And make's.
