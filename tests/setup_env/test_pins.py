"""Check pins, their hashes, and that this environment is the pinned one."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from support.dists import REQUIREMENTS, read_pins
from support.this_stack import STACK

CHECKOUT = REQUIREMENTS.parent
LISTS = sorted(file.name for file in REQUIREMENTS.glob('*.in'))
# What a user's own environment brings, and no dependency list of ours may.
NEVER_PULLED = {'torch', 'torchvision', 'mmcv', 'mmengine', 'opencv-python'}
# The lines of `pip check` that are right: the headless OpenCV goes by another name, and
# onedl-mmdetection uses a part of imaug that needs none of these.
EXPECTED_CHECK = (
    r'\S+ \S+ requires opencv-python, which is not installed\.'
    r'|imaug \S+ requires imagecorruptions-imaug, which is not installed\.'
    r'|imaug \S+ has requirement opencv-python(-headless)?<\S+, but you have '
    r'opencv-python-headless \S+\.|No broken requirements found\.'
)


def names_of(requirements):
    """Return the normalised package names of requirement strings."""
    found = (re.match(r'[\w.-]+', text).group() for text in requirements)
    return {re.sub(r'[-_.]+', '-', name).lower() for name in found}


INSTALLED = names_of(found.metadata['Name'] for found in metadata.distributions())


@pytest.mark.parametrize('name', LISTS)
def test_a_lock_has_the_pins_of_its_list_each_with_hashes(name):
    lock = (REQUIREMENTS / name).with_suffix('.lock').read_text()
    entry = r'^([\w.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)\n'
    entries = re.findall(entry, lock, re.M)
    assert {pin: version for pin, version, _ in entries} == read_pins(name)
    assert re.sub(entry, '', lock, flags=re.M).startswith('#')
    assert 'http' not in lock  # No index: that is pip's to know.
    for pin, _, hashes in entries:
        if pin in ('numpy', 'scipy'):  # For each Python, system and machine.
            assert hashes.count('sha256') > 30


def test_every_pin_is_in_one_place():
    assert len(LISTS) == len(list(REQUIREMENTS.glob('*.lock'))) == 7
    names = ['torch.txt', *(name for name in LISTS if name != 'mim.in')]
    pins = Counter(pin for name in names for pin in read_pins(name))
    assert len(pins) > 140
    assert [pin for pin, count in pins.items() if count > 1] == []
    assert [pin for pin in pins if pin.startswith('opencv')] == [
        'opencv-python-headless'
    ]
    # mmcv and mmengine import pkg_resources.
    assert int(read_pins('build.in')['setuptools'].partition('.')[0]) < 81


def test_every_pinned_package_has_a_licence():
    page = (CHECKOUT / 'docs' / 'licences.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\S+) \| (\S+) \| ([^|]+) \|$', page, re.M)
    listed = {(*names_of([name]), version) for name, version, _ in rows}
    pins = {pin for name in ('torch.txt', *LISTS) for pin in read_pins(name).items()}
    assert pins <= listed


def test_this_environment_is_the_pinned_one():
    venv = CHECKOUT / {'openmmlab': '.venv', 'onedl': '.venv-onedl'}[STACK]
    if Path(sys.prefix).resolve() != venv.resolve():
        pytest.skip(f'running in {sys.prefix}, not in the {venv} of `make setup`')
    mmcv = {'openmmlab': 'mmcv.in', 'onedl': 'onedl-mmcv.in'}[STACK]
    for name in ('common.in', 'torch.txt', f'{STACK}.in', mmcv):
        for pin, version in read_pins(name).items():
            assert metadata.version(pin).partition('+')[0] == version
    other = {'openmmlab': 'onedl', 'onedl': 'openmmlab'}[STACK]
    assert not set(read_pins(f'{other}.in')) & INSTALLED
    assert [name for name in INSTALLED if name.startswith('opencv')] == [
        'opencv-python-headless'
    ]


def test_pip_check_has_no_complaint_but_the_known_ones():
    command = [sys.executable, '-m', 'pip', 'check']
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        assert re.fullmatch(EXPECTED_CHECK, line), line


def test_mmlit_requires_nothing(tmp_path):
    # From setup.py as it is now: an editable installation may be older.
    command = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', tmp_path]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    requires = (tmp_path / 'mmlit.egg-info' / 'requires.txt').read_text()
    # Sections like [det] are extras; what stands before the first one is required.
    required, _, extras = requires.partition('[')
    assert required.strip() == ''
    packages = {
        head: names_of(text.split())
        for head, text in re.findall(r'^\[?(\w+)\]\n((?:[^\[\n].*\n?)*)', extras, re.M)
    }
    assert packages['det'] == {'mmdet'}
    assert packages['seg'] == {'mmsegmentation', 'ftfy', 'regex'}
    assert packages['dev'] >= {'pytest', 'ruff'}
    assert not set().union(*packages.values()) & NEVER_PULLED


def test_mmlit_is_installed_in_editable_mode():
    import mmlit

    origin = metadata.distribution('mmlit').read_text('direct_url.json')
    assert json.loads(origin)['dir_info'] == {'editable': True}
    assert metadata.version('mmlit') == mmlit.__version__


def test_no_file_of_the_setup_names_another_index():
    files = [*REQUIREMENTS.iterdir(), *(CHECKOUT / 'tools' / 'setup').glob('*.py')]
    files += [CHECKOUT / name for name in ('Makefile', 'setup.py', '.ci/run')]
    hosts = {
        host
        for file in files
        for host in re.findall(r'https?://([^/\s\'"]+)', file.read_text())
    }
    assert hosts == {'download.pytorch.org'}
