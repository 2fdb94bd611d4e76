"""What the checks share: mmlit's own files about environments, faults, advice."""

import functools
import importlib
import json
import re
import shlex
import shutil
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Dict, Optional

ROOT = Path(__file__).resolve().parent.parent
FILES = '_mmlit_files'


def _load(name: str) -> types.ModuleType:
    """A module of the mmlit beside this package, without what `import mmlit` runs."""
    if FILES not in sys.modules:
        package = types.ModuleType(FILES)
        package.__path__ = [str(ROOT / 'mmlit')]
        sys.modules[FILES] = package
    return importlib.import_module(f'{FILES}.{name}')


distributions = _load('distributions')
environment = _load('environment')
#: What a check raises when it finds a fault: `Fault(seen, mend)`.
Fault = environment.UnusableEnvironmentError


class Advice(Exception):
    """What a check raises that finds nothing wrong, but something worth saying.

    Args:
        seen: What was found.
        mend: The command to follow the advice with; '' if there is nothing to run.
    """

    def __init__(self, seen: str, mend: str = ''):
        super().__init__(seen, mend)
        self.seen, self.mend = seen, mend


@functools.lru_cache(maxsize=None)
def installed() -> Dict[str, str]:
    """{name: version} of all distributions, names spelled as in `pip install`."""
    found: Dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata.get('Name')
        if name:  # None in what an interrupted uninstall left behind.
            normal = re.sub(r'[-_.]+', '-', name).lower()
            found.setdefault(normal, distribution.version)
    return found


def for_this_python(command: str) -> str:
    """`command` with the pip of this Python, where plain `pip` is another one's."""
    pip = shutil.which('pip')
    if pip and Path(pip).parent == Path(sys.executable).parent:
        return command
    python = shlex.quote(sys.executable)
    return re.sub(
        r'\bpip (?=install|uninstall)', lambda _: f'{python} -m pip ', command
    )


def mmlit_command() -> str:
    """The command that installs the mmlit beside this package."""
    if (ROOT / 'setup.py').is_file():
        return f'pip install -e {shlex.quote(str(ROOT))}'
    source = json.loads(_direct_url() or '{}').get('url')
    if source:  # A wheel's file, a folder, a repository: no index need have mmlit.
        return f'pip install --force-reinstall --no-deps {shlex.quote(source)}'
    return distributions.reinstall_command('mmlit')


def _direct_url() -> Optional[str]:
    try:
        return metadata.distribution('mmlit').read_text('direct_url.json')
    except metadata.PackageNotFoundError:
        return None
