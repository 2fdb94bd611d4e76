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
STOCK = dict(mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmsegmentation='1.2.2')
ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}
ONEDL |= {'onedl-mmdetection': '3.5.1', 'onedl-mmsegmentation': '1.4.2'}


def stack(versions, mmcv_limit):
    """Return {file: text} of mmengine, mmcv, mmdet and mmseg, and their metadata."""
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
    **dict.fromkeys(['ftfy.py', 'regex.py', 'onnxruntime.py', 'tensorboard.py'], ''),
    'pkg_resources/__init__.py': '',
}
SOUND = {**COMMON, **stack(STOCK, '2.2.0')}
SOUND_ONEDL = {**COMMON, **stack(ONEDL, '2.4.0')}


HEADLESS = 'pip install --force-reinstall --no-deps opencv-python-headless'
BUILD_TOOLS = 'pip install "setuptools<81" wheel ninja && '
BUILD = (
    'CFLAGS="-O3 -DNDEBUG -fwrapv -g0" '
    'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
    '"mmcv>=2.0.0,<2.2.0"'
)
MMCV = BUILD_TOOLS + BUILD
ONEDL_MMCV = MMCV.replace('"mmcv>=2.0.0,<2.2.0"', '"onedl-mmcv==2.3.*"')
CUDA_MMCV = f'{BUILD_TOOLS}FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="9.0" {BUILD}'
CUDA_TORCH = "__version__ = '2.13.0'\ncuda = '13.0'\n"
TOO_OLD = NO_GPU + "def init(): raise RuntimeError('The NVIDIA driver is too old')\n"
NO_NUMPY = "def from_numpy(x): raise RuntimeError('Numpy is not available')"
NO_LIBGL = "raise ImportError('libGL.so.1: cannot open')"
SEGFAULT = 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n'

