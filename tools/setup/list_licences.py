"""Write docs/licences.md: what the pinned packages say their licences are.

    .venv/bin/python tools/setup/list_licences.py

It reads the metadata of what is installed in .venv, .venv-onedl and .build/mim, so all
three have to be there (`make setup`, `make setup STACK=onedl`); site-packages folders
given as arguments are read instead.
"""

import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

from setup_mim import site_of
from setup_packages import normalise, read_pins

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'licences.md'
ENVIRONMENTS = ('.venv', '.venv-onedl', '.build/mim')
HEADER = """\
# Licences of the dependencies

mmlit itself is under Apache 2.0, and its wheel requires no package. This is what the
set-up of a checkout installs from `requirements/` (`make setup`, with either stack), in
the words of each package's own metadata. They are no legal advice: a package's licence
files decide. Wheels of compiled packages (numpy, scipy, opencv-python-headless and
others) hold libraries with licences of their own, which those files name, and torch for
CUDA brings NVIDIA's libraries, under NVIDIA's terms, which are not in the table.

Made by `tools/setup/list_licences.py`, not by hand.

| package | version | licence |
|---|---|---|
"""
#: Of these the metadata do not say it in a line; a person read their files LICENSE.
READ_IN_FILES = {
    ('onedl-mmengine', '0.10.12'): 'Apache License 2.0',
    ('openmim', '0.3.9'): 'Apache License 2.0',
}


def pinned(requirements: Path) -> List[Tuple[str, str]]:
    """Return the (name, version) of all pins, in order."""
    return sorted(
        {pin for file in requirements.rglob('*.txt') for pin in read_pins(file).items()}
    )


def licence_of(distribution: Distribution) -> str:
    """Return the licence that a package names, or ''.

    From the field made for it (PEP 639), else the free one if it is a line, else what
    the classifiers say.
    """
    metadata = distribution.metadata
    for field in ('License-Expression', 'License'):
        text = (metadata.get(field) or '').strip()
        # Some put the whole text there.
        if text and text != 'UNKNOWN' and '\n' not in text:
            return text
    named = [
        classifier.rpartition(' :: ')[2]
        for classifier in metadata.get_all('Classifier') or ()
        if classifier.startswith('License :: ')
    ]
    return '; '.join(name for name in named if name != 'DFSG approved')


def collect(sites: Iterable[Path]) -> Dict[Tuple[str, str], str]:
    """Return {(name, version): licence} of what is installed in `sites`."""
    found = {}
    for site in sites:
        for distribution in distributions(path=[str(site)]):
            name = normalise(distribution.metadata['Name'])
            # A local label, as in 2.13.0+cpu, is no part of a pin.
            version = distribution.version.partition('+')[0]
            found[name, version] = licence_of(distribution)
    return {**found, **READ_IN_FILES}


def read_page(text: str) -> Dict[Tuple[str, str], str]:
    """Return {(name, version): licence} of the page's table."""
    table = text.partition('|---|---|---|\n')[2]
    rows = re.findall(r'^\| (\S+) \| (\S+) \| (.*) \|$', table, re.M)
    return {(name, version): licence for name, version, licence in rows}


def main() -> int:
    """Write the page and return the exit status."""
    sites = [Path(argument) for argument in sys.argv[1:]]
    licences = collect(sites or [site_of(ROOT / name) for name in ENVIRONMENTS])
    pins = pinned(ROOT / 'requirements')
    unknown = [f'{name}=={version}' for name, version in pins
               if not licences.get((name, version))]  # fmt: skip
    if unknown:
        print(f'not installed, or of no licence: {", ".join(unknown)}', file=sys.stderr)
        return 1
    rows = [
        f'| {name} | {version} | {licences[name, version]} |\n'
        for name, version in pins
    ]
    PAGE.write_text(HEADER + ''.join(rows), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
