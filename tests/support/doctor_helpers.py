"""Break environments on purpose, and run the doctor in them."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DOCTOR = CHECKOUT / 'tools' / 'doctor.py'

TORCH = """
from . import cuda, version
from .version import __version__
class Shared(list):
    def numpy(self): return self
    def sum(self): return sum(self)
from_numpy = Shared
"""
NO_GPU = """
def is_available(): return False
def device_count(): return 0
"""
GPU = """
def is_available(): return True
def device_count(): return 1
def get_device_name(): return 'H100'
def get_device_capability(index): return (9, 0)
"""
OPS = 'def get_compiling_cuda_version(): return %r\n'
# The assertions of mmdet 3.3.0 and mmseg 1.2.2; of mmcv, with the limit of a stack.
ASSERTS = """
import mmcv, mmengine
from mmcv.version import __version__
assert __version__ < %r, f'MMCV=={__version__} is used but incompatible.'
from mmengine.version import __version__
assert __version__ < '1', f'MMEngine=={__version__} is used but incompatible.'
"""


def package(name, version, text=''):
    """Return {file: text} of a stub package."""
    return {
        f'{name}/__init__.py': text,
        f'{name}/version.py': f"__version__ = '{version}'\n",
    }


def distribution(name, version='1.0'):
    """Return {file: text} of the metadata that pip leaves."""
    file = f'{name.replace("-", "_")}-{version}.dist-info/METADATA'
    return {file: f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'}


# What the tests themselves run on is not installed, as far as metadata tell: of the
# stacks, a stubbed environment is of the one that its stubs say, whichever runs it.
STUBS_ALONE = """
import sys
from importlib import metadata
find = metadata.MetadataPathFinder.find_distributions
def find_outside(context=metadata.DistributionFinder.Context()):
    path = [place for place in context.path if not place.startswith(sys.prefix)]
    return find(metadata.DistributionFinder.Context(name=context.name, path=path))
metadata.MetadataPathFinder.find_distributions = find_outside
"""
STOCK = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
}
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}


def stack(versions, mmcv_limit):
    """Return {file: text} of mmengine, mmcv, mmdet and mmseg, and their metadata.

    Args:
        versions: {distribution: version}, in this order.
        mmcv_limit: The first mmcv that is too new for mmdet and mmseg.
    """
    names = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
    files = {}
    for name, (published, version) in zip(names, versions.items(), strict=True):
        framework = name in ('mmdet', 'mmseg')
        files.update(package(name, version, ASSERTS % mmcv_limit if framework else ''))
        for part in ('datasets', 'engine', 'evaluation', 'models') * framework:
            files[f'{name}/{part}.py'] = ''
        files.update(distribution(published, version))
    files['mmengine/utils/package_utils.py'] = 'def f():\n    import pkg_resources\n'
    files['mmcv/_ext.py'] = 'def deform_conv_forward(): pass\n'
    files['mmcv/ops.py'] = OPS % 'not available'
    return files


# Stubs with which every check of `--quick` is content, but for mmengine to mmseg.
COMMON = {
    'sitecustomize.py': STUBS_ALONE,
    **package('numpy', '2.4.0', "__version__ = '2.4.0'\ndef ones(n): return [1.0] * n"),
    **package('cv2', '5.0', "__version__ = '5.0'"),
    **distribution('opencv-python-headless', '5.0'),
    **package('torch', '2.13.0+cpu', TORCH),
    **distribution('torch', '2.13.0+cpu'),
    'torch/cuda.py': NO_GPU,
    'torch/version.py': "__version__ = '2.13.0+cpu'\ncuda = None\n",
    'pkg_resources/__init__.py': '',
    'ftfy.py': '',
    'regex.py': '',
    'onnxruntime.py': '',
    'tensorboard.py': '',
}
SOUND = {**COMMON, **stack(STOCK, '2.2.0')}
SOUND_ONEDL = {**COMMON, **stack(ONEDL, '2.4.0')}


def write(folder, files, block=()):
    """Write stubs, and what makes the names in `block` impossible to import."""
    hidden = ''.join(f'sys.modules[{name!r}] = None\n' for name in block)
    start = files.get('sitecustomize.py', '')
    files = {**files, 'sitecustomize.py': f'{start}import sys\n{hidden}'}
    for name, text in files.items():
        if text is not None:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def run(*arguments, paths=(), programs=(), command=(sys.executable, DOCTOR)):
    """Run the doctor.

    Args:
        arguments: Of the command line.
        paths: What PYTHONPATH begins with; the checkout is last.
        programs: Folders of programs that go before all but this Python's.
        command: How the doctor is started.

    Returns:
        What subprocess.run gives.
    """
    own = os.path.dirname(sys.executable)
    path = os.pathsep.join([own, *map(str, programs), os.environ['PATH']])
    places = os.pathsep.join(map(str, [*paths, CHECKOUT]))
    return subprocess.run(
        [str(part) for part in (*command, *arguments)],
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        env={**os.environ, 'PATH': path, 'PYTHONPATH': places},
        timeout=600,
    )


def examine(*arguments, **places):
    """Run the doctor with --json; return (exit status, {check: its finding})."""
    done = run('--json', *arguments, **places)
    assert done.stderr == '', done.stderr
    findings = json.loads(done.stdout)['findings']
    by_name = {finding['name']: finding for finding in findings}
    assert len(by_name) == len(findings)
    return done.returncode, by_name


def of_level(findings, level):
    """Return the names of the findings of a level."""
    return [name for name, finding in findings.items() if finding['level'] == level]
