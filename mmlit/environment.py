"""Say in one sentence why mmlit cannot work here, before a foreign package dies.

`import mmlit` calls `check_environment` first. It never imports mmdet or mmseg, and
asks no network. `mmlit_doctor` takes the same checks one by one: it loads this file by
its path, without the package, so nothing may be imported here but the standard library
and files of which that is true, too.
"""

import importlib
import importlib.util
import multiprocessing
import os
import re
import warnings
from typing import List

from .distributions import (
    INSTALL,
    TESTED,
    install_command,
    major_minor,
    mmcv_command,
    package_folder,
    reinstall_command,
    tested_version,
    version_of,
)
from .errors import UnusableEnvironmentError
from .version import __version__


def check_environment() -> None:
    """Raise if torch, mmengine or mmcv with compiled ops cannot be used here.

    Raises:
        UnusableEnvironmentError: one sentence, with the command that mends it.

    Warns:
        UserWarning: once, if versions differ from those mmlit was tested with.
    """
    check_import('torch')
    # Before mmengine is imported: some of its releases fail on this at import.
    check_pkg_resources()
    check_import('mmengine')
    check_mmcv()
    check_ops()
    _warn_untested()


def check_import(name: str) -> None:
    """Import `name`, a package or a module in one, or say what keeps it from that.

    Raises:
        UnusableEnvironmentError: It is missing or broken.
    """
    package = name.partition('.')[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition('.')[0]
        if missing != package:
            raise UnusableEnvironmentError(
                f'{_named(package)} cannot be imported because it needs {missing}, '
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


def check_pkg_resources() -> None:
    """Raise UnusableEnvironmentError if mmengine needs pkg_resources and it is gone."""
    if importlib.util.find_spec('pkg_resources') is not None:
        return
    # mmengine 0.10 imports it inside the functions that resolve `mmdet::` bases, so
    # only its source tells; releases that no longer need it do not mention it.
    folder = package_folder('mmengine')
    source = folder / 'utils' / 'package_utils.py' if folder else None
    if source and source.is_file():
        text = source.read_text(encoding='utf-8', errors='replace')
        if re.search(r'^\s*(import|from) pkg_resources\b', text, re.MULTILINE):
            raise UnusableEnvironmentError(
                f'{_named("mmengine")} needs pkg_resources, which is not '
                'installed (newer setuptools lack it)',
                INSTALL['pkg_resources'],
            )


def check_mmcv() -> None:
    """Raise UnusableEnvironmentError if there is no mmcv 2 that can be imported."""
    version = version_of('mmcv')
    # By the version alone, before the import: mmcv 1.x dies in many ways on its own.
    if major_minor(version) and major_minor(version) < (2, 0):
        raise UnusableEnvironmentError(
            f'mmlit needs mmcv 2.0 or newer, but mmcv {version} is installed',
            mmcv_command(),
        )
    check_import('mmcv')


def check_ops() -> None:
    """Raise UnusableEnvironmentError if mmcv's compiled ops are missing or broken."""
    try:
        ops = importlib.import_module('mmcv._ext')
    except ModuleNotFoundError:
        ops = None
    except Exception as error:
        raise UnusableEnvironmentError(
            f'the compiled ops of {_named("mmcv")} do not load with '
            f'{_named("torch")}, so they were built for another one '
            f'({first_line(error)})',
            mmcv_command(),
        ) from None
    if not hasattr(ops, 'deform_conv_forward'):
        raise UnusableEnvironmentError(
            f'{_named("mmcv")} is installed without the compiled ops that mmlit needs '
            '(deform_conv2d)',
            mmcv_command(),
        )


def find_untested() -> List[str]:
    """Return the packages of which nobody has tried this version with mmlit."""
    versions = {name: version_of(name) for name in TESTED}
    # An mmdet or mmseg that is not installed is none of mmlit's business.
    return [
        f'{name} {version} (tested: {tested_version(name)})'
        for name, version in versions.items()
        if major_minor(version) not in (None, major_minor(tested_version(name)))
    ]


def _warn_untested() -> None:
    """Warn, in the first process of a run only, about versions nobody tried here."""
    if multiprocessing.parent_process() or os.environ.get('RANK', '0') != '0':
        return
    other = find_untested()
    if other:
        warnings.warn(
            f'mmlit {__version__} was not tested with {", ".join(other)}; other '
            'versions mostly work, so this is only a hint where to look if one fails.',
            UserWarning,
            stacklevel=2,
        )


def _missing(name: str) -> UnusableEnvironmentError:
    return UnusableEnvironmentError(
        f'mmlit needs {name}, which is not installed', install_command(name)
    )


def _broken(name: str, error: Exception) -> UnusableEnvironmentError:
    return UnusableEnvironmentError(
        f'{_named(name)} is installed but cannot be imported ({first_line(error)})',
        reinstall_command(name),
    )


def _named(name: str) -> str:
    return f'{name} {version_of(name)}'.rstrip()


def first_line(error: BaseException) -> str:
    """Return an error's class and the start of what it says."""
    lines = str(error).splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:200]}'
