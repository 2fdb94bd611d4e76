"""Break an environment: the doctor finds that alone, and names what mends it.

Most cases run `--quick` over stubs, which import in no time; the healthy environment,
an operator that crashes and an mmlit that is broken are the real ones.
"""

import json
import shutil
import subprocess
import sys

import pytest

from mmlit_doctor import check_runs
from mmlit_doctor.findings import Advice, Fault
from mmlit_doctor.worker import DiedError, Worker
from support.attacks import nothing_allowed
from support.doctor_helpers import (
    CHECKOUT,
    FAULTS,
    MMCV,
    ONEDL_FAULTS,
    ONEDL_MMCV,
    SOUND,
    SOUND_ONEDL,
    distribution,
    examine,
    of_level,
    run,
    write,
)
from support.this_stack import STACK


def smi(folder):
    """A folder with an nvidia-smi, of a driver that knows CUDA 12.4."""
    folder.mkdir()
    program = folder / 'nvidia-smi'
    program.write_text('#!/bin/sh\necho "GPU 0: H100, CUDA Version: 12.4  |"\n')
    program.chmod(0o755)
    return folder


def examine_stubbed(folder, changes=(), block=(), sound=SOUND):
    write(folder / 'stubs', {**sound, **dict(changes)}, block)
    places = {'paths': [folder / 'stubs'], 'programs': [smi(folder / 'smi')]}
    return examine('--quick', **places)


@pytest.mark.parametrize(
    ('sound', 'faults', 'case'),
    [(SOUND, FAULTS, case) for case in FAULTS]
    + [(SOUND_ONEDL, ONEDL_FAULTS, case) for case in ONEDL_FAULTS],
    ids=[*FAULTS, *(f'onedl: {case}' for case in ONEDL_FAULTS)],
)
def test_a_broken_environment_has_one_fault_and_its_cure(tmp_path, sound, faults, case):
    changes, block, name, seen, mend = faults[case]
    status, findings = examine_stubbed(tmp_path, changes, block, sound)
    assert of_level(findings, 'fault') == [name]
    assert seen in findings[name]['seen']
    assert findings[name]['mend'] == mend
    assert findings[name]['why']
    assert status == 1
    # What could not be looked at says so, and blames it.
    for other in of_level(findings, 'unchecked'):
        assert name in findings[other]['seen']
        assert findings[other]['mend'] == ''


@pytest.mark.parametrize(
    ('sound', 'mmengine'),
    [(SOUND, 'mmengine==0.10.*'), (SOUND_ONEDL, 'onedl-mmengine==0.10.*')],
    ids=['openmmlab', 'onedl'],
)
def test_sound_stubs_have_no_fault(tmp_path, monkeypatch, sound, mmengine):
    status, findings = examine_stubbed(tmp_path, sound=sound)
    assert status == 0
    assert of_level(findings, 'fault') + of_level(findings, 'unchecked') == []
    # A GPU is there (nvidia-smi says), and torch is for the CPU: a choice, not a fault.
    assert findings['devices']['level'] == 'advice'
    assert 'pip install torch==2.13.0' in findings['devices']['mend']
    assert findings['versions']['seen'] == 'as tested'
    # Checkpoints would be mended by the mmengine of the stack.
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'stubs'))
    worker = Worker(patience=300)
    assert worker.ask('mend', 'checkpoint').endswith(f' install "{mmengine}"')
    worker.stop()


def test_a_check_that_hangs_is_ended_and_the_next_one_runs(tmp_path, monkeypatch):
    hang = {'torchvision/__init__.py': 'import time\ntime.sleep(600)'}
    write(tmp_path, {**SOUND, **hang})
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    worker = Worker(patience=300)
    assert worker.ask('versions')['torch'] == '2.13.0+cpu'
    worker.patience = 1
    with pytest.raises(DiedError, match='no end after 1 s'):
        worker.ask('check', 'torchvision')
    worker.patience = 300
    assert worker.ask('check', 'mmcv-ops')['level'] == 'ok'
    worker.stop()


