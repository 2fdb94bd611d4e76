"""Which distributions bring what mmlit stands on, and the commands that install them.

Standard library only, and no import of what it is asked about (see environment.py).
"""

import importlib.util
import re
from importlib import metadata
from pathlib import Path
from typing import Optional, Tuple

# What the tests run on, as major.minor. Other versions mostly work: they only warn.
TESTED = {
    'torch': '2.13',
    'mmengine': '0.10',
    'mmcv': '2.1',
    'mmdet': '3.3',
    'mmseg': '1.2',
}
# The same where the onedl-mm* packages bring them.
TESTED_ONEDL = {**TESTED, 'mmcv': '2.3', 'mmdet': '3.5', 'mmseg': '1.4'}
# Names under which the package of an import name is published, ours first.
DISTRIBUTIONS = {
    'torch': ('torch',),
    'mmengine': ('mmengine', 'onedl-mmengine', 'mmengine-lite'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
# Those of the maintained continuation, of which each has one.
ONEDL = {
    name: distribution
    for name, distributions in DISTRIBUTIONS.items()
    for distribution in distributions
    if distribution.startswith('onedl-')
}
INSTALL = {
    'torch': 'pip install torch',
    'mmengine': 'pip install "mmengine>=0.7.1,<1"',
    'mmdet': 'pip install "mmdet>=3.0.0"',
    'mmseg': 'pip install "mmsegmentation>=1.0.0" ftfy regex',
    # Where a module's package goes by another name.
    'cv2': 'pip install opencv-python-headless',
    'yaml': 'pip install pyyaml',
    'PIL': 'pip install pillow',
    'imgaug': 'pip install imaug',
    'pkg_resources': 'pip install "setuptools<81"',
}


def install_command(name: str, onedl: Optional[bool] = None) -> str:
    """Return the command that brings the package of the import name `name`.

    Args:
        name: The import name.
        onedl: Whether to take it from the onedl-mm* packages, where they bring it; by
            default as the rest of the stack here.
    """
    if name == 'mmcv':
        return mmcv_command(onedl=onedl)
    command = INSTALL.get(name, f'pip install {name}')
    if name not in ONEDL:
        return command
    onedl = on_onedl() if onedl is None else onedl
    if onedl:
        command = f'pip install {_pinned_onedl(name)}'
        # mmseg imports these and declares them in an extra only, in either stack.
        command += ' ftfy regex' * (name == 'mmseg')
    return _other_stack(name, onedl) + command


def reinstall_command(name: str) -> str:
    """Return the command that puts the installed version of `name` here anew."""
    if name == 'mmcv':
        return mmcv_command()
    package, version = distribution_of(name)
    # Without the local part: the same index gives 2.13.0+cpu for 2.13.0.
    pin = f'=={version.partition("+")[0]}' if version else ''
    return f'pip install --force-reinstall --no-deps {package}{pin}'


def mmcv_command(variables: str = '', onedl: Optional[bool] = None) -> str:
    """Return the command that puts an mmcv with ops here, whatever is here now.

    Args:
        variables: Settings of the build, as a shell takes them before a command.
        onedl: Whether that is to be onedl-mmcv; by default it is where that is
            installed already, and where no mmcv but an onedl-mm* package is.
    """
    name, version = distribution_of('mmcv')
    if onedl is None:
        onedl = name == 'onedl-mmcv' if version else on_onedl()
    wanted = _pinned_onedl('mmcv') if onedl else '"mmcv>=2.0.0,<2.2.0"'
    # Each option is needed: an isolated build sees no torch and leaves the ops out,
    # and pip keeps such a wheel in its cache and considers it installed already.
    again = ' --force-reinstall --no-deps' if version else ''
    return (
        f'{_other_stack("mmcv", onedl)}'
        f'pip install "setuptools<81" wheel ninja && {variables}'
        f'pip install --no-build-isolation --no-cache-dir{again} {wanted}'
    )


def on_onedl() -> bool:
    """Return whether most of the stack here are onedl-mm* packages."""
    found = [x for name in ONEDL for x in DISTRIBUTIONS[name] if _installed_version(x)]
    return sum(x in ONEDL.values() for x in found) > len(found) / 2


def _pinned_onedl(name: str) -> str:
    return f'"{ONEDL[name]}=={TESTED_ONEDL[name]}.*"'


def _other_stack(name: str, onedl: bool) -> str:
    """The beginning of a command: removes what would stay beside it, in its folder."""
    found, version = distribution_of(name)
    keep = ONEDL[name] if onedl else DISTRIBUTIONS[name][0]
    return f'pip uninstall -y {found} && ' if version and found != keep else ''


def _installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution) or ''
    except metadata.PackageNotFoundError:
        return ''


def package_folder(name: str) -> Optional[Path]:
    """Return the folder `name` is imported from, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def distribution_of(name: str) -> Tuple[str, str]:
    """Return the (distribution name, version) that brings `name`, or ('name', '').

    Of several, the one of the stack that most of the others are of.
    """
    names = DISTRIBUTIONS.get(name, (name,))
    found = [(x, _installed_version(x)) for x in names]
    found = [(x, version) for x, version in found if version]
    if len(found) > 1 and on_onedl():
        found.sort(key=lambda pair: pair[0] not in ONEDL.values())
    return found[0] if found else (names[0], '')


def tested_version(name: str) -> str:
    """Return the version of `name` that mmlit is tested with, as major.minor."""
    onedl = distribution_of(name)[0].startswith('onedl-')
    return (TESTED_ONEDL if onedl else TESTED)[name]


def version_of(name: str) -> str:
    """Return the version of `name`, '' if unknown, without importing it.

    The file beside the code goes first: it is what would be imported, while metadata
    can belong to another copy.
    """
    folder = package_folder(name)
    file = folder / 'version.py' if folder else None
    if file and file.is_file():
        text = file.read_text(encoding='utf-8', errors='replace')
        found = re.search(r'^__version__\s*=\s*[\'"]([^\'"]+)', text, re.MULTILINE)
        if found:
            return found.group(1)
    return distribution_of(name)[1]


def major_minor(version: str) -> Optional[Tuple[int, int]]:
    """Return (2, 13) for '2.13.0+cpu', None for what is no version."""
    found = re.match(r'(\d+)\.(\d+)', version)
    return (int(found.group(1)), int(found.group(2))) if found else None
