"""Packaging and pins: nothing pulls torch, mmcv or a second OpenCV."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from support.this_stack import STACK, only_on

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / 'tools' / 'setup'))

import setup_packages  # noqa: E402
from setup_steps import STACKS, Setup  # noqa: E402

# mim's environment is another one than that of all the other files.
MIM = CHECKOUT / 'requirements' / 'mim.txt'
FILES = sorted(set((CHECKOUT / 'requirements').rglob('*.txt')) - {MIM})
# What a user's own environment brings, and no dependency list of ours may.
NEVER_PULLED = {'torch', 'torchvision', 'mmcv', 'mmengine', 'opencv-python'}


def names_of(requirements):
    """Return the normalised package names of requirement strings."""
    found = (re.match(r'[\w.-]+', text).group() for text in requirements)
    return {setup_packages.normalise(name) for name in found}


def installed_names():
    """Return the normalised names of the distributions of this environment."""
    return names_of(found.metadata['Name'] for found in metadata.distributions())


def unconditional(distribution):
    """Return the requirements that no extra has to be asked for."""
    requirements = metadata.requires(distribution) or []
    return [text for text in requirements if 'extra ==' not in text]


def test_mmlit_requires_nothing(tmp_path):
    # From setup.py as it is now: an editable installation may be older.
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', tmp_path]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    requires = (tmp_path / 'mmlit.egg-info' / 'requires.txt').read_text()
    # Sections like [det] are extras; what stands before the first one is required.
    assert requires.partition('[')[0].strip() == ''
    assert '[det]' in requires
    assert unconditional('mmlit') == []


def test_extras_are_there_and_pull_nothing_they_must_not():
    requirements = metadata.requires('mmlit')
    extras = {
        extra: names_of(text for text in requirements if f'extra == "{extra}"' in text)
        for extra in ('det', 'seg', 'dev')
    }
    assert extras['det'] == {'mmdet'}
    assert extras['seg'] == {'mmsegmentation', 'ftfy', 'regex'}
    assert extras['dev'] >= {'pytest', 'ruff'}
    assert not set().union(*extras.values()) & NEVER_PULLED


@only_on('openmmlab', 'its packages are what the extras name')
@pytest.mark.parametrize('distribution', ['mmdet', 'mmsegmentation'])
def test_what_the_extras_name_pulls_nothing_either(distribution):
    assert not names_of(unconditional(distribution)) & NEVER_PULLED


def test_mmlit_is_installed_in_editable_mode():
    import mmlit

    origin = metadata.distribution('mmlit').read_text('direct_url.json')
    assert json.loads(origin)['dir_info'] == {'editable': True}
    assert Path(mmlit.__file__).parent == CHECKOUT / 'mmlit'
    assert metadata.version('mmlit') == mmlit.__version__


def test_every_pin_is_exact_and_in_one_place():
    pins = Counter(name for file in FILES for name in setup_packages.read_pins(file))
    assert len(pins) > 40
    assert [name for name, count in pins.items() if count > 1] == []


def test_mim_shares_torch_and_the_stack():
    pins = setup_packages.read_pins(MIM)
    assert not set(pins) & NEVER_PULLED
    assert not any(name.startswith(('mm', 'opencv', 'numpy')) for name in pins)
    # As an installation of openmim leaves them, and as .venv could not have them.
    assert pins['setuptools'].startswith('60.') and pins['rich'].startswith('13.')


def test_pins_hold_one_opencv_and_a_setuptools_with_pkg_resources():
    pins = {
        name: version
        for file in FILES
        for name, version in setup_packages.read_pins(file).items()
    }
    opencv = [name for name in pins if name.startswith('opencv')]
    assert opencv == ['opencv-python-headless']
    assert int(pins['setuptools'].partition('.')[0]) < 81


def test_one_opencv_distribution_is_installed():
    opencv = [name for name in installed_names() if name.startswith('opencv')]
    assert opencv == ['opencv-python-headless']


def test_the_environment_is_the_pinned_one():
    setup = Setup(CHECKOUT, STACK)
    if Path(sys.prefix).resolve() != setup.venv.resolve():
        pytest.skip(f'running in {sys.prefix}, not in the {setup.venv} of `make setup`')
    for step in 'stack test docs torch mmcv'.split():  # pip itself may be upgraded.
        pins = setup.pins(step)
        assert setup_packages.find_missing(setup.site, pins, deep=False) == []


def test_the_packages_of_one_stack_are_installed():
    pinned = {
        stack: {
            name
            for file in (CHECKOUT / 'requirements' / stack).glob('*.txt')
            for name in setup_packages.read_pins(file)
        }
        for stack in STACKS
    }
    assert pinned.pop(STACK) <= installed_names()
    for others in pinned.values():
        assert len(others) >= 4
        assert not others & installed_names()


def test_no_file_of_the_setup_names_another_index():
    files = [MIM, *FILES, *(CHECKOUT / 'tools' / 'setup').glob('*.py')]
    files += [CHECKOUT / name for name in ('Makefile', 'setup.py', '.ci/run')]
    hosts = {
        host
        for file in files
        for host in re.findall(r'https?://([^/\s\'"]+)', file.read_text())
    }
    assert hosts == {'download.pytorch.org'}
