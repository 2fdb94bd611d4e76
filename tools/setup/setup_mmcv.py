"""Build mmcv with its compiled ops, so that an interrupted build goes on.

The sources lie in .build/KEY and the finished wheel in the user's cache, in
mmlit/wheels/KEY, where KEY says what the ops fit: Python, platform, torch, mmcv, and
CPU or CUDA. So a new .venv, in this checkout or another, takes the finished wheel, and
another torch or stack never gets the wrong one. `name` is the distribution that brings
mmcv: mmcv or onedl-mmcv.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import Optional, Tuple

from setup_hashes import Hashes, explain_mismatch, write_pins
from setup_process import (
    SetupError,
    Status,
    child_environment,
    run_logged,
    say,
    tail,
)

# What a compiler process takes at its peak, with torch's headers.
GIGABYTES_PER_JOB = 2.5
CPU_MINUTES = 22  # Of one core, for all the files.
DEFAULT_CUDA_HOME = Path('/usr/local/cuda')  # torch's guess, too.
PYTHON_DEV = (
    'Python.h is not there: install the headers of this Python '
    '(Debian, Ubuntu: sudo apt-get install python3-dev), or choose another Python '
    'with PYTHON=...'
)
COMPILER = (
    'building mmcv needs a C++17 compiler, and none was found ({}): install one '
    '(Debian, Ubuntu: sudo apt-get install g++; macOS: xcode-select --install), or '
    'name yours in CXX'
)
# Tried in order against the end of a failed build's log.
CAUSES = (
    (r'Killed signal|c\+\+: fatal error: Killed|internal compiler error.*[Kk]illed'
     r'|out of memory|cannot allocate memory',
     'the compiler ran out of memory: try again with fewer jobs (MAX_JOBS=1)'),
    (r'No space left on device', 'the disk is full: free about 3 GB'),
    (r'Python\.h: No such file', PYTHON_DEV),
    (r'detected CUDA version .* mismatches',
     "nvcc's CUDA differs from torch's: point CUDA_HOME at the matching toolkit, or "
     'take the CPU build with MMLIT_DEVICE=cpu'),
    (r'unsupported GNU version|#error.*C\+\+17|unrecognized .*-std=c\+\+17',
     'the C++ compiler does not fit: name another one in CXX'),
)  # fmt: skip


def wheel_key(name: str, version: str, torch: str, ops: str) -> str:
    """Return the name of what a wheel fits, usable as a folder name."""
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    system = f'{platform.system()}-{platform.machine()}'.lower()
    return f'{name}-{version}-{python}-{system}-torch-{torch}-ops-{ops}'


def wheel_cache() -> Path:
    """Return the folder that keeps finished wheels for all checkouts of this user."""
    caches = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(caches).absolute() / 'mmlit' / 'wheels'


def find_wheel(folder: Path) -> Optional[Path]:
    """Return the finished wheel in `folder`, if there is one."""
    return next(iter(sorted(folder.glob('*.whl'))), None)


def check_compiler() -> None:
    """Raise, before anything long begins, if mmcv cannot be compiled here."""
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        raise SetupError(COMPILER.format(compiler))
    if not (Path(sysconfig.get_path('include')) / 'Python.h').is_file():
        raise SetupError(PYTHON_DEV)


def find_cuda(torch_cuda: Optional[str]) -> Tuple[bool, str]:
    """Tell if nvcc can build ops for torch's CUDA, and if not, why."""
    if not torch_cuda:
        return False, 'this torch has no CUDA'
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    nvcc = shutil.which('nvcc', path=f'{home}/bin') if home else shutil.which('nvcc')
    if nvcc is None:
        nvcc = shutil.which('nvcc', path=str(DEFAULT_CUDA_HOME / 'bin'))
    if nvcc is None:
        return False, 'no nvcc was found (set CUDA_HOME to the CUDA toolkit)'
    output = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
    release = re.search(r'release (\d+)\.', output)
    if release is None or release.group(1) != torch_cuda.split('.')[0]:
        found = release.group(1) if release else 'unknown'
        return False, f'nvcc is of CUDA {found}, torch of CUDA {torch_cuda}'
    return True, ''


def count_jobs(cores: int, gigabytes: Optional[float]) -> int:
    """Return how many compilers to run: one a core, as far as the memory goes."""
    if gigabytes is None:
        return cores
    return max(1, min(cores, int(gigabytes / GIGABYTES_PER_JOB)))


def available_gigabytes() -> Optional[float]:
    """Return the memory free for us, container limits included, if it can be read."""
    limits = []
    with contextlib.suppress(OSError, AttributeError):
        text = Path('/proc/meminfo').read_text()
        limits.append(int(re.search(r'MemAvailable:\s+(\d+)', text).group(1)) / 2**20)
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path('/sys/fs/cgroup/memory.max').read_text()) / 2**30)
    return min(limits) if limits else None


def available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_ninja(line: str) -> Optional[Status]:
    """Return ninja's count from a line like '[37/77] c++ ... -o .../nms.o'."""
    found = re.match(r'\s*\[(\d+)/(\d+)\] .*?([\w.-]+)\.o\b', line)
    if found is None:
        return None
    return int(found.group(1)), int(found.group(2)), found.group(3)


