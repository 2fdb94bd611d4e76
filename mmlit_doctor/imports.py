"""Checks of what loads, and whether the parts were built for each other.

The packages are imported inside of the functions: each of these imports may be the one
that fails, or ends the process (worker.py).
"""

import importlib
import importlib.util
from typing import List

from .installed import opencv_command
from .surroundings import Advice, Fault, distributions, environment, mmlit_command

# mmseg imports these but declares them in an extra only.
UNDECLARED = {'mmdet': (), 'mmseg': ('ftfy', 'regex')}
# Without which there is nothing to train; importing them imports what they need.
PARTS = ('datasets', 'engine', 'evaluation', 'models')
USES = {'mmdet': 'detection', 'mmseg': 'segmentation'}


def check_numpy() -> str:
    """Can numpy be imported?"""
    environment.check_import('numpy')
    return distributions.version_of('numpy')


def check_cv2() -> str:
    """Can OpenCV be imported?"""
    try:
        environment.check_import('cv2')
    except Fault as fault:  # Missing, without libGL, of another numpy: one cure.
        raise Fault(fault.seen, opencv_command()) from None
    return str(importlib.import_module('cv2').__version__)


def check_torch() -> str:
    """Can torch be imported, and is it new enough?"""
    version = distributions.version_of('torch')
    if distributions.major_minor(version) and distributions.major_minor(version) < (
        2,
        0,
    ):
        raise Fault(
            f'torch {version} has no scaled_dot_product_attention, torch 2.0 has',
            'pip install --upgrade torch',
        )
    environment.check_import('torch')
    return version


def check_torch_numpy() -> str:
    """Do torch and numpy exchange arrays?"""
    import numpy
    import torch

    try:
        there_and_back = torch.from_numpy(numpy.ones(2)).numpy()
    except Exception as error:
        raise Fault(
            f'torch {torch.__version__} and numpy {numpy.__version__} exchange no '
            f'arrays ({environment.first_line(error)})',
            numpy_command(),
        ) from None
    return f'{there_and_back.sum():g} of 2 elements came back'


def numpy_command() -> str:
    """The command that brings a numpy which older builds know."""
    version = distributions.version_of('numpy')
    if (distributions.major_minor(version) or (0, 0)) >= (2, 0):
        return 'pip install "numpy<2"'
    return distributions.reinstall_command('numpy')


def check_torchvision() -> str:
    """Does torchvision load, if it is there?"""
    if importlib.util.find_spec('torchvision') is None:
        return 'not there, and not needed'
    try:
        importlib.import_module('torchvision')
    except Exception as error:
        raise Fault(
            f'installed, but cannot be imported ({environment.first_line(error)})',
            torchvision_command(),
        ) from None
    return distributions.version_of('torchvision')


def torchvision_command() -> str:
    """Nothing here needs it."""
    return 'pip uninstall -y torchvision'


def check_mmengine() -> str:
    """Can mmengine be imported?"""
    environment.check_import('mmengine')
    return distributions.version_of('mmengine')


def check_mmcv() -> str:
    """Can an mmcv 2 be imported?"""
    environment.check_mmcv()
    return distributions.version_of('mmcv')


def check_ops() -> str:
    """Do mmcv's compiled ops load?"""
    environment.check_ops()
    return 'they load'


def check_framework(name: str) -> str:
    """Can mmdet or mmseg be imported with all that a training needs of it?"""
    if importlib.util.find_spec(name) is None:
        raise Advice(
            f'not installed: no {USES[name]}', distributions.install_command(name)
        )
    missing = _missing(UNDECLARED[name])
    if missing:
        raise Fault(
            f'{name} imports {" and ".join(missing)}, which it does not declare and '
            'which is not installed',
            f'pip install {" ".join(missing)}',
        )
    try:
        importlib.import_module(name)
    except AssertionError as error:
        raise Fault(
            environment.first_line(error), assert_command(name, error)
        ) from None
    except Exception:
        environment.check_import(name)
    for part in PARTS:
        environment.check_import(f'{name}.{part}')
    return distributions.version_of(name)


def assert_command(name: str, error: AssertionError) -> str:
    """The command that brings the version which an assertion of a framework wants.

    It comes from the stack of the framework that asserts, whatever else is there.
    """
    onedl = distributions.distribution_of(name)[0] == distributions.ONEDL[name]
    wanted = 'mmengine' if 'mmengine' in str(error).lower() else 'mmcv'
    return distributions.install_command(wanted, onedl=onedl)


def _missing(names) -> List[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def check_mmlit() -> str:
    """Can mmlit be imported?"""
    try:
        environment.check_import('mmlit')
    except Fault as fault:  # Where it comes from is known better here.
        raise Fault(fault.seen, mmlit_command()) from None
    return distributions.version_of('mmlit')
