"""Check that packages import, and that they were built for each other.

`import mmlit` runs the first of these. Each import may fail or end the process
(worker.py), so all are inside of functions.
"""

import importlib
import importlib.util
from typing import List

from .check_installed import opencv_command
from .findings import Advice, Fault, first_line
from .install import (
    ONEDL,
    distribution_of,
    install_command,
    major_minor,
    mmcv_command,
    mmlit_command,
    older_than,
    reinstall_command,
    version_of,
)

# mmseg imports these but declares them in an extra only.
UNDECLARED = {'mmdet': (), 'mmseg': ('ftfy', 'regex')}
# Training needs these parts, and importing them imports what they need.
PARTS = ('datasets', 'engine', 'evaluation', 'models')
USES = {'mmdet': 'detection', 'mmseg': 'segmentation'}


def check_import(name: str) -> str:
    """Import `name`, a package or its module; return the package's version.

    Raises:
        Fault: It is missing or broken.
    """
    package = name.partition('.')[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition('.')[0]
        if missing != package:
            raise Fault(
                f'{named(package)} cannot be imported because it needs {missing}, '
                'which is not installed',
                install_command(missing),
            ) from None
        if error.name in (None, package):
            raise _missing(package) from None
        raise _broken(package, error) from None
    except Exception as error:
        raise _broken(package, error) from None
    # A folder without __init__.py (left by an uninstall) imports as an empty package.
    if getattr(module, '__file__', None) is None:
        raise _missing(package)
    return version_of(package)


def _missing(name: str) -> Fault:
    return Fault(f'mmlit needs {name}, which is not installed', install_command(name))


def _broken(name: str, error: Exception) -> Fault:
    return Fault(
        f'{named(name)} is installed but cannot be imported ({first_line(error)})',
        reinstall_command(name),
    )


def named(name: str) -> str:
    """Return a package's name and version."""
    return f'{name} {version_of(name)}'.rstrip()


def check_torch() -> str:
    """Import torch 2."""
    if older_than('torch', (2, 0)):
        raise Fault(
            f'{named("torch")} has no scaled_dot_product_attention, torch 2.0 has',
            'pip install --upgrade torch',
        )
    return check_import('torch')


def check_mmcv() -> str:
    """Import mmcv 2."""
    # By the version, before the import: mmcv 1.x dies in many ways on its own.
    if older_than('mmcv', (2, 0)):
        version = version_of('mmcv')
        raise Fault(
            f'mmlit needs mmcv 2.0 or newer, but mmcv {version} is installed',
            mmcv_command(),
        )
    return check_import('mmcv')


def check_ops() -> str:
    """Import mmcv's compiled ops."""
    try:
        ops = importlib.import_module('mmcv._ext')
    except ModuleNotFoundError:
        ops = None
    except Exception as error:
        raise Fault(
            f'the compiled ops of {named("mmcv")} do not load with '
            f'{named("torch")}, so they were built for another one '
            f'({first_line(error)})',
            mmcv_command(),
        ) from None
    if not hasattr(ops, 'deform_conv_forward'):
        raise Fault(
            f'{named("mmcv")} is installed without the compiled ops that mmlit needs '
            '(deform_conv2d)',
            mmcv_command(),
        )
    return 'they load'


# --- the doctor alone -------------------------------------------------------------


def check_cv2() -> str:
    """Import OpenCV."""
    try:
        check_import('cv2')
    except Fault as fault:  # Missing, without libGL, of another numpy: one cure.
        raise Fault(fault.seen, opencv_command()) from None
    return str(importlib.import_module('cv2').__version__)


def check_torch_numpy() -> str:
    """Exchange an array between torch and numpy."""
    import numpy
    import torch

    try:
        there_and_back = torch.from_numpy(numpy.ones(2)).numpy()
    except Exception as error:
        raise Fault(
            f'torch {torch.__version__} and numpy {numpy.__version__} exchange no '
            f'arrays ({first_line(error)})',
            numpy_command(),
        ) from None
    return f'{there_and_back.sum():g} of 2 elements came back'


def numpy_command() -> str:
    """Return the command for a numpy that older builds know."""
    if (major_minor(version_of('numpy')) or (0, 0)) >= (2, 0):
        return 'pip install "numpy<2"'
    return reinstall_command('numpy')


def check_torchvision() -> str:
    """Import torchvision, if it is there."""
    if importlib.util.find_spec('torchvision') is None:
        return 'not there, and not needed'
    try:
        importlib.import_module('torchvision')
    except Exception as error:
        raise Fault(
            f'installed, but cannot be imported ({first_line(error)})',
            torchvision_command(),
        ) from None
    return version_of('torchvision')


def torchvision_command() -> str:
    """Return the command that removes it: nothing here needs it."""
    return 'pip uninstall -y torchvision'


def check_framework(name: str) -> str:
    """Import mmdet or mmseg with all that a training needs of it."""
    if importlib.util.find_spec(name) is None:
        raise Advice(f'not installed: no {USES[name]}', install_command(name))
    missing = _without_spec(UNDECLARED[name])
    if missing:
        raise Fault(
            f'{name} imports {" and ".join(missing)}, which it does not declare and '
            'which is not installed',
            f'pip install {" ".join(missing)}',
        )
    try:
        importlib.import_module(name)
    except AssertionError as error:
        raise Fault(first_line(error), _asserted_command(name, error)) from None
    except Exception:
        check_import(name)
    for part in PARTS:
        check_import(f'{name}.{part}')
    return version_of(name)


def _asserted_command(name: str, error: AssertionError) -> str:
    """Return the command for the version that a framework asserts, of its stack."""
    onedl = distribution_of(name)[0] == ONEDL[name]
    wanted = 'mmengine' if 'mmengine' in str(error).lower() else 'mmcv'
    return install_command(wanted, onedl=onedl)


def _without_spec(names) -> List[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def check_mmlit() -> str:
    """Import mmlit."""
    try:
        return check_import('mmlit')
    except Fault as fault:  # The source it was installed from is known better here.
        raise Fault(fault.seen, mmlit_command()) from None
