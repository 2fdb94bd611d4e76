"""Checks of what is installed, by files and metadata: nothing is imported."""

import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Dict, List
from urllib.parse import unquote, urlparse

from .surroundings import (
    ROOT,
    Advice,
    Fault,
    distributions,
    environment,
    installed,
    mmlit_command,
)

TESTED_PYTHON = (3, 11)
# What an absent package would have given.
OPTIONAL = {
    'onnxruntime': 'nothing here can run an exported ONNX file',
    'tensorboard': "mmengine's TensorboardVisBackend cannot write curves",
}


def check_python() -> str:
    """Is this the Python that the tests run on?"""
    version = sys.version.split()[0]
    if sys.version_info[:2] != TESTED_PYTHON:
        tested = '.'.join(map(str, TESTED_PYTHON))
        raise Advice(f'{version}; mmlit is tested with {tested}', python_command())
    return version


def python_command() -> str:
    """A new environment of the tested Python."""
    return 'python3.11 -m venv .venv && . .venv/bin/activate'


def check_mmlit_files() -> str:
    """Is there an mmlit that this Python finds from any folder, and only one?"""
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
    version = distributions.version_of('mmlit')
    if version != distribution.version:
        raise Advice(
            f'{used} is mmlit {version}, but installed as {distribution.version}',
            mmlit_command(),
        )
    return f'{version} in {used}, installed {how}'


def _installed_copy(distribution):
    """(the folder of an installed mmlit, how it was installed)."""
    origin = json.loads(distribution.read_text('direct_url.json') or '{}')
    if origin.get('dir_info', {}).get('editable'):
        source = Path(unquote(urlparse(origin['url']).path))
        return (source / 'mmlit').resolve(), 'in editable mode'
    return Path(distribution.locate_file('mmlit')).resolve(), 'from a wheel'


def check_doubles() -> str:
    """Is each package of the stack there once, under one of its names?"""
    doubles = _find_doubles()
    if doubles:
        said = '; '.join(
            f'{" and ".join(x)} both bring {n}' for n, x in doubles.items()
        )
        raise Fault(said, doubles_command())
    return 'no package is there under two names'


def doubles_command() -> str:
    """Keep each under the name of the stack here, and install that again."""
    remove: List[str] = []
    again: List[str] = []
    for name, found in _find_doubles().items():
        keep, _ = distributions.distribution_of(name)
        remove += [x for x in found if x != keep]
        again.append(distributions.reinstall_command(name))
    return ' && '.join([f'pip uninstall -y {" ".join(remove)}', *again])


def _find_doubles() -> Dict[str, List[str]]:
    """{package: the names under which it is there}, of those with more than one."""
    there = installed()
    found = {
        package: [name for name in names if name in there]
        for package, names in distributions.DISTRIBUTIONS.items()
    }
    return {package: names for package, names in found.items() if len(names) > 1}


def check_opencv() -> str:
    """Is at most one distribution of OpenCV there?"""
    found = find_opencv()
    if len(found) > 1:
        raise Fault(f'{" and ".join(found)} overwrite each other', opencv_command())
    return f'{found[0]} {installed()[found[0]]}' if found else 'no distribution'


def find_opencv() -> List[str]:
    """The distributions here that bring cv2."""
    kinds = ('opencv-python', 'opencv-contrib-python')
    return sorted(name for name in installed() if name.startswith(kinds))


def opencv_command() -> str:
    """One OpenCV, without libGL; with the contributed modules if they are there."""
    found = find_opencv()
    contrib = 'contrib-' if any('contrib' in name for name in found) else ''
    keep = f'opencv-{contrib}python-headless'
    remove = ' '.join(name for name in found if name != keep)
    again = '--force-reinstall --no-deps ' if found else ''
    before = f'pip uninstall -y {remove} && ' if remove else ''
    return f'{before}pip install {again}{keep}'


def check_pkg_resources() -> str:
    """Is pkg_resources there, if mmengine needs it?"""
    environment.check_pkg_resources()
    there = importlib.util.find_spec('pkg_resources') is not None
    return 'there' if there else 'not there, and not needed'


def check_versions() -> str:
    """Are the versions those of the tests?"""
    untested = environment.find_untested()
    if untested:
        raise Advice(f'{", ".join(untested)}: others mostly work')
    return 'as tested'


def check_optional(name: str) -> str:
    """Is an optional package there?"""
    if importlib.util.find_spec(name) is None:
        raise Advice(f'not installed: {OPTIONAL[name]}', f'pip install {name}')
    return installed().get(name, 'there')
