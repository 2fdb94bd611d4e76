"""Say in one sentence why mmlit cannot work here, before a foreign package dies.

`import mmlit` calls `check_environment` first. It never imports mmdet or mmseg, and
asks no network.
"""

import importlib
import importlib.util
import multiprocessing
import os
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Optional, Tuple

from .version import __version__

# What the tests run on, as major.minor. Other versions mostly work: they only warn.
TESTED = {
    'torch': '2.13',
    'mmengine': '0.10',
    'mmcv': '2.1',
    'mmdet': '3.3',
    'mmseg': '1.2',
}
# Names under which the package of an import name is published, ours first.
DISTRIBUTIONS = {
    'torch': ('torch',),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
INSTALL = {
    'torch': 'pip install torch',
    'mmengine': 'pip install "mmengine>=0.7.1,<1"',
    # Where a module's package goes by another name.
    'cv2': 'pip install opencv-python-headless',
    'yaml': 'pip install pyyaml',
    'PIL': 'pip install pillow',
    'pkg_resources': 'pip install "setuptools<81"',
}


class UnusableEnvironmentError(RuntimeError):
    """The environment lacks something without which mmlit cannot work.

    Not an ImportError: mmengine turns those, when `custom_imports` meets one, into
    advice about PYTHONPATH that hides the sentence (or, with
    `allow_failed_imports=True`, goes on and fails later at the registry).
    """


def check_environment() -> None:
    """Raise if torch, mmengine or mmcv with compiled ops cannot be used here.

    Raises:
        UnusableEnvironmentError: one sentence, with the command that mends it.

    Warns:
        UserWarning: once, if versions differ from those mmlit was tested with.
    """
    _check_import('torch')
    # Before mmengine is imported: some of its releases fail on this at import.
    _check_pkg_resources()
    _check_import('mmengine')
    _check_mmcv()
    _warn_untested()


def _check_import(name: str) -> None:
    """Import `name`, or say what keeps it from being imported."""
    install = INSTALL.get(name) or _mmcv_command()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition('.')[0]
        if missing == name:
            raise _missing(name, install) from None
        command = INSTALL.get(missing, f'pip install {missing}')
        raise UnusableEnvironmentError(
            f'{_named(name)} cannot be imported because it needs {missing}, '
            f'which is not installed: {command}'
        ) from None
    except Exception as error:
        raise UnusableEnvironmentError(
            f'{_named(name)} is installed but cannot be imported '
            f'({_first_line(error)}): {_reinstall(name)}'
        ) from None
    # A folder without __init__.py (left by an uninstall) imports as an empty package.
    if getattr(module, '__file__', None) is None:
        raise _missing(name, install)


def _check_pkg_resources() -> None:
    if importlib.util.find_spec('pkg_resources') is not None:
        return
    # mmengine 0.10 imports it inside the functions that resolve `mmdet::` bases, so
    # only its source tells; releases that no longer need it do not mention it.
    folder = _package_folder('mmengine')
    source = folder / 'utils' / 'package_utils.py' if folder else None
    if source and source.is_file():
        text = source.read_text(encoding='utf-8', errors='replace')
        if re.search(r'^\s*(import|from) pkg_resources\b', text, re.MULTILINE):
            raise UnusableEnvironmentError(
                f'{_named("mmengine")} needs pkg_resources, which is not '
                f'installed (newer setuptools lack it): {INSTALL["pkg_resources"]}'
            )


def _check_mmcv() -> None:
    version = _version('mmcv')
    # By the version alone, before the import: mmcv 1.x dies in many ways on its own.
    if _major_minor(version) and _major_minor(version) < (2, 0):
        raise UnusableEnvironmentError(
            f'mmlit needs mmcv 2.0 or newer, but mmcv {version} is installed: '
            f'{_mmcv_command()}'
        )
    _check_import('mmcv')
    try:
        ops = importlib.import_module('mmcv._ext')
    except ModuleNotFoundError:
        ops = None
    except Exception as error:
        raise UnusableEnvironmentError(
            f'the compiled ops of {_named("mmcv")} do not load with '
            f'{_named("torch")}, so they were built for another one '
            f'({_first_line(error)}): {_mmcv_command()}'
        ) from None
    if not hasattr(ops, 'deform_conv_forward'):
        raise UnusableEnvironmentError(
            f'{_named("mmcv")} is installed without the compiled ops that mmlit needs '
            f'(deform_conv2d): {_mmcv_command()}'
        )


def _warn_untested() -> None:
    """Warn, in the first process of a run only, about versions nobody tried here."""
    if multiprocessing.parent_process() or os.environ.get('RANK', '0') != '0':
        return
    versions = {name: _version(name) for name in TESTED}
    # An mmdet or mmseg that is not installed is none of mmlit's business.
    other = [
        f'{name} {version} (tested: {TESTED[name]})'
        for name, version in versions.items()
        if _major_minor(version) not in (None, _major_minor(TESTED[name]))
    ]
    if other:
        warnings.warn(
            f'mmlit {__version__} was not tested with {", ".join(other)}; other '
            'versions mostly work, so this is only a hint where to look if one fails.',
            UserWarning,
            stacklevel=2,
        )


def _missing(name: str, install: str) -> UnusableEnvironmentError:
    return UnusableEnvironmentError(
        f'mmlit needs {name}, which is not installed: {install}'
    )


def _reinstall(name: str) -> str:
    if name == 'mmcv':
        return _mmcv_command()
    return f'pip install --force-reinstall --no-deps {_distribution(name)[0]}'


def _mmcv_command() -> str:
    """Return the command that puts an mmcv with ops here, whatever is here now."""
    name, version = _distribution('mmcv')
    remove = ''
    if name in ('mmcv-full', 'mmcv-lite'):  # Would stay beside mmcv, in its folder.
        remove, name = f'pip uninstall -y {name} && ', 'mmcv'
    wanted = name if name == 'onedl-mmcv' else '"mmcv>=2.0.0,<2.2.0"'
    # Each option is needed: an isolated build sees no torch and leaves the ops out,
    # and pip keeps such a wheel in its cache and considers it installed already.
    again = ' --force-reinstall --no-deps' if version else ''
    return (
        f'{remove}pip install "setuptools<81" wheel ninja && '
        f'pip install --no-build-isolation --no-cache-dir{again} {wanted}'
    )


def _package_folder(name: str) -> Optional[Path]:
    """Return the folder `name` is imported from, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _distribution(name: str) -> Tuple[str, str]:
    """Return the (distribution name, version) that brings `name`, or ('name', '')."""
    for distribution in DISTRIBUTIONS[name]:
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return DISTRIBUTIONS[name][0], ''


def _version(name: str) -> str:
    """Return the version of `name`, '' if unknown, without importing it.

    The file beside the code goes first: it is what would be imported, while metadata
    can belong to another copy.
    """
    folder = _package_folder(name)
    file = folder / 'version.py' if folder else None
    if file and file.is_file():
        text = file.read_text(encoding='utf-8', errors='replace')
        found = re.search(r'^__version__\s*=\s*[\'"]([^\'"]+)', text, re.MULTILINE)
        if found:
            return found.group(1)
    return _distribution(name)[1]


def _named(name: str) -> str:
    return f'{name} {_version(name)}'.rstrip()


def _major_minor(version: str) -> Optional[Tuple[int, int]]:
    found = re.match(r'(\d+)\.(\d+)', version)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
