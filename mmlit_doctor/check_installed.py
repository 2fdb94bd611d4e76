"""Check what is installed, by files and metadata, without importing it."""

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, List
from urllib.parse import unquote, urlparse

from .findings import Advice, Fault
from .install import (
    DISTRIBUTIONS,
    INSTALL,
    ROOT,
    distribution_of,
    find_untested,
    installed,
    mmlit_command,
    package_folder,
    reinstall_command,
    version_of,
)

TESTED_PYTHON = (3, 11)
# What an absent package would have given.
OPTIONAL = {
    'onnxruntime': 'nothing here can run an exported ONNX file',
    'tensorboard': "mmengine's TensorboardVisBackend cannot write curves",
}


def check_python() -> str:
    """Compare this Python with the one that the tests run on."""
    version = sys.version.split()[0]
    if sys.version_info[:2] != TESTED_PYTHON:
        tested = '.'.join(map(str, TESTED_PYTHON))
        raise Advice(f'{version}; mmlit is tested with {tested}', python_command())
    return version


def python_command() -> str:
    """Return the commands for a new environment of the tested Python."""
    return 'python3.11 -m venv .venv && . .venv/bin/activate'


def check_mmlit_files() -> str:
    """Find the mmlit that this Python imports from any folder, and no second one."""
    spec = importlib.util.find_spec('mmlit')
    if spec is None or spec.origin is None:
        raise Fault(
            f'this Python finds no mmlit (there is one in {ROOT})', mmlit_command()
        )
    used = Path(spec.origin).resolve().parent
    try:
        distribution = metadata.distribution('mmlit')
    except metadata.PackageNotFoundError:
        return f'{used}, on the path, but not installed'
    folder, how = _installed_copy(distribution)
    copies = {Path(entry).resolve() / 'mmlit' for entry in sys.path} | {folder}
    others = [x for x in sorted(copies) if (x / '__init__.py').is_file() and x != used]
    if others:
        names = ', '.join(map(str, others))
        raise Advice(f'{used} is imported and hides {names}', mmlit_command())
    version = version_of('mmlit')
    if version != distribution.version:
        raise Advice(
            f'{used} is mmlit {version}, but installed as {distribution.version}',
            mmlit_command(),
        )
    return f'{version} in {used}, installed {how}'


def _installed_copy(distribution):
    """Return (the folder of an installed mmlit, how it was installed)."""
    origin = json.loads(distribution.read_text('direct_url.json') or '{}')
    if origin.get('dir_info', {}).get('editable'):
        source = Path(unquote(urlparse(origin['url']).path))
        return (source / 'mmlit').resolve(), 'in editable mode'
    return Path(distribution.locate_file('mmlit')).resolve(), 'from a wheel'


def check_doubles() -> str:
    """Look for packages of the stack under two names."""
    doubles = _find_doubles()
    if doubles:
        said = '; '.join(
            f'{" and ".join(x)} both bring {n}' for n, x in doubles.items()
        )
        raise Fault(said, doubles_command())
    return 'no package is there under two names'


def doubles_command() -> str:
    """Return the command that keeps each under the name of the stack here."""
    remove: List[str] = []
    again: List[str] = []
    for name, found in _find_doubles().items():
        keep, _ = distribution_of(name)
        remove += [x for x in found if x != keep]
        again.append(reinstall_command(name))
    return ' && '.join([f'pip uninstall -y {" ".join(remove)}', *again])


def _find_doubles() -> Dict[str, List[str]]:
    """Return {package: its distributions here} of packages with more than one."""
    there = installed()
    found = {
        package: [name for name in names if name in there]
        for package, names in DISTRIBUTIONS.items()
    }
    return {package: names for package, names in found.items() if len(names) > 1}


def check_opencv() -> str:
    """Look for more than one distribution of OpenCV."""
    found = find_opencv()
    if len(found) > 1:
        raise Fault(f'{" and ".join(found)} overwrite each other', opencv_command())
    return f'{found[0]} {installed()[found[0]]}' if found else 'no distribution'


def find_opencv() -> List[str]:
    """Return the distributions here that bring cv2."""
    kinds = ('opencv-python', 'opencv-contrib-python')
    return sorted(name for name in installed() if name.startswith(kinds))


def opencv_command() -> str:
    """Return the command for one headless OpenCV, with contrib if that is here."""
    found = find_opencv()
    contrib = 'contrib-' if any('contrib' in name for name in found) else ''
    keep = f'opencv-{contrib}python-headless'
    remove = ' '.join(name for name in found if name != keep)
    again = '--force-reinstall --no-deps ' if found else ''
    before = f'pip uninstall -y {remove} && ' if remove else ''
    return f'{before}pip install {again}{keep}'


def check_pkg_resources() -> str:
    """Look for pkg_resources, if mmengine needs it."""
    if importlib.util.find_spec('pkg_resources') is not None:
        return 'there'
    # mmengine 0.10 imports it inside the functions that resolve `mmdet::` bases, so
    # only its source tells; releases that no longer need it do not mention it.
    folder = package_folder('mmengine')
    source = folder / 'utils' / 'package_utils.py' if folder else None
    if source and source.is_file():
        text = source.read_text(encoding='utf-8', errors='replace')
        if re.search(r'^\s*(import|from) pkg_resources\b', text, re.MULTILINE):
            raise Fault(
                f'mmengine {version_of("mmengine")} needs pkg_resources, which is not '
                'installed (newer setuptools lack it)',
                INSTALL['pkg_resources'],
            )
    return 'not there, and not needed'


def check_versions() -> str:
    """Compare the versions with those of the tests."""
    if find_untested():
        raise Advice(f'{", ".join(find_untested())}: others mostly work')
    return 'as tested'


def check_optional(name: str) -> str:
    """Look for an optional package."""
    if importlib.util.find_spec(name) is None:
        raise Advice(f'not installed: {OPTIONAL[name]}', f'pip install {name}')
    return installed().get(name, 'there')
