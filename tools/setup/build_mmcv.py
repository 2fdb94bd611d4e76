"""Build mmcv with its compiled ops for the torch that is here, and install it.

    python build_mmcv.py                      # mmcv, of the version in VERSIONS
    python build_mmcv.py --name onedl-mmcv --cuda

For any environment with torch, pip, "setuptools<81", wheel and ninja, on Linux or macOS
with a C++ compiler; this file needs no other. An interrupted build goes on. The wheel
is kept in the user's cache, in mmlit/wheels/KEY, where KEY says what it fits.

Most of the time goes into torch's headers, which each of mmcv's files includes: they
are compiled once (a precompiled header, 430 MB for the time being), and all without
debug information: 3 minutes on two cores instead of 12. The flags are those that torch
writes down for ninja: in front of ninja, a script runs this file with --add-header.
"""

import argparse
import contextlib
import fcntl
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

PIP = (sys.executable, '-m', 'pip')
VERSIONS = {'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}
GIGABYTES_PER_JOB = 1.5  # Of memory, for one compiler with torch's headers.
COMPILER = (
    'install a C++ compiler (Debian, Ubuntu: sudo apt-get install g++; macOS: '
    'xcode-select --install), or name yours in CXX'
)
# Tried in order against the output of a failed command.
CAUSES = (
    (r'Killed signal|fatal error: Killed|out of memory|cannot allocate memory',
     'the compiler ran out of memory: try again with fewer jobs (MAX_JOBS=1)'),
    (r'No space left on device|Disk quota', 'the disk is full: free about 3 GB'),
    (r'DO NOT MATCH THE HASHES',
     'the package index serves another file than the one that was released, so '
     'nothing was installed: take an index with the files of PyPI'),
    (r"No module named '(pkg_resources|wheel|setuptools)",
     'first pip install "setuptools<81" wheel'),
    (r'Python\.h: No such file',
     'Python.h is not there: install the headers of this Python (Debian, Ubuntu: '
     'sudo apt-get install python3-dev), or take another Python (make: PYTHON=...)'),
    (r'detected CUDA version .* mismatches',
     "nvcc's CUDA differs from torch's: point CUDA_HOME at the matching toolkit, or "
     'build CPU ops (no --cuda; make: MMLIT_DEVICE=cpu)'),
    (r'unsupported GNU version|#error.*C\+\+|unrecognized .*-std=',
     'the C++ compiler does not fit: name another one in CXX'),
)  # fmt: skip
# Zero offsets make a deformable convolution an ordinary one.
CHECK = """
import sys, torch, mmcv.ops
conv = mmcv.ops.DeformConv2d(4, 4, 2, stride=2).to(sys.argv[1])
image = torch.randn(1, 4, 6, 6, device=sys.argv[1])
merged = conv(image, image.new_zeros(1, 8, 3, 3))
plain = torch.nn.functional.conv2d(image, conv.weight, stride=2)
assert torch.allclose(merged, plain, atol=1e-3), (merged - plain).abs().max()
"""


class Stop(Exception):
    """A cause that the user can act on, in plain words."""


def say(text: str) -> None:
    """Print one message."""
    print(f'[mmcv] {text}', flush=True)


def explain(what: str, output: str) -> Stop:
    """Return why `what` failed, as far as the end of its output tells."""
    text = output[-60_000:]
    causes = [f': {cure}' for sign, cure in CAUSES if re.search(sign, text, re.I)]
    errors = [line for line in text.splitlines() if re.search(r'\berror\b', line, re.I)]
    shown = '\n    '.join(errors[:8] or text.splitlines()[-15:])
    return Stop(f'{what} failed{"".join(causes[:1])}. It said:\n    {shown}')


def run(what: str, command, **options) -> str:
    """Run `command`, which does `what`, and return its output; raise if it fails."""
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, **options}
    done = subprocess.run(command, **options)
    output = done.stdout.decode(errors='replace').strip()
    if done.returncode != 0:
        raise explain(what, output or f'status {done.returncode}')
    return output


def failure(what: str, command, **options) -> str:
    """Run `command` and return why it failed, or '' if it did not."""
    try:
        run(what, command, **options)
    except Stop as error:
        return str(error)
    return ''


def wheel_key(name: str, version: str, torch: str, ops: str) -> str:
    """Return the name of what a wheel fits, usable as a folder name."""
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    system = f'{platform.system()}-{platform.machine()}'.lower()
    return f'{name}-{version}-{python}-{system}-torch-{torch}-ops-{ops}'


def count_jobs() -> int:
    """Return how many compilers to run: one a core, as far as the memory goes."""
    jobs = len(getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count()))(0))
    with contextlib.suppress(OSError, AttributeError):
        text = Path('/proc/meminfo').read_text()
        free = int(re.search(r'MemAvailable:\s+(\d+)', text).group(1)) / 2**20
        jobs = min(jobs, int(free / GIGABYTES_PER_JOB))
    return max(1, jobs)


