"""Look up installed packages, and spell the commands that install them.

Nothing is imported: versions come from files and metadata. A package of the stack is
published under several names: by OpenMMLab, and by its continuation as `onedl-*`.
"""

import functools
import importlib.util
import json
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
# Versions that the tests run on, as major.minor; others only warn.
TESTED = {
    'torch': '2.13',
    'mmengine': '0.10',
    'mmcv': '2.1',
    'mmdet': '3.3',
    'mmseg': '1.2',
}
TESTED_ONEDL = {**TESTED, 'mmcv': '2.3', 'mmdet': '3.5', 'mmseg': '1.4'}
# Distributions of each import name, ours first.
DISTRIBUTIONS = {
    'torch': ('torch',),
    'mmengine': ('mmengine', 'onedl-mmengine', 'mmengine-lite'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
ONEDL = {
    name: distribution
    for name, distributions in DISTRIBUTIONS.items()
    for distribution in distributions
    if distribution.startswith('onedl-')
}
# Where `pip install NAME` is not the command.
INSTALL = {
    'mmengine': 'pip install "mmengine>=0.7.1,<1"',
    'mmdet': 'pip install "mmdet>=3.0.0"',
    'mmseg': 'pip install "mmsegmentation>=1.0.0" ftfy regex',
    'cv2': 'pip install opencv-python-headless',
    'yaml': 'pip install pyyaml',
    'PIL': 'pip install pillow',
    'imgaug': 'pip install imaug',
    'pkg_resources': 'pip install "setuptools<81"',
}


# --- what is installed ------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def installed() -> Dict[str, str]:
    """Return {name: version} of all distributions, with names as pip spells them."""
    found: Dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata.get('Name')
        if name:  # None in what an interrupted uninstall left behind.
            normal = re.sub(r'[-_.]+', '-', name).lower()
            found.setdefault(normal, distribution.version)
    return found


def on_onedl() -> bool:
    """Return whether most of the stack here are onedl-* packages."""
    found = [x for name in ONEDL for x in DISTRIBUTIONS[name] if _version(x)]
    return sum(x in ONEDL.values() for x in found) > len(found) / 2


def distribution_of(name: str) -> Tuple[str, str]:
    """Return the (distribution, version) of an import name; version '' without one.

    Of several, the one of the stack that most of the others belong to.
    """
    names = DISTRIBUTIONS.get(name, (name,))
    found = [(x, _version(x)) for x in names if _version(x)]
    if len(found) > 1 and on_onedl():
        found.sort(key=lambda pair: pair[0] not in ONEDL.values())
    return found[0] if found else (names[0], '')


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution) or ''
    except metadata.PackageNotFoundError:
        return ''


def package_folder(name: str) -> Optional[Path]:
    """Return the folder that `name` is imported from."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def version_of(name: str) -> str:
    """Return the version of an import name, '' if unknown.

    The file beside the code goes first: metadata can belong to another copy.
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
    """Return (2, 13) for '2.13.0+cpu', None for an unknown version."""
    found = re.match(r'(\d+)\.(\d+)', version)
    return (int(found.group(1)), int(found.group(2))) if found else None


def older_than(name: str, limit: Tuple[int, int]) -> bool:
    """Return whether `name` is here in a known version below `limit`."""
    return (major_minor(version_of(name)) or limit) < limit


def tested_version(name: str) -> str:
    """Return the tested version of `name` in the stack here, as major.minor."""
    onedl = distribution_of(name)[0].startswith('onedl-')
    return (TESTED_ONEDL if onedl else TESTED)[name]


def find_untested() -> List[str]:
    """Return the installed packages whose versions the tests do not run on."""
    return [
        f'{name} {version_of(name)} (tested: {tested_version(name)})'
        for name in TESTED
        if major_minor(version_of(name))
        not in (None, major_minor(tested_version(name)))
    ]


# --- commands ---------------------------------------------------------------------


def install_command(name: str, onedl: Optional[bool] = None) -> str:
    """Return the command that installs the import name `name`.

    Args:
        name: The import name.
        onedl: Whether to take it from the onedl-* packages; by default as the rest of
            the stack here.
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
    return _remove_other_stack(name, onedl) + command


def reinstall_command(name: str) -> str:
    """Return the command that reinstalls the installed version of `name`."""
    if name == 'mmcv':
        return mmcv_command()
    package, version = distribution_of(name)
    # Without the local part: the same index gives 2.13.0+cpu for 2.13.0.
    pin = f'=={version.partition("+")[0]}' if version else ''
    return f'pip install --force-reinstall --no-deps {package}{pin}'


def mmcv_command(variables: str = '', onedl: Optional[bool] = None) -> str:
    """Return the command that builds mmcv with its ops.

    Args:
        variables: Settings of the build, as a shell takes them before a command.
        onedl: Whether to build onedl-mmcv; by default where that is installed, or
            where there is no mmcv and the stack is of onedl-* packages.
    """
    name, version = distribution_of('mmcv')
    if onedl is None:
        onedl = name == 'onedl-mmcv' if version else on_onedl()
    wanted = _pinned_onedl('mmcv') if onedl else '"mmcv>=2.0.0,<2.2.0"'
    # Each option is needed: an isolated build sees no torch and leaves the ops out,
    # and pip keeps such a wheel in its cache and considers it installed already. Debug
    # information doubles the time of the build; CFLAGS replaces Python's own flags.
    again = ' --force-reinstall --no-deps' if version else ''
    return (
        f'{_remove_other_stack("mmcv", onedl)}'
        f'pip install "setuptools<81" wheel ninja && {variables}'
        'CFLAGS="-O3 -DNDEBUG -fwrapv -g0" '
        f'pip install --no-build-isolation --no-cache-dir{again} {wanted}'
    )


def _pinned_onedl(name: str) -> str:
    return f'"{ONEDL[name]}=={TESTED_ONEDL[name]}.*"'


def _remove_other_stack(name: str, onedl: bool) -> str:
    """Begin a command with the removal of the other stack's files in this folder."""
    found, version = distribution_of(name)
    keep = ONEDL[name] if onedl else DISTRIBUTIONS[name][0]
    return f'pip uninstall -y {found} && ' if version and found != keep else ''


def mmlit_command() -> str:
    """Return the command that installs the mmlit beside this package."""
    if (ROOT / 'setup.py').is_file():
        return f'pip install -e {shlex.quote(str(ROOT))}'
    source = json.loads(_direct_url() or '{}').get('url')
    if source:  # A wheel, a folder or a repository: no index need have mmlit.
        return f'pip install --force-reinstall --no-deps {shlex.quote(source)}'
    return reinstall_command('mmlit')


def _direct_url() -> Optional[str]:
    try:
        return metadata.distribution('mmlit').read_text('direct_url.json')
    except metadata.PackageNotFoundError:
        return None


def for_this_python(command: str) -> str:
    """Return `command` with this Python's pip, where plain `pip` is another one's."""
    pip = shutil.which('pip')
    if pip and Path(pip).parent == Path(sys.executable).parent:
        return command
    python = shlex.quote(sys.executable)
    return re.sub(
        r'\bpip (?=install|uninstall)', lambda _: f'{python} -m pip ', command
    )
