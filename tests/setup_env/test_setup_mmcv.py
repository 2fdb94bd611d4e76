"""The mmcv build: its key, its progress, its causes of failure, and that it resumes."""

import os
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / 'tools' / 'setup'))

import setup_mmcv  # noqa: E402
import setup_process  # noqa: E402
from setup_packages import PipWatcher  # noqa: E402
from setup_process import SetupError  # noqa: E402

# Compiles two "objects" and is cut off after the first one, the first time; like
# ninja, it keeps what is compiled. It writes the wheel where it is told to.
FAKE_SETUP_PY = """
import os, pathlib, sys
assert os.environ['MMCV_WITH_OPS'] == '1' and os.environ['FORCE_CUDA'] == '0'
objects = pathlib.Path('build/temp.x')
objects.mkdir(parents=True, exist_ok=True)
for number, name in enumerate(('one', 'two'), 1):
    if (objects / f'{name}.o').exists():
        continue
    if name == 'two' and not pathlib.Path('again').exists():
        pathlib.Path('again').touch()
        sys.exit('c++: fatal error: Killed signal terminated program cc1plus')
    (objects / f'{name}.o').write_text(name)
    print(f'[{number}/2] c++ -c {name}.cpp -o /x/{name}.o', flush=True)
wheels = pathlib.Path(sys.argv[sys.argv.index('--dist-dir') + 1])
wheels.mkdir()
(wheels / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').write_text('wheel')
"""


@pytest.mark.parametrize('name', ['mmcv', 'onedl-mmcv'])
def test_an_interrupted_build_keeps_what_is_compiled(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup_mmcv, 'check_compiler', lambda: None)
    tree = tmp_path / 'build' / f'{name.replace("-", "_")}-2.1.0'
    tree.mkdir(parents=True)
    (tree / 'setup.py').write_text(FAKE_SETUP_PY)
    wheels = tmp_path / 'wheels' / 'key'
    arguments = (Path(sys.executable), name, '2.1.0', 'cpu', tree, wheels)
    arguments += (tmp_path,)
    with pytest.raises(SetupError, match='MAX_JOBS=1'):
        setup_mmcv.build_wheel(*arguments)
    assert setup_mmcv.find_wheel(wheels) is None
    first = tree / 'build/temp.x/one.o'
    stamp = first.stat().st_mtime_ns
    wheel = setup_mmcv.build_wheel(*arguments)
    assert '(1 files are compiled already)' in capsys.readouterr().out
    assert first.stat().st_mtime_ns == stamp
    assert setup_mmcv.find_wheel(wheels) == wheel
    assert wheel.read_text() == 'wheel'
    assert list(wheels.iterdir()) == [wheel]


def test_a_cache_that_cannot_be_written_to_costs_no_build(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup_mmcv, 'check_compiler', lambda: None)
    tree = tmp_path / 'build' / 'mmcv-2.1.0'
    tree.mkdir(parents=True)
    (tree / 'again').touch()
    (tree / 'setup.py').write_text(FAKE_SETUP_PY)
    (tmp_path / 'a_file').touch()
    wheels = tmp_path / 'a_file' / 'key'
    arguments = (Path(sys.executable), 'mmcv', '2.1.0', 'cpu', tree, wheels)
    wheel = setup_mmcv.build_wheel(*arguments, tmp_path)
    assert wheel.read_text() == 'wheel' and wheel.is_relative_to(tree.parent)
    assert 'is not kept for another time' in capsys.readouterr().out


def test_wheels_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert setup_mmcv.wheel_cache() == tmp_path / 'mmlit' / 'wheels'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert setup_mmcv.wheel_cache() == tmp_path / '.cache' / 'mmlit' / 'wheels'


def test_the_key_tells_apart_what_does_not_fit():
    keys = {
        setup_mmcv.wheel_key('mmcv', '2.1.0', '2.13.0+cpu', 'cpu'),
        setup_mmcv.wheel_key('mmcv', '2.1.0', '2.14.0+cpu', 'cpu'),
        setup_mmcv.wheel_key('mmcv', '2.1.0', '2.13.0+cpu', 'cuda13.0'),
        setup_mmcv.wheel_key('mmcv', '2.2.0', '2.13.0+cpu', 'cpu'),
        setup_mmcv.wheel_key('onedl-mmcv', '2.1.0', '2.13.0+cpu', 'cpu'),
    }
    assert len(keys) == 5
    assert all(f'cp{sys.version_info[0]}{sys.version_info[1]}' in key for key in keys)