@pytest.mark.parametrize(
    ('sound', 'gone', 'mmdet', 'mmseg'),
    [
        (SOUND, ('mmdet', '3.3.0'), 'mmdet>=3.0.0', 'mmsegmentation>=1.0.0'),
        (
            *(SOUND_ONEDL, ('onedl-mmdetection', '3.5.1')),
            *('onedl-mmdetection==3.5.*', 'onedl-mmsegmentation==1.4.*'),
        ),
    ],
    ids=['openmmlab', 'onedl'],
)
def test_what_is_untested_or_absent_is_advice(tmp_path, sound, gone, mmdet, mmseg):
    changes = {'torch/version.py': "__version__ = '2.4.1'\ncuda = None\n"}
    changes.update(dict.fromkeys(distribution(*gone)))
    block = ['mmdet', 'mmseg', 'onnxruntime', 'tensorboard']
    status, findings = examine_stubbed(tmp_path, changes, block, sound)
    assert (status, of_level(findings, 'fault')) == (0, [])
    assert set(of_level(findings, 'advice')) >= {'versions', *block}
    assert 'torch 2.4.1 (tested: 2.13)' in findings['versions']['seen']
    assert findings['mmdet']['mend'] == f'pip install "{mmdet}"'
    assert findings['mmseg']['mend'] == f'pip install "{mmseg}" ftfy regex'


def test_the_report_is_read_by_people(tmp_path):
    write(tmp_path, {**SOUND, 'mmcv/_ext.py': None})
    done = run('--quick', paths=[tmp_path])
    assert (done.returncode, done.stderr) == (1, '')
    lines = done.stdout.splitlines()
    assert lines[0].startswith('mmlit doctor: python 3')
    assert 'mmcv 2.1.0' in lines[0]
    [fault] = [i for i, line in enumerate(lines) if line.startswith('fault ')]
    assert lines[fault].split()[1] == 'mmcv-ops'
    assert lines[fault + 2].strip() == f'mend: {MMCV}'
    assert lines[-1].startswith('1 fault, ')


def test_commands_name_the_pip_of_another_python(tmp_path):
    # Not activated: `pip` on the PATH belongs to someone else.
    python = tmp_path / 'bin' / 'python'
    code = (
        f'import sys; sys.executable = {str(python)!r}\n'
        'from mmlit_doctor.install import for_this_python\n'
        'print(for_this_python("X=1 pip install a && pip uninstall -y pip"))'
    )
    done = run(command=(sys.executable, '-c', code))
    pip = f'{python} -m pip'
    wanted = f'X=1 {pip} install a && {pip} uninstall -y pip\n'
    assert done.stdout == wanted, done.stderr


def test_a_python_that_is_too_old_is_said():
    code = "import sys; sys.version_info = (3, 7, 9, 'final', 0); import mmlit_doctor"
    done = run(command=(sys.executable, '-c', code))
    assert done.returncode == 1
    assert done.stderr.startswith('fault: Python ')
    assert 'python3.11 -m venv' in done.stderr


# From here on with the real packages.


@pytest.mark.slow
def test_this_environment_is_healthy():
    status, findings = examine()
    assert of_level(findings, 'fault') + of_level(findings, 'unchecked') == []
    assert status == 0
    for name in ('deform-conv/cpu', 'checkpoint', 'lit/cpu'):
        assert findings[name]['level'] == 'ok'


