"""Build a small mmcv with the real compiler and ninja: header, resumption, failures."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from support.dists import REQUIREMENTS, read_pins

FOLDER = REQUIREMENTS.parent / 'tools' / 'setup'
sys.path.insert(0, str(FOLDER))

import build_mmcv  # noqa: E402

# Like mmcv's, with torch's BuildExtension: flags in build.ninja, ninja from the PATH.
SETUP_PY = """
import os, pathlib, subprocess, sys
assert os.environ['MMCV_WITH_OPS'] == '1' and os.environ['FORCE_CUDA'] == '0'
here, temp = pathlib.Path.cwd(), pathlib.Path('build/temp')
temp.mkdir(parents=True, exist_ok=True)
subprocess.check_output(['ninja', '--version'])
rows = [f'build {here}/build/temp/{f.stem}.o: compile {f}' for f in here.glob('*.cpp')]
(temp / 'build.ninja').write_text(f'''ninja_required_version = 1.3
cxx = {os.environ.get('CXX', 'c++')}

cflags = -g -O1 -I{here.parent}/include -c
post_cflags = -std=c++17 -DNAME='"ext"'
cuda_post_cflags = -std=c++17

rule compile
  command = $cxx -MMD -MF $out.d $cflags -c $in -o $out $post_cflags
  depfile = $out.d
  deps = gcc

''' + '\\n'.join(rows) + '\\n')
subprocess.run(['ninja', '-v', '-j', '1'], cwd=temp, check=True, stdout=1)
wheels = pathlib.Path(sys.argv[sys.argv.index('--dist-dir') + 1])
wheels.mkdir()
(wheels / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').write_text('wheel')
"""
# A compiler that stops for good at some file, while BLOCK is there.
COMPILER = """#!/bin/sh
case "$*" in *AT*) [ -e BLOCK ] && { touch BLOCK.reached; ACTION; } ;; esac
exec c++ "$@"
"""
# The real thing, but nothing is installed.
DRIVER = """
import signal, sys
sys.path.insert(0, sys.argv[1])
import build_mmcv
signal.signal(signal.SIGTERM, signal.default_int_handler)
build_mmcv.install = lambda wheel, ops: ''
try:
    build_mmcv.provide('mmcv', '2.1.0', 'cpu', '2.13.0', None)
except build_mmcv.Stop as error:
    sys.exit(str(error))