def explain(log: Path) -> str:
    """Return why the build failed, as far as the end of its log tells."""
    text = tail(log, 400)
    cause = next((cure for sign, cure in CAUSES if re.search(sign, text, re.I)), None)
    errors = [line for line in text.splitlines() if re.search(r'\berror\b', line, re.I)]
    shown = '\n'.join(errors[:8]) or tail(log)
    known = f'Probable cause: {cause}.\n' if cause else ''
    return f'mmcv could not be built. {known}From {log}:\n{shown}'


def fetch_sources(
    python: Path, name: str, version: str, hashes: Hashes, folder: Path, logs: Path
) -> Path:
    """Return the unpacked source tree of mmcv, fetching it if it is not there."""
    tree = folder / f'{name.replace("-", "_")}-{version}'
    if tree.is_dir():
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    # In a folder of its own until it is whole; dropped if we are interrupted.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        log = logs / 'mmcv-download.log'
        file = Path(scratch) / 'mmcv.requirements'
        file.write_text(write_pins([f'{name}=={version}'], hashes), encoding='utf-8')
        command = [python, '-m', 'pip', 'download', '--no-deps', '--no-binary', ':all:']
        command += ['--no-build-isolation', '-d', scratch]
        command += ['--require-hashes', '-r', file]
        if run_logged(command, log, f'fetching the sources of {name} {version}') != 0:
            mismatch = explain_mismatch(log.read_text(encoding='utf-8'))
            failure = f'{name} {version} was not downloaded:\n{tail(log)}'
            raise SetupError(mismatch or failure)
        archive = next(Path(scratch).glob('*.tar.gz'))
        with tarfile.open(archive) as members:
            # Older Pythons know no filters; the archive has the hash of its lock file.
            safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
            members.extractall(scratch, **safe)
        os.replace(Path(scratch) / tree.name, tree)
    return tree


def build_wheel(
    python: Path,
    name: str,
    version: str,
    ops: str,
    tree: Path,
    wheels: Path,
    logs: Path,
) -> Path:
    """Compile the sources in `tree`; return the wheel, which appears whole in `wheels`.

    Where that folder cannot be written to, the wheel stays with the sources.
    """
    check_compiler()
    jobs = os.environ.get('MAX_JOBS') or str(
        count_jobs(available_cores(), available_gigabytes())
    )
    done = len(list(tree.glob('build/temp*/**/*.o')))
    say(
        f'building {name} {version} with {ops} ops from source, {jobs} files at a '
        f'time: about {max(1, CPU_MINUTES // int(jobs))} minutes for CPU ops, several '
        'times that for CUDA. It is done once, and an interrupted build goes on'
        + (f' ({done} files are compiled already).' if done else '.')
    )
    # setup.py itself and not pip: pip answers a failed build with `setup.py clean`,
    # which would throw away every file compiled so far.
    fresh = tree.parent / 'dist'
    shutil.rmtree(fresh, ignore_errors=True)
    command = [python, 'setup.py', 'bdist_wheel', '--dist-dir', fresh]
    cuda = ops != 'cpu'
    env = child_environment(
        MMCV_WITH_OPS='1',
        MAX_JOBS=jobs,
        FORCE_CUDA='1' if cuda else '0',
        # mmcv compiles its CUDA ops wherever torch sees a GPU.
        CUDA_VISIBLE_DEVICES=os.environ.get('CUDA_VISIBLE_DEVICES') if cuda else '',
        # torch finds ninja on the PATH only.
        PATH=f'{python.parent}{os.pathsep}{os.environ.get("PATH", "")}',
    )
    log = logs / 'mmcv-build.log'
    if run_logged(command, log, 'mmcv', read_ninja, env=env, cwd=tree) != 0:
        raise SetupError(explain(log))
    built = find_wheel(fresh)
    if built is None:
        raise SetupError(f'mmcv was built, but no wheel is in {fresh}; see {log}')
    keep = wheels / built.name
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        # Copied first: the cache may lie on another disk.
        part = wheels / f'{built.name}.{os.getpid()}.part'
        shutil.copyfile(built, part)
        os.replace(part, keep)
    except OSError as error:
        say(f'the wheel is not kept for another time: {error}')
        return built
    return keep


# Zero offsets make a deformable convolution an ordinary one.
CHECK_OPS = """
import sys, torch
from mmcv.ops import DeformConv2d
device = sys.argv[1]
conv = DeformConv2d(4, 4, 2, stride=2).to(device)
image = torch.randn(1, 4, 6, 6, device=device)
merged = conv(image, torch.zeros(1, 8, 3, 3, device=device))
plain = torch.nn.functional.conv2d(image, conv.weight, stride=2)
assert torch.allclose(merged, plain, atol=1e-3), (merged - plain).abs().max()
"""


def check_ops(python: Path, ops: str) -> str:
    """Run one of mmcv's ops in the environment of `python`; '' if it works."""
    device = 'cpu' if ops == 'cpu' else 'cuda'
    done = subprocess.run(
        [str(python), '-c', CHECK_OPS, device],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode == 0:
        return ''
    return (done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]