def fetch_sources(name: str, version: str, lock, folder: Path) -> Path:
    """Return the sources in `folder`; those with the hashes in `lock`, if given."""
    tree = folder / f'{name.replace("-", "_")}-{version}'
    if not tree.is_dir():
        # In a folder of its own until it is whole; dropped if we are interrupted.
        with tempfile.TemporaryDirectory(dir=str(folder)) as scratch:
            command = [
                *PIP,
                'download',
                '--no-deps',
                '--no-binary',
                ':all:',
                '-d',
                scratch,
            ]
            command += (
                ['--require-hashes', '-r', lock] if lock else [f'{name}=={version}']
            )
            run(f'fetching {name} {version}', [*command, '--no-build-isolation'])
            (archive,) = Path(scratch).glob('*.tar.gz')
            shutil.unpack_archive(str(archive), scratch)
            os.replace(Path(scratch) / tree.name, tree)
    return tree


def add_header(header: Path) -> None:
    """Let torch's build.ninja, in this folder, include `header` precompiled."""
    file = Path('build.ninja')
    text = file.read_text(encoding='utf-8')
    flags = dict(re.findall(r'^(\w+) *= *(.*)$', text, re.M))
    command = ' '.join(flags[name] for name in ('cxx', 'cflags', 'post_cflags'))
    command = re.sub(r'\$(.)', r'\1', command)  # As ninja reads it.
    extra = ' -g0'
    refused = compile_header(header, command + extra)
    if refused and not compile_header(header, f'{command}{extra} -std=c++20'):
        # torch 2.14 is written in C++20, and mmcv asks for C++17.
        refused, extra = '', f'{extra} -std=c++20'
    if refused:
        say(f'going on without that, which takes longer: {refused}'.replace('\n', ' '))
    else:
        include = f'cflags = -include {shlex.quote(str(header))} '.replace('$', '$$')
        text = re.sub('^cflags *=', lambda found: include, text, flags=re.M)
    # nvcc's files have flags of their own.
    text = re.sub('^post_cflags *=.*', rf'\g<0>{extra}', text, flags=re.M)
    file.write_text(text, encoding='utf-8')
    say('compiling the files')


def compile_header(header: Path, command: str) -> str:
    """Compile `header`, if it is not yet; return why the compiler refuses it, or ''."""
    name, part, built = shlex.quote(str(header)), f'{header}.part', f'{header}.gch'
    if not os.path.exists(built):
        if not header.exists():
            header.write_text('#include <torch/types.h>\n', encoding='utf-8')
        say("compiling torch's headers once for all files, about half a minute")
        make = f'{command} -x c++-header {name} -o {name}.part'
        refused = failure('compiling them', make, shell=True)
        if refused:
            return refused
        # One that is newer than before would make all objects out of date.
        os.utime(part, (header.stat().st_mtime,) * 2)
        os.replace(part, built)
    use = f'{command} -include {name} -Winvalid-pch -Werror=invalid-pch -fsyntax-only'
    return failure('using them', f'{use} -x c++ /dev/null', shell=True)


def follow(lines) -> str:
    """Show how far ninja is, by the `lines` of a build; return all of them."""
    output, live = [], sys.stdout.isatty()
    begun = compiling = shown = time.monotonic()
    for line in lines:
        output.append(line)
        now = time.monotonic()
        if line.startswith('[mmcv]'):  # From add_header.
            print(line, end='', flush=True)
            compiling = now
        found = re.match(r'\s*\[(\d+)/(\d+)\] .*?([\w.-]+)\.o\b', line)
        done, total = map(int, found.groups()[:2]) if found else (0, 0)
        if found and (live or done == total or now - shown >= 20):
            shown, left = now, (now - compiling) / done * (total - done)
            spent, left = (
                f'{int(time) // 60}:{int(time) % 60:02d}'
                for time in (now - begun, left)
            )
            status = f'[{done}/{total}] {found.group(3)}, {spent} elapsed, '
            status += f'about {left} left' if done < total else 'linking'
            print(f'[mmcv] {status:<70}', end='\r' if live else '\n', flush=True)
    print(end='\n' if live else '')
    return ''.join(output)


