"""A broken environment gives one sentence; another version only a warning.

Every case runs in a process of its own, over stub packages that shadow the real ones.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.doctor_helpers import STUBS_ALONE

CHECKOUT = Path(__file__).resolve().parents[2]
ERROR = 'mmlit.errors.UnusableEnvironmentError: '
MMCV = 'pip install --no-build-isolation --no-cache-dir'
PKG_RESOURCES_USER = 'def f():\n    import pkg_resources\n'

# {file: text}: packages that satisfy every check, in tested versions.
SOUND = {
    'sitecustomize.py': STUBS_ALONE,
    'torch/__init__.py': '',
    'torch/version.py': "__version__ = '2.13.0+cpu'\n",
    'mmengine/__init__.py': '',
    'mmengine/version.py': "__version__ = '0.10.7'\n",
    'mmengine/utils/package_utils.py': PKG_RESOURCES_USER,
    'pkg_resources/__init__.py': '',
    'mmcv/__init__.py': '',
    'mmcv/version.py': "__version__ = '2.1.0'\n",
    'mmcv/_ext.py': 'def deform_conv_forward(): pass\n',
    'mmengine-0.10.7.dist-info/METADATA': 'Name: mmengine\nVersion: 0.10.7\n',
    'mmcv-2.1.0.dist-info/METADATA': 'Name: mmcv\nVersion: 2.1.0\n',
}
# mmcv as the continuation brings it: its version stands in the metadata alone.
ONEDL_MMCV = {
    'mmcv/version.py': None,
    'mmcv-2.1.0.dist-info/METADATA': None,
    'onedl_mmcv-2.3.6.dist-info/METADATA': 'Name: onedl-mmcv\nVersion: 2.3.6\n',
}
PACKAGE = f"""
import sys, types; sys.modules['mmlit'] = types.ModuleType('mmlit')
sys.modules['mmlit'].__path__ = [{str(CHECKOUT / 'mmlit')!r}]
"""
CHECK = 'from mmlit.environment import check_environment; check_environment()'


def run_python(code, stubs=None, folder=None, **environ):
    """Run `code` in a new process in which `stubs` shadow what is installed."""
    paths = [str(CHECKOUT)]
    for name, text in (stubs or {}).items():
        file = folder / 'stubs' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        paths = [str(folder / 'stubs'), str(CHECKOUT)]
    env = {**os.environ, **environ, 'PYTHONPATH': os.pathsep.join(paths)}
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=env
    )


def blocking(*names):
    """Return code after which importing `names` fails as if they were not there."""
    return ''.join(f'import sys; sys.modules[{name!r}] = None\n' for name in names)


def run_stubbed(tmp_path, changes=(), block=(), code=None, **environ):
    """Import mmlit over SOUND stubs with `changes`; the text None removes a file."""
    stubs = {**SOUND, **dict(changes)}
    stubs = {name: text for name, text in stubs.items() if text is not None}
    # The check alone, not all of mmlit, which no stub could satisfy.
    code = blocking(*block) + (code or PACKAGE + CHECK)
    return run_python(code, stubs, tmp_path, **environ)


def assert_one_sentence(done, *parts):
    """Assert that `done` failed with one sentence of ours that holds `parts`."""
    assert done.returncode == 1, done.stderr
    *traceback, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith(ERROR), done.stderr
    for part in parts:
        assert part in sentence
    # Our own frames alone, in one traceback: nothing of torch, mmengine or mmcv.
    assert done.stderr.count('Traceback') == 1, done.stderr
    frames = [line for line in traceback if line.lstrip().startswith('File ')]
    assert all('mmlit' in line or '"<string>"' in line for line in frames), done.stderr


FAILURES = {
    'no torch': ({}, ['torch'], ['mmlit needs torch', 'pip install torch']),
    'no mmengine': ({}, ['mmengine'], ['mmlit needs mmengine', '"mmengine>=0.7.1,<1"']),
    'no mmcv': ({}, ['mmcv'], ['mmlit needs mmcv, which is not installed', MMCV]),
    'no ops': (
        {'mmcv/_ext.py': None},
        [],
        ['mmcv 2.1.0 is installed without', MMCV, '--force-reinstall'],
    ),
    'ops of another torch': (
        {'mmcv/_ext.py': "raise ImportError('_ext.so: undefined symbol: _ZN3c10')"},
        [],
        ['do not load with torch 2.13.0+cpu', 'undefined symbol', MMCV],
    ),
    'ops without deformable convolution': (
        {'mmcv/_ext.py': ''},
        [],
        ['without the compiled ops', MMCV],
    ),
    'mmcv 1.x': (
        # It would die in its own import: the version is read first.
        {
            'mmcv/version.py': "__version__ = '1.7.2'\n",
            'mmcv/__init__.py': 'from mmcv.runner import gone',
        },
        [],
        ['mmcv 2.0 or newer', 'mmcv 1.7.2', '"mmcv>=2.0.0,<2.2.0"'],
    ),
    'mmcv left as an empty folder': (
        {'mmcv/__init__.py': None, 'mmcv/version.py': None, 'mmcv/_ext.py': None},
        [],
        [MMCV],
    ),
    'no pkg_resources': (
        {},
        ['pkg_resources'],
        ['mmengine 0.10.7 needs pkg_resources', 'pip install "setuptools<81"'],
    ),
    'mmcv needs a missing package': (
        {'mmcv/__init__.py': 'import cv2'},
        ['cv2'],
        ['mmcv 2.1.0 cannot be', 'needs cv2', 'pip install opencv-python-headless'],
    ),
    'torch that dies': (
        {'torch/__init__.py': "raise OSError('libfoo.so: not found\\nsecond line')"},
        [],
        ['torch 2.13.0+cpu', 'OSError: libfoo.so: not found)', '--force-reinstall'],
    ),
}


@pytest.mark.parametrize('case', FAILURES)
def test_broken_environment_gives_one_sentence(tmp_path, case):
    changes, block, parts = FAILURES[case]
    if case == 'mmcv left as an empty folder':
        # A namespace package loses to a real one elsewhere: shut that out.
        code = 'import sys; sys.path[:] = [p for p in sys.path if "site-" not in p]\n'
        changes = {**changes, 'mmcv/left.txt': ''}
        done = run_stubbed(tmp_path, changes, code=code + 'import mmlit')
    else:
        # All of `import mmlit`: it must fail before any other import of its own.
        done = run_stubbed(tmp_path, changes, block, 'import mmlit')
    assert_one_sentence(done, *parts)


def test_sound_environment_is_silent(tmp_path):
    done = run_stubbed(tmp_path)
    assert (done.returncode, done.stderr) == (0, '')


def test_mmengine_without_pkg_resources_in_its_source_needs_none(tmp_path):
    source = {'mmengine/utils/package_utils.py': '# no pkg_resources\nimport json\n'}
    done = run_stubbed(tmp_path, source, ['pkg_resources'])
    assert (done.returncode, done.stderr) == (0, '')


def test_untested_versions_warn_once_and_in_one_line(tmp_path):
    changes = {
        'torch/version.py': "__version__ = '2.4.1'\n",
        'mmcv/version.py': "__version__ = '2.2.0'\n",
    }
    done = run_stubbed(tmp_path, changes)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('UserWarning') == 1
    warning = next(x for x in done.stderr.splitlines() if 'UserWarning' in x)
    assert 'torch 2.4.1 (tested: 2.13), mmcv 2.2.0 (tested: 2.1)' in warning
    assert 'mmengine' not in warning


def test_only_the_first_process_of_a_run_warns(tmp_path):
    changes = {'torch/version.py': "__version__ = '2.4.1'\n"}
    done = run_stubbed(tmp_path, changes, RANK='1')
    assert (done.returncode, done.stderr) == (0, '')


def test_the_continued_distribution_is_named_in_the_command(tmp_path):
    changes = {**ONEDL_MMCV, 'mmcv/_ext.py': None}
    done = run_stubbed(tmp_path, changes, code='import mmlit')
    assert_one_sentence(done, 'mmcv 2.3.6 is installed without', 'onedl-mmcv')


def test_the_continued_distribution_has_tested_versions_of_its_own(tmp_path):
    done = run_stubbed(tmp_path, ONEDL_MMCV)
    assert (done.returncode, done.stderr) == (0, '')
    changes = {**ONEDL_MMCV, 'mmcv/version.py': "__version__ = '2.1.0'\n"}
    done = run_stubbed(tmp_path, changes)
    assert 'mmcv 2.1.0 (tested: 2.3)' in done.stderr


def test_import_works_without_mmdet_and_mmseg():
    code = blocking('mmdet', 'mmseg') + 'import mmlit; print(mmlit.LIT.__name__)'
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, 'LIT\n'), done.stderr


def test_import_is_silent_and_leaves_mmdet_and_mmseg_alone():
    code = 'import mmlit, sys\n'
    code += "print([m for m in ('mmdet', 'mmseg') if m in sys.modules])"
    done = run_python(code)
    assert (done.stdout, done.stderr) == ('[]\n', '')


def test_a_config_shows_the_sentence_last(tmp_path):
    # custom_imports replaces an ImportError by advice about PYTHONPATH.
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmlit'])\n")
    code = blocking('mmcv') + 'from mmengine.config import Config\n'
    code += f'Config.fromfile({str(config)!r})'
    done = run_python(code)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(ERROR + 'mmlit needs mmcv')
