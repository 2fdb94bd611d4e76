"""List the checks, in the order in which one depends on another.

Why each matters is said here; what it finds, in the check_*.py that it is from.
"""

from functools import partial
from typing import Callable, NamedTuple

from . import check_cuda, check_imports, check_installed, check_runs
from .install import install_command, mmcv_command, mmlit_command, reinstall_command


class Check(NamedTuple):
    """One thing to look at.

    Attributes:
        name: What a report calls it; `{device}` is filled in.
        why: Why it matters.
        run: Returns what it saw, or raises `Fault` or `Advice`.
        mend: Returns the command for what nobody foresaw, such as a crash.
        needs: Names of the checks without which this one would say nothing new.
        per_device: Whether it is run once a device, which `run` and `mend` are given.
        slow: Whether `--quick` leaves it out.
    """

    name: str
    why: str
    run: Callable[..., str]
    mend: Callable[..., str]
    needs: str = ''
    per_device: bool = False
    slow: bool = False


def _package(name: str, why: str, needs: str = '', run=None) -> Check:
    run = run or partial(check_imports.check_import, name)
    return Check(name, why, run, partial(reinstall_command, name), needs)


def _framework(name: str) -> Check:
    why = f'{check_imports.USES[name]}; it asserts versions of mmcv and mmengine'
    run = partial(check_imports.check_framework, name)
    return _package(name, why, 'mmcv-ops torchvision', run)


def _optional(name: str) -> Check:
    run = partial(check_installed.check_optional, name)
    return Check(name, 'optional', run, partial(install_command, name))


CHECKS = (
    Check(
        'python', 'the tests run on one version',
        check_installed.check_python, check_installed.python_command,
    ),
    Check(
        'mmlit-files', '`custom_imports` has to find mmlit from any folder',
        check_installed.check_mmlit_files, mmlit_command,
    ),
    Check(
        'doubles', 'two distributions of one package overwrite each other',
        check_installed.check_doubles, check_installed.doubles_command,
    ),
    Check(
        'pkg_resources',
        'mmengine imports it for every `mmdet::` base; setuptools 81 dropped it',
        check_installed.check_pkg_resources, partial(install_command, 'pkg_resources'),
    ),
    _package('numpy', 'all of it needs numpy'),
    Check(
        'opencv', 'all of them install the same files',
        check_installed.check_opencv, check_installed.opencv_command,
    ),
    Check(
        'cv2', 'mmcv reads images with it',
        check_imports.check_cv2, check_installed.opencv_command, 'numpy',
    ),
    _package('torch', 'all of it needs torch', run=check_imports.check_torch),
    Check(
        'devices', 'else training runs on the CPU',
        check_cuda.check_devices, check_cuda.torch_command, 'torch',
    ),
    Check(
        'torch-numpy', 'datasets give arrays, models take tensors',
        check_imports.check_torch_numpy, check_imports.numpy_command, 'torch numpy',
    ),
    Check(
        'torchvision', 'a broken one ends every Runner of mmengine',
        check_imports.check_torchvision, check_imports.torchvision_command,
        'torch torch-numpy',
    ),
    _package(
        'mmengine', 'mmlit, mmdet and mmseg are built on it',
        'doubles pkg_resources torch torch-numpy cv2',
    ),
    Check(
        'mmcv', 'deformable token merging is built on it',
        check_imports.check_mmcv, mmcv_command, 'mmengine',
    ),
    Check(
        'mmcv-ops', 'one of them is the deformable convolution',
        check_imports.check_ops, mmcv_command, 'mmcv',
    ),
    Check(
        'mmcv-cuda', 'ops of another build have no kernel for the GPU',
        check_cuda.check_mmcv_cuda, check_cuda.cuda_command, 'mmcv-ops devices',
    ),
    _framework('mmdet'),
    _framework('mmseg'),
    Check(
        'deform-conv/{device}', 'ops can load, and crash when they run',
        check_runs.check_deform_conv, check_runs.deform_conv_command, 'mmcv-ops',
        per_device=True, slow=True,
    ),
    Check(
        'mmlit', 'this is what a config imports',
        check_imports.check_mmlit, mmlit_command, 'mmlit-files mmcv-ops', slow=True,
    ),
    Check(
        'checkpoint',
        'torch 2.6 refuses them without mmlit: no `--resume`, no `test.py`',
        check_runs.check_checkpoint, check_runs.checkpoint_command, 'mmlit', slow=True,
    ),
    Check(
        'lit/{device}', 'the model itself',
        check_runs.check_lit, check_runs.lit_command, 'mmlit deform-conv/{device}',
        per_device=True, slow=True,
    ),
    Check(
        'versions', 'mmlit was tested with one of each',
        check_installed.check_versions, lambda: '',
    ),
    _optional('onnxruntime'),
    _optional('tensorboard'),
)  # fmt: skip
BY_NAME = {check.name: check for check in CHECKS}
