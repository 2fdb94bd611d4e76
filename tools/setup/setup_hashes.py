"""The hashes of what the set-up installs: NAME.lock beside each list of pins NAME.txt.

pip is given them with --require-hashes, so that it installs no file that was not among
a release's files when lock_pins.py asked the package index, whatever index serves it.

Standard library only: this runs before anything is installed.
"""

import re
from pathlib import Path
from typing import Dict, Iterable, List, Optional

from setup_process import SetupError

#: 'name==version', as the pins are written out for pip, and the sha256 of its files.
Hashes = Dict[str, List[str]]

RELOCK = (
    'if the new files are right, write the lock files anew: '
    '.venv/bin/python tools/setup/lock_pins.py'
)
# What pip prints under 'THESE PACKAGES DO NOT MATCH THE HASHES'.
MISMATCH = re.compile(r'^ +(\S+==\S+) (?:from .*)?\(from -r .*\):$', re.M)


def lock_of(pins: Path) -> Path:
    """Return the lock file of a list of pins."""
    return pins.with_suffix('.lock')


def read_lock(lock: Path) -> Hashes:
    """Return what a lock file holds; a line that is none of a lock file raises."""
    hashes: Hashes = {}
    files: List[str] = []
    for line in lock.read_text(encoding='utf-8').splitlines():
        pin = re.fullmatch(r'([\w.-]+==[\w.+!-]+) \\', line)
        file = re.fullmatch(r' +--hash=sha256:([0-9a-f]{64})(?: \\)?', line)
        if pin is not None:
            files = hashes.setdefault(pin.group(1), [])
        elif file is not None and hashes:
            files.append(file.group(1))
        elif line.strip() and not line.startswith('#'):
            raise SetupError(f'{lock}: expected a pin or its hash, found {line!r}')
    return hashes


def write_pins(pins: Iterable[str], hashes: Hashes) -> str:
    """Return `pins`, each 'name==version', with their hashes, as pip reads them."""
    parts = []
    for pin in pins:
        if not hashes.get(pin):
            raise SetupError(
                f'no lock file in requirements/ has hashes for {pin}, so nothing would '
                'tell its files from others: if the pin is right, run '
                '.venv/bin/python tools/setup/lock_pins.py'
            )
        lines = [pin, *(f'    --hash=sha256:{file}' for file in sorted(hashes[pin]))]
        parts.append(' \\\n'.join(lines) + '\n')
    return ''.join(parts)


def explain_mismatch(output: str) -> Optional[str]:
    """Return what is wrong if pip's `output` says that files have other hashes."""
    pins = MISMATCH.findall(output)
    if not pins:
        return None
    return (
        f'the package index that pip is configured with serves files of '
        f'{", ".join(sorted(set(pins)))} that are not those of the release (their '
        'sha256 is in no lock file in requirements/), so nothing was installed: the '
        'index builds packages of its own, the download was damaged, or somebody '
        f'changed the files. Take an index with the files of PyPI; {RELOCK}'
    )
