"""Import mmlit in environments that are broken: one sentence, or a warning.

Every case runs in a process of its own, over stub packages that shadow the real ones.
"""

import os
import subprocess
import sys

import pytest

from support.doctor_helpers import (
    CHECKOUT,
    FAULTS,
    SOUND,
    SOUND_ONEDL,
    distribution,
    write,
)

ERROR = 'mmlit.errors.UnusableEnvironmentError: '
# The check alone, not all of mmlit, which no stub could satisfy.
CHECK = f"""
import sys, types; sys.modules['mmlit'] = types.ModuleType('mmlit')
sys.modules['mmlit'].__path__ = [{str(CHECKOUT / 'mmlit')!r}]
from mmlit.environment import check_environment; check_environment()
"""


def run_python(code, *paths, **environ):
    """Run `code` in a new process in which the stubs of `paths` go first."""
    paths = os.pathsep.join(map(str, [*paths, CHECKOUT]))
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, **environ, 'PYTHONPATH': paths},
    )


def run_stubbed(folder, changes=(), block=(), code=CHECK, sound=SOUND, **environ):
    """Run `code` over sound stubs with `changes`; the text None removes a file."""
    write(folder / 'stubs', {**sound, **dict(changes)}, block)
    return run_python(code, folder / 'stubs', **environ)


def assert_one_sentence(done, *parts):
    """Assert that `done` failed with one sentence of ours that holds `parts`."""
    assert done.returncode == 1, done.stderr
    *traceback, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith(ERROR), done.stderr
    assert all(part in sentence for part in parts), sentence
    # Our own frames alone, in one traceback: nothing of torch, mmengine or mmcv.
    assert done.stderr.count('Traceback') == 1, done.stderr
    frames = [line for line in traceback if line.lstrip().startswith('File ')]
    assert all('mmlit' in line or '"<string>"' in line for line in frames), done.stderr


# The doctor's faults that `import mmlit` must name as well.
REFUSED = [
    case
    for case, (_, _, name, _, _) in FAULTS.items()
    if name in ('torch', 'pkg_resources', 'mmengine', 'mmcv', 'mmcv-ops')
    and case not in ('torch 1', 'ops that crash')
]


@pytest.mark.parametrize('case', REFUSED)
def test_broken_environment_gives_one_sentence(tmp_path, case):
    changes, block, _, seen, mend = FAULTS[case]
    # All of `import mmlit`: it must fail before any other import of its own.
    done = run_stubbed(tmp_path, changes, block, 'import mmlit')
    assert_one_sentence(done, seen, f': {mend}')


def test_mmcv_left_as_an_empty_folder(tmp_path):
    gone = dict.fromkeys(name for name in SOUND if name.startswith('mmcv/'))
    # A namespace package loses to a real one elsewhere: shut that out.
    code = 'import sys; sys.path[:] = [p for p in sys.path if "site-" not in p]\n'
    changes = {**gone, 'mmcv/left.txt': ''}
    done = run_stubbed(tmp_path, changes, code=code + 'import mmlit')
    assert_one_sentence(done, 'mmlit needs mmcv', 'pip install --no-build-isolation')


def test_the_continued_distribution_is_named_in_the_command(tmp_path):
    changes = {'mmcv/_ext.py': None}
    done = run_stubbed(tmp_path, changes, code='import mmlit', sound=SOUND_ONEDL)
    assert_one_sentence(done, 'mmcv 2.3.6 is installed without', 'onedl-mmcv')


@pytest.mark.parametrize(
    ('changes', 'block', 'sound'),
    [
        ({}, [], SOUND),
        ({}, [], SOUND_ONEDL),
        # The continuation has no version beside the code, but in the metadata.
        ({'mmcv/version.py': None}, [], SOUND_ONEDL),
        ({'mmengine/utils/package_utils.py': 'import json'}, ['pkg_resources'], SOUND),
    ],
)
def test_sound_environment_is_silent(tmp_path, changes, block, sound):
    done = run_stubbed(tmp_path, changes, block, sound=sound)
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
    # In the first process of a run only.
    done = run_python(CHECK, tmp_path / 'stubs', RANK='1')
    assert (done.returncode, done.stderr) == (0, '')


def test_the_continued_distribution_has_tested_versions_of_its_own(tmp_path):
    changes = {'mmcv/version.py': "__version__ = '2.1.0'\n"}
    changes.update(distribution('onedl-mmcv', '2.3.6'))
    done = run_stubbed(tmp_path, changes, sound=SOUND_ONEDL)
    assert 'mmcv 2.1.0 (tested: 2.3)' in done.stderr


def test_import_is_silent_and_works_without_mmdet_and_mmseg():
    code = """
import sys; sys.modules.update(mmdet=None, mmseg=None)
import mmlit; print(mmlit.LIT.__name__)
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'LIT\n', '')


def test_a_config_shows_the_sentence_last(tmp_path):
    # custom_imports replaces an ImportError by advice about PYTHONPATH.
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['mmlit'])\n")
    code = 'import sys; sys.modules["mmcv"] = None\n'
    code += 'from mmengine.config import Config\n'
    done = run_python(code + f'Config.fromfile({str(config)!r})')
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(ERROR + 'mmlit needs mmcv')