@pytest.mark.parametrize(
    ('cores', 'gigabytes', 'jobs'),
    [(2, 16, 2), (16, 8, 3), (8, 1, 1), (4, None, 4)],
)
def test_jobs_are_limited_by_memory(cores, gigabytes, jobs):
    assert setup_mmcv.count_jobs(cores, gigabytes) == jobs


def test_ninjas_count_is_read():
    line = '  [37/77] c++ -MMD -MF /a/nms.o.d -c /a/nms.cpp -o /a/nms.o -O3'
    assert setup_mmcv.read_ninja(line) == (37, 77, 'nms')
    assert setup_mmcv.read_ninja('/a/nms.cpp:3: warning: [1/2] unused') is None


def test_pips_count_is_read():
    watch = PipWatcher(total=2)
    assert watch('Collecting numpy==2.4.0') == (1, 2, 'numpy==2.4.0')
    assert watch('Progress 50000000 of 200000000') == (50, 200, 'MB of numpy==2.4.0')
    assert watch('Progress 500 of 2000') is None
    assert watch('Installing collected packages: numpy') == (2, 2, 'unpacking')


@pytest.mark.parametrize(
    ('line', 'cure'),
    [
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('x.h:12: fatal error: Python.h: No such file or directory', 'python3-dev'),
        ('/tmp/x.s: fatal error: No space left on device', 'disk is full'),
        ('The detected CUDA version (12.4) mismatches the version', 'CUDA_HOME'),
    ],
)
def test_a_failure_names_its_cause(tmp_path, line, cure):
    log = tmp_path / 'build.log'
    log.write_text(f'begin\n{line}\n' + 'noise\n' * 50)
    explanation = setup_mmcv.explain(log)
    assert cure in explanation
    assert str(log) in explanation


def test_an_unknown_failure_shows_its_error_lines(tmp_path):
    log = tmp_path / 'build.log'
    log.write_text('a.cpp:1:2: error: no such thing\n' + 'noise\n' * 50)
    explanation = setup_mmcv.explain(log)
    assert 'no such thing' in explanation
    assert 'Probable cause' not in explanation


def test_a_missing_compiler_is_said_before_the_build(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CXX', 'missing-c++ -m64')
    with pytest.raises(SetupError, match=r'missing-c\+\+.*g\+\+'):
        setup_mmcv.check_compiler()


@pytest.mark.parametrize(
    ('release', 'torch_cuda', 'usable', 'reason'),
    [
        ('13.1', '13.0', True, ''),
        ('12.4', '13.0', False, 'nvcc is of CUDA 12, torch of CUDA 13.0'),
        ('13.1', '', False, 'this torch has no CUDA'),
        (None, '13.0', False, 'no nvcc was found'),
    ],
)
def test_cuda_ops_need_a_fitting_nvcc(
    tmp_path, monkeypatch, release, torch_cuda, usable, reason
):
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    monkeypatch.setattr(setup_mmcv, 'DEFAULT_CUDA_HOME', tmp_path / 'absent')
    if release:
        nvcc = tmp_path / 'bin' / 'nvcc'
        nvcc.parent.mkdir()
        nvcc.write_text(f'#!/bin/sh\necho "Cuda tools, release {release}, V1"\n')
        nvcc.chmod(0o755)
    found, why = setup_mmcv.find_cuda(torch_cuda)
    assert (found, why.startswith(reason)) == (usable, True)


def test_the_ops_of_this_environment_work():
    assert setup_mmcv.check_ops(Path(sys.executable), 'cpu') == ''


def test_an_environment_without_mmcv_fails_the_check(tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # No packages.
    python.chmod(0o755)
    assert 'No module named' in setup_mmcv.check_ops(python, 'cpu')


def test_output_goes_to_the_log_and_the_status_comes_back(tmp_path, capsys):
    log = tmp_path / 'a.log'
    seen = []
    command = [sys.executable, '-c', 'print("hello"); raise SystemExit(3)']
    assert setup_process.run_logged(command, log, 'greeting', seen.append) == 3
    assert 'hello' in log.read_text()
    assert 'hello' in seen
    assert 'greeting: failed' in capsys.readouterr().out


def test_an_interruption_ends_the_child(tmp_path):
    code = 'import os, time; print(os.getpid()); time.sleep(60)'
    children = []

    def interrupt(line):
        if line.isdigit():
            children.append(int(line))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command = [sys.executable, '-c', code]
        setup_process.run_logged(command, tmp_path / 'a.log', 'sleep', interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_the_line_shows_count_elapsed_and_left():
    progress = setup_process.Progress('mmcv')
    progress.update((7, 77, 'nms'))
    now = time.monotonic()
    progress.started = progress.counting_since = now - 70
    progress.changed = now
    assert progress.text(now) == 'mmcv [7/77] nms: 1:10 elapsed, about 11:40 left'
