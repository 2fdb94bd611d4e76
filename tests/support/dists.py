"""Read the pinned versions; build and install the distributions of mmlit."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
REQUIREMENTS = CHECKOUT / 'requirements'


def read_pins(name: str) -> dict:
    """Return the {name: version} of a list in requirements/; all else fails."""
    pins = {}
    for line in (REQUIREMENTS / name).read_text(encoding='utf-8').splitlines():
        if line.strip() and not line.startswith('#'):
            pin = re.fullmatch(r'([a-z0-9.-]+)==([\w.+!-]+)', line)
            assert pin, f'{name}: {line!r}'
            pins[pin.group(1)] = pin.group(2)
    return pins


def build(source, out, kind):
    """Build a wheel ('bdist_wheel') or an 'sdist' of a tree into `out`."""
    out.mkdir()
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(out)]
    if kind == 'bdist_wheel':
        command += ['build', '--build-base', str(out / 'build')]
    command += [kind, '--dist-dir', str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = [*out.glob('mmlit-*.whl'), *out.glob('mmlit-*.tar.gz')]
    return built


def unpack(sdist, out):
    """Return the source tree in an sdist."""
    with tarfile.open(sdist) as members:
        members.extractall(out, filter='data')
    (tree,) = out.iterdir()
    return tree


def install(wheel, site):
    """Install a wheel into the folder `site`, to be put on a PYTHONPATH."""
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps']
    subprocess.run([*command, '--target', str(site), str(wheel)], check=True)