def build_wheel(tree: Path, ops: str, lock: int) -> Path:
    """Compile the sources in `tree` and return the wheel; what is done is kept.

    `lock` is a file descriptor that all compilers inherit.
    """
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    compiler = os.environ.get('CXX', 'c++').split()[0]
    for tool, remedy in ((compiler, COMPILER), ('ninja', 'pip install ninja')):
        if shutil.which(tool, path=path) is None:
            raise Stop(f'mmcv needs {tool}, which was not found: {remedy}')
    header, dist, script = (tree.with_name(name) for name in ('pch.h', 'dist', 'ninja'))
    shutil.rmtree(str(dist), ignore_errors=True)
    ours = [sys.executable, os.path.abspath(__file__), '--add-header', str(header)]
    ours = ' '.join(map(shlex.quote, ours))
    ninja = shlex.quote(shutil.which('ninja', path=path))
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || {ours} || exit\nexec {ninja} "$@"\n'
    )
    script.chmod(0o755)
    jobs = os.environ.get('MAX_JOBS') or str(count_jobs())
    say(f'building {tree.name} with {ops} ops, {jobs} files at a time')
    env = dict(os.environ, PATH=f'{tree.parent}:{path}', PYTHONUNBUFFERED='1')
    env.update(MMCV_WITH_OPS='1', MAX_JOBS=jobs, FORCE_CUDA=str(int(ops != 'cpu')))
    if ops == 'cpu':  # mmcv compiles its CUDA ops wherever torch sees a GPU.
        env['CUDA_VISIBLE_DEVICES'] = ''
    # setup.py itself and not pip, which throws all objects away after a failure.
    command = [sys.executable, 'setup.py', 'bdist_wheel', '--dist-dir', str(dist)]
    with subprocess.Popen(
        command, cwd=str(tree), env=env, stdin=subprocess.DEVNULL, pass_fds=(lock,),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        universal_newlines=True, errors='replace',
    ) as child:  # fmt: skip
        try:
            output = follow(child.stdout)
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
    wheel = next(dist.glob('*.whl'), None)
    if child.returncode != 0 or wheel is None:
        with contextlib.suppress(OSError):
            os.remove(f'{header}.gch')
        log = tree.with_name('build.log')
        log.write_text(output, encoding='utf-8')
        raise explain(f'compiling mmcv (all of it is in {log})', output)
    return wheel


def check_ops(ops: str) -> str:
    """Run one of mmcv's ops in this environment; return what is wrong, or ''."""
    device = 'cpu' if ops == 'cpu' else 'cuda'
    return failure('one of its ops', [sys.executable, '-c', CHECK, device])


def install(wheel: Path, ops: str) -> str:
    """Install `wheel` and return what is wrong with its ops, or ''."""
    command = [*PIP, 'install', '--no-deps', '--force-reinstall', str(wheel)]
    run(f'installing {wheel.name}', command)
    return check_ops(ops)


def provide(name: str, version: str, ops: str, torch: str, hashes) -> None:
    """Install the mmcv asked for: the one in the cache, or a new one."""
    key = wheel_key(name, version, torch, ops)
    caches = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    cache = Path(caches).absolute() / 'mmlit'
    wheels, folder = cache / 'wheels' / key, cache / 'build' / key
    folder.mkdir(parents=True, exist_ok=True)
    with open(f'{folder}.lock', 'w') as lock:  # The compilers hold it, too.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say('it is being built already: waiting for that')
            fcntl.flock(lock, fcntl.LOCK_EX)
        wheel = next(wheels.glob('*.whl'), None)
        if wheel is None or install(wheel, ops):
            folder.mkdir(exist_ok=True)
            tree = fetch_sources(name, version, hashes, folder)
            wheel = build_wheel(tree, ops, lock.fileno())
            wrong = install(wheel, ops)
            if wrong:
                raise Stop(f'mmcv was built, but {wrong}')
            wheels.mkdir(parents=True, exist_ok=True)
            os.replace(str(wheel), str(wheels / wheel.name))
        shutil.rmtree(str(folder), ignore_errors=True)
    say(f'{wheel.name} is installed, and its {ops} ops work')


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--name', choices=list(VERSIONS), default='mmcv')
    parser.add_argument('--version', help='default: the tested one')
    parser.add_argument('--lock', help="pip's name==version and hash of the sources")
    parser.add_argument('--cuda', action='store_true', help='CUDA ops, by nvcc')
    parser.add_argument('--add-header', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.add_header:
        return add_header(args.add_header)
    name, version = args.name, args.version or VERSIONS[args.name]
    if args.lock:
        pin = re.search(r'^([\w-]+)==([\w.]+)', Path(args.lock).read_text(), re.M)
        name, version = pin.groups()
    code = "import torch; print(torch.__version__, torch.version.cuda or '')"
    output = run('importing torch', [sys.executable, '-W', 'ignore', '-c', code])
    torch, _, cuda = output.splitlines()[-1].partition(' ')
    home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    nvcc = shutil.which('nvcc', path=f'{home}/bin:{os.environ["PATH"]}')
    ops = f'cuda{cuda}' if args.cuda and cuda and nvcc else 'cpu'
    if args.cuda and ops == 'cpu':
        reason = 'no nvcc was found (set CUDA_HOME)' if cuda else 'torch has no CUDA'
        say(f'mmcv gets CPU ops only, so training runs on the CPU: {reason}')
    with contextlib.suppress(metadata.PackageNotFoundError):
        if metadata.version(name) == version and not check_ops(ops):
            return None  # It is there and working.
    return provide(name, version, ops, torch, args.lock)


if __name__ == '__main__':
    # A terminated build ends its compilers like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (Stop, OSError) as error:
        sys.exit(f'[mmcv] stopped: {error}')
    except KeyboardInterrupt:
        sys.exit('\n[mmcv] interrupted; the same command goes on where this stopped')