"""


class Build:
    """A cache with the sources of a small mmcv in it."""

    def __init__(self, root):
        self.root = root
        key = build_mmcv.wheel_key('mmcv', '2.1.0', '2.13.0', 'cpu')
        self.folder = root / 'mmlit' / 'build' / key
        self.wheels = root / 'mmlit' / 'wheels' / key
        self.objects = self.folder / 'mmcv-2.1.0' / 'build' / 'temp'
        self.env = {**os.environ, 'XDG_CACHE_HOME': str(root)}
        (self.folder / 'include' / 'torch').mkdir(parents=True)
        types = self.folder / 'include' / 'torch' / 'types.h'
        types.write_text(
            '#pragma once\n#include <vector>\ninline int answer() { return 42; }\n'
        )
        self.objects.parents[1].mkdir()
        (self.objects.parents[1] / 'setup.py').write_text(SETUP_PY)
        for name in ('one', 'three', 'two'):
            source = self.objects.parents[1] / f'{name}.cpp'
            source.write_text(f'#include <torch/types.h>\nint {name} = answer();\n')

    def start(self):
        command = [sys.executable, '-c', DRIVER, str(FOLDER)]
        return subprocess.Popen(
            command, env=self.env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self):
        child = self.start()
        return child.communicate(timeout=60)[0], child.returncode

    def use_compiler(self, at, action):
        compiler, self.block = self.root / 'c++', self.root / 'block'
        text = COMPILER.replace('AT', at).replace('BLOCK', str(self.block))
        compiler.write_text(text.replace('ACTION', action))
        compiler.chmod(0o755)
        self.block.touch()
        self.env['CXX'] = str(compiler)

    def check(self):
        """The wheel is kept, and nothing else."""
        assert [wheel.read_text() for wheel in self.wheels.iterdir()] == ['wheel']
        assert not self.folder.exists()


@pytest.fixture
def build(tmp_path):
    return Build(tmp_path)


def test_a_build_includes_the_compiled_header(build):
    # What torch/types.h declares is there without being asked for.
    (build.objects.parents[1] / 'two.cpp').write_text('int two = answer();\n')
    build.use_compiler('c++-header', 'echo "$*" >> BLOCK.headers'.replace(
        'BLOCK', str(build.root / 'block')))  # fmt: skip
    output, status = build.run()
    assert status == 0, output
    # By the flags of the build, quotes and all, and without debug information.
    header = (build.root / 'block.headers').read_text()
    assert '-g -O1' in header and '-std=c++17 -DNAME="ext" -g0' in header
    assert "compiling torch's headers once" in output
    assert 'going on without' not in output
    build.check()


def test_a_compiler_that_refuses_the_header_builds_without(build):
    build.use_compiler('c++-header', 'echo "unknown language"; exit 1')
    output, status = build.run()
    assert status == 0, output
    assert re.search('going on without that, .*longer: .*unknown language', output)
    build.check()


@pytest.mark.slow
def test_a_torch_that_is_written_in_a_newer_language_gets_it(build):
    types = build.folder / 'include' / 'torch' / 'types.h'
    types.write_text(f'{types.read_text()}consteval int newer() {{ return 1; }}\n')
    output, status = build.run()
    assert status == 0 and 'going on without' not in output, output
    build.check()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('at', ['c++-header', 'two.o'])
def test_an_interrupted_build_goes_on(build, number, at):
    build.use_compiler(
        at, 'sleep 2; exit 1' if number == signal.SIGKILL else 'sleep 60'
    )
    child = build.start()
    reached = Path(f'{build.block}.reached')
    while not reached.exists():
        assert child.poll() is None and not time.sleep(0.02)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode != 0 and not build.wheels.exists()
    kept = {file: file.stat().st_mtime_ns for file in build.objects.glob('*.o')}
    header = build.folder / 'pch.h.gch'
    assert header.exists() == (at == 'two.o')
    build.block.unlink()
    # A killed build's compilers may be at work still: they are waited for.
    child = build.start()
    for line in child.stdout:
        if line.startswith('[mmcv] compiling the files'):
            assert header.exists()
    assert child.wait() == 0
    if at == 'two.o':
        assert kept
    build.check()


@pytest.mark.slow
def test_what_is_compiled_is_not_compiled_again(build):
    build.use_compiler('two.o', 'echo "fatal error: Killed signal terminated"; exit 1')
    output, status = build.run()
    assert status == 1 and 'fewer jobs (MAX_JOBS=1)' in output
    assert str(build.folder / 'build.log') in output
    assert not (build.folder / 'pch.h.gch').exists()  # 430 MB.
    compiled = sorted(file.stem for file in build.objects.glob('*.o'))
    assert 'two' not in compiled
    build.block.unlink()
    build.use_compiler('-o', f'echo "$*" >> {build.root}/ran')
    output, status = build.run()
    assert status == 0, output
    again = re.findall(r'-o \S*/(\w+)\.o', (build.root / 'ran').read_text())
    assert sorted(again + compiled) == ['one', 'three', 'two']
    build.check()


def test_progress_counts_files_and_time_since_the_header(monkeypatch, capsys):
    seconds = iter([0, 25, 45, 46, 85, 100])
    monkeypatch.setattr(build_mmcv.time, 'monotonic', lambda: next(seconds))
    line = '[{}/77] c++ -MMD -MF /a/nms.o.d -c /a/nms.cpp -o /a/nms.o -O3\n'
    lines = ['[mmcv] compiling the files\n']
    lines += [line.format(count) for count in (8, 9, 23, 77)]
    assert build_mmcv.follow(lines) == ''.join(lines)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        '[mmcv] compiling the files',
        # 20 seconds for 8 files.
        '[mmcv] [8/77] nms, 0:45 elapsed, about 2:52 left',
        '[mmcv] [23/77] nms, 1:25 elapsed, about 2:20 left',
        '[mmcv] [77/77] nms, 1:40 elapsed, linking',
    ]


@pytest.mark.parametrize(
    ('line', 'cure'),
    [
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('x.h:12: fatal error: Python.h: No such file or directory', 'python3-dev'),
        ('/tmp/x.s: fatal error: No space left on device', 'disk is full'),
        ('The detected CUDA version (12.4) mismatches the version', 'CUDA_HOME'),
        ("ModuleNotFoundError: No module named 'pkg_resources'", 'setuptools<81'),
        ('a.cpp:1:2: error: no such thing', 'failed. It said:'),
    ],
)
def test_a_failure_names_its_cause(line, cure):
    message = str(build_mmcv.explain('compiling', f'begin\n{line}\n' + 'noise\n' * 50))
    assert cure in message
    assert line in message or 'error' not in line


def test_a_missing_compiler_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'missing-c++ -m64')
    with pytest.raises(build_mmcv.Stop, match=r'missing-c\+\+, which was not.*g\+\+'):
        build_mmcv.build_wheel(tmp_path / 'mmcv-2.1.0', 'cpu', 0)


@pytest.mark.slow
def test_sources_are_those_of_the_lock(tmp_path, monkeypatch):
    """With the real pip, and an index that holds another file of that version."""
    (tmp_path / 'setup.py').write_text(
        'from setuptools import setup\nsetup(name="mmcv", version="2.1.0")\n'
    )
    (tmp_path / 'PKG-INFO').write_text('Metadata-Version: 2.1\nName: mmcv\n')
    (tmp_path / 'index').mkdir()
    archive = tmp_path / 'index' / 'mmcv-2.1.0.tar.gz'
    with tarfile.open(archive, 'w:gz') as members:
        for name in ('setup.py', 'PKG-INFO'):
            members.add(tmp_path / name, f'mmcv-2.1.0/{name}')
    for variable in ('PIP_CONFIG_FILE', 'PIP_EXTRA_INDEX_URL'):
        monkeypatch.setenv(variable, os.devnull)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'index'))
    folder = tmp_path / 'build'
    folder.mkdir()
    lock = REQUIREMENTS / 'mmcv.lock'
    with pytest.raises(build_mmcv.Stop, match='another file than the one that was rel'):
        build_mmcv.fetch_sources('mmcv', '2.1.0', str(lock), folder)
    assert list(folder.iterdir()) == []
    tree = build_mmcv.fetch_sources('mmcv', '2.1.0', None, folder)
    assert (tree / 'setup.py').is_file() and list(folder.iterdir()) == [tree]


def test_the_key_tells_apart_what_does_not_fit():
    key = build_mmcv.wheel_key('mmcv', '2.1.0', '2.13.0+cpu', 'cpu')
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    system = f'{os.uname().sysname}-{os.uname().machine}'.lower()
    # Wheels of earlier versions are found under that name.
    assert key == f'mmcv-2.1.0-{python}-{system}-torch-2.13.0+cpu-ops-cpu'


def test_the_versions_are_those_of_the_lock_files():
    for name, version in build_mmcv.VERSIONS.items():
        assert read_pins(f'{name}.in') == {name: version}