# {case: (changes to SOUND, names that cannot be imported, the finding's name, a part of
# what it says, its command)}
# fmt: off
FAULTS = {
    'no mmlit': ({}, ['mmlit'], 'mmlit-files', 'no mmlit',
        f'pip install -e {CHECKOUT}'),
    'stock and onedl': (distribution('onedl-mmcv', '2.3.6'), [], 'doubles',
        'mmcv and onedl-mmcv both bring mmcv',
        f'pip uninstall -y onedl-mmcv && {MMCV}'),
    'no pkg_resources': ({}, ['pkg_resources'], 'pkg_resources',
        'mmengine 0.10.7 needs pkg_resources', 'pip install "setuptools<81"'),
    'two OpenCVs, and the files of neither': (
        {**distribution('opencv-python'), 'cv2/__init__.py': NO_LIBGL}, [], 'opencv',
        'opencv-python and opencv-python-headless overwrite',
        f'pip uninstall -y opencv-python && {HEADLESS}'),
    'OpenCV without libGL': ({'cv2/__init__.py': NO_LIBGL}, [], 'cv2', 'libGL.so.1',
        HEADLESS),
    'no torch': ({}, ['torch'], 'torch', 'not installed', 'pip install torch'),
    'torch 1': ({'torch/version.py': "__version__ = '1.13.1'\ncuda = None\n"}, [],
        'torch', 'scaled_dot_product_attention', 'pip install --upgrade torch'),
    'a torch that dies': (
        {'torch/__init__.py': "raise OSError('libtorch.so: not found\\nmore')"}, [],
        'torch', 'OSError: libtorch.so: not found)',
        'pip install --force-reinstall --no-deps torch==2.13.0'),
    'a driver older than torch': (
        {'torch/version.py': CUDA_TORCH, 'torch/cuda.py': TOO_OLD}, [], 'devices',
        'driver is too old', 'pip uninstall -y torch && pip install torch '
        '--index-url https://download.pytorch.org/whl/cu126'),
    'a torch compiled for numpy 1': ({'torch/__init__.py': TORCH + NO_NUMPY}, [],
        'torch-numpy', 'Numpy is not available', 'pip install "numpy<2"'),
    'a torchvision of another torch': (
        {'torchvision/__init__.py': "raise RuntimeError('no torchvision::nms')"}, [],
        'torchvision', 'no torchvision::nms', 'pip uninstall -y torchvision'),
    'no mmengine': ({}, ['mmengine'], 'mmengine', 'not installed',
        'pip install "mmengine>=0.7.1,<1"'),
    'no mmcv': ({}, ['mmcv'], 'mmcv', 'not installed', MMCV),
    # It would die in its own import: the version is read first.
    'mmcv 1': (package('mmcv', '1.7.2', 'from mmcv.runner import gone'), [], 'mmcv',
        '2.0 or newer, but mmcv 1.7.2', MMCV),
    'no ops': ({'mmcv/_ext.py': None}, [], 'mmcv-ops', 'without the compiled', MMCV),
    'ops of another torch': ({'mmcv/_ext.py': "raise ImportError('so: undefined')"},
        [], 'mmcv-ops', 'so: undefined', MMCV),
    'ops that crash': ({'mmcv/_ext.py': SEGFAULT}, [], 'mmcv-ops', 'SIGSEGV', MMCV),
    'ops for the CPU, torch with a GPU': (
        {'torch/version.py': CUDA_TORCH, 'torch/cuda.py': GPU}, [], 'mmcv-cuda',
        'for the CPU only', CUDA_MMCV),
    'ops of another CUDA': ({'torch/version.py': CUDA_TORCH, 'torch/cuda.py': GPU,
        'mmcv/ops.py': OPS % '12.1'}, [], 'mmcv-cuda',
        'ops are of CUDA 12.1, torch is of CUDA 13.0', CUDA_MMCV),
    'an mmcv that mmdet and mmseg refuse': (
        {'mmcv/version.py': "__version__ = '2.2.0'\n"}, [], 'mmdet',
        'MMCV==2.2.0 is used but incompatible', MMCV),
    'an mmengine that both refuse': ({'mmengine/version.py': "__version__ = '1.0.0'\n"},
        [], 'mmdet', 'MMEngine==1.0.0 is used but incompatible',
        'pip install "mmengine>=0.7.1,<1"'),
    'a package that mmdet needs': ({'mmdet/datasets.py': 'import pycocotools'},
        ['pycocotools'], 'mmdet', 'needs pycocotools', 'pip install pycocotools'),
    'no ftfy': ({}, ['ftfy'], 'mmseg', 'imports ftfy', 'pip install ftfy'),
    'an mmcv of the other stack': (
        {**dict.fromkeys(distribution('mmcv', '2.1.0')), **distribution('onedl-mmcv',
        '2.3.6'), **package('mmcv', '2.3.6')}, [], 'mmdet',
        'MMCV==2.3.6 is used but incompatible',
        f'pip uninstall -y onedl-mmcv && {MMCV}'),
}
# The same of changes to SOUND_ONEDL: no command brings a package of the other stack.
ONEDL_FAULTS = {
    'onedl and stock': (
        {**distribution('mmcv', '2.1.0'), **distribution('mmengine', '0.10.7')}, [],
        'doubles', 'mmcv and onedl-mmcv both bring mmcv',
        'pip uninstall -y mmengine mmcv && pip install --force-reinstall --no-deps '
        f'onedl-mmengine==0.10.12 && {ONEDL_MMCV}'),
    'no mmengine': (dict.fromkeys(distribution('onedl-mmengine', '0.10.12')),
        ['mmengine'], 'mmengine', 'not installed',
        'pip install "onedl-mmengine==0.10.*"'),
    'no mmcv': (dict.fromkeys(distribution('onedl-mmcv', '2.3.6')), ['mmcv'], 'mmcv',
        'not installed', ONEDL_MMCV.replace(' --force-reinstall --no-deps', '')),
    'an mmcv that mmdet and mmseg refuse': (
        {'mmcv/version.py': "__version__ = '2.5.0'\n"}, [], 'mmdet',
        'MMCV==2.5.0 is used but incompatible', ONEDL_MMCV),
    'an mmengine of the other stack': (
        {**dict.fromkeys(distribution('onedl-mmengine', '0.10.12')),
        **distribution('mmengine', '1.0.0'), **package('mmengine', '1.0.0')}, [],
        'mmdet', 'MMEngine==1.0.0 is used but incompatible',
        'pip uninstall -y mmengine && pip install "onedl-mmengine==0.10.*"'),
    'an mmdet that is damaged': ({'mmdet/__init__.py': "raise OSError('cut off')"}, [],
        'mmdet', 'cut off',
        'pip install --force-reinstall --no-deps onedl-mmdetection==3.5.1'),
}
# fmt: on


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
    """Run the doctor with paths before the checkout, and programs after this Python."""
    own = os.path.dirname(sys.executable)
    path = os.pathsep.join([own, *map(str, programs), os.environ['PATH']])
    places = os.pathsep.join(map(str, [*paths, CHECKOUT]))
    return subprocess.run(
        [str(part) for part in (*command, *arguments)],
        **dict(capture_output=True, text=True, cwd=tempfile.gettempdir(), timeout=600),
        env={**os.environ, 'PATH': path, 'PYTHONPATH': places},
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