@pytest.mark.slow
@pytest.mark.parametrize('wrong', [False, True], ids=['crashes', 'is wrong'])
def test_an_operator_that_crashes_or_errs(tmp_path, wrong):
    broken = 'args[3].mul_(2)' if wrong else 'os.kill(os.getpid(), 11)'
    sabotage = f"""
import os
from importlib.machinery import ExtensionFileLoader
load = ExtensionFileLoader.exec_module
def load_and_break(self, module):
    load(self, module)
    if module.__name__ == 'mmcv._ext':
        real = module.deform_conv_forward
        def forward(*args, **kwargs):
            real(*args, **kwargs)
            {broken}
        module.deform_conv_forward = forward
ExtensionFileLoader.exec_module = load_and_break
"""
    write(tmp_path, {'sitecustomize.py': sabotage})
    status, findings = examine(paths=[tmp_path])
    assert (status, of_level(findings, 'fault')) == (1, ['deform-conv/cpu'])
    seen = findings['deform-conv/cpu']['seen']
    assert ('off by' if wrong else 'SIGSEGV') in seen
    mend = {'openmmlab': MMCV, 'onedl': ONEDL_MMCV}[STACK]
    assert findings['deform-conv/cpu']['mend'] == mend
    assert of_level(findings, 'unchecked') == ['lit/cpu']
    assert findings['checkpoint']['level'] == 'ok'


@pytest.mark.slow
def test_an_mmlit_that_lacks_a_file(tmp_path):
    shutil.copytree(CHECKOUT / 'mmlit', tmp_path / 'mmlit')
    (tmp_path / 'mmlit' / 'archs.py').unlink()
    status, findings = examine(paths=[tmp_path])
    assert (status, of_level(findings, 'fault')) == (1, ['mmlit'])
    assert "No module named 'mmlit.archs'" in findings['mmlit']['seen']
    assert findings['mmlit']['mend'] == f'pip install -e {CHECKOUT}'


def test_checkpoints_that_cannot_be_read(monkeypatch):
    monkeypatch.delenv(check_runs.UNSAFE, raising=False)
    assert "mmengine's can be read" in check_runs.check_checkpoint()
    monkeypatch.setenv(check_runs.UNSAFE, '1')
    with pytest.raises(Advice, match='may run any code') as advice:
        check_runs.check_checkpoint()
    assert advice.value.mend == f'unset {check_runs.UNSAFE}'
    monkeypatch.delenv(check_runs.UNSAFE)
    # As after an update of torch or mmengine, where another class is in the files.
    with nothing_allowed(), pytest.raises(Fault, match='read .*HistoryBuffer') as fault:
        check_runs.check_checkpoint()
    assert fault.value.mend == check_runs.checkpoint_command()


@pytest.mark.slow
def test_the_installed_command_runs_where_mmlit_refuses(tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    for name in ('mmlit', 'mmlit_doctor'):
        shutil.copytree(CHECKOUT / name, source / name)
    for name in ('setup.py', 'pyproject.toml'):
        shutil.copy(CHECKOUT / name, source)
    options = ['--no-deps', '--no-build-isolation', '--no-index', '--target']
    command = [sys.executable, '-m', 'pip', 'install', '-q', *options, target, source]
    subprocess.run(command, check=True, capture_output=True)
    # As mim has it: in a folder of the package, without the repository around it.
    copy = target / 'mmlit' / '.mim' / 'tools' / 'doctor.py'
    copy.parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / 'tools' / 'doctor.py', copy)
    write(tmp_path / 'stubs', {**SOUND, 'mmcv/_ext.py': None})
    places = {'paths': [tmp_path / 'stubs', target]}
    refused = run(command=(sys.executable, '-c', 'import mmlit'), **places)
    assert 'UnusableEnvironmentError' in refused.stderr
    reports = []
    for start in ((target / 'bin' / 'mmlit-doctor',), (sys.executable, copy)):
        done = run('--quick', '--json', command=start, **places)
        assert done.returncode == 1, done.stderr
        reports.append(json.loads(done.stdout))
    assert reports[0] == reports[1]
    findings = {finding['name']: finding for finding in reports[0]['findings']}
    assert of_level(findings, 'fault') == ['mmcv-ops']
    assert str(target / 'mmlit') in findings['mmlit-files']['seen']
