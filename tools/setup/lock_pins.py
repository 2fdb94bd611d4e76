"""Write the lock files: the sha256 of all files of all pins, as the index lists them.

    .venv/bin/python tools/setup/lock_pins.py            # write requirements/**/*.lock
    .venv/bin/python tools/setup/lock_pins.py --check    # tell if they would change

It takes wheels of all platforms and Pythons, and source archives. pip itself asks the
index, as it is configured: its address, credentials and certificates are pip's. One
index is asked, --index-url, for a second one may hold files of its own making.
It answers in JSON (PEP 691) or, where that is not offered, in HTML (PEP 503).

pip has no command for that, so this uses its inner parts, of the pip in build.txt.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional, Tuple

from pip._internal.commands import create_command
from pip._internal.exceptions import PipError
from pip._internal.index.collector import LinkCollector, parse_links
from pip._internal.models.link import Link
from pip._internal.models.search_scope import SearchScope
from pip._vendor.packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)
from pip._vendor.packaging.version import InvalidVersion, Version

from setup_hashes import lock_of, write_pins
from setup_packages import read_pins
from setup_process import SetupError, write_atomically

ROOT = Path(__file__).resolve().parents[2]
HEADER = """\
# Made by tools/setup/lock_pins.py of {name}: change that, not this file.
# The sha256 of every wheel and source archive that the package index (PyPI) listed for
# each pin, for all platforms: what `make setup` lets pip install, and nothing else.
"""
#: The CPU build of torch lies in another index than PyPI, and CUDA's libraries, which
#: the other build brings, are not pinned.
UNLOCKED = ('torch.txt',)


class Index:
    """One package index, asked by pip."""

    def __init__(self, url: Optional[str] = None) -> None:
        command = create_command('download')
        arguments = ['--index-url', url] if url else []
        options, _ = command.parse_args(arguments)
        # Its connections are closed when the process ends.
        session = command._build_session(options)
        self.scope = SearchScope.create(
            find_links=[], index_urls=[options.index_url], no_index=False
        )
        self.collector = LinkCollector(session=session, search_scope=self.scope)

    def hashes(self, name: str, version: str) -> List[str]:
        """Return the sha256 of all files of a release."""
        (address,) = self.scope.get_index_urls_locations(name)
        page = self.collector.fetch_response(Link(address))
        if page is None:
            raise SetupError(f'the index did not answer for {name}')
        links = [
            link
            for link in parse_links(page)
            if release_of(link.filename) == (name, Version(version))
        ]
        if not links:
            raise SetupError(f'the index lists no file of {name}=={version}')
        files = {link.filename: (link._hashes or {}).get('sha256') for link in links}
        bare = [file for file, sha256 in files.items() if not sha256]
        if bare:
            raise SetupError(f'the index lists no sha256 of {", ".join(bare)}')
        return sorted(files.values())


def release_of(filename: str) -> Optional[Tuple[str, Version]]:
    """Return the (name, version) that pip reads off a file's name, if it installs it.

    Eggs, installers and names from before there were rules have none.
    """
    try:
        if filename.endswith('.whl'):
            return parse_wheel_filename(filename)[:2]
        return parse_sdist_filename(filename)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None


def make_lock(pins: Path, index: Index) -> str:
    """Return the text of the lock file for a list of pins."""
    hashes = {
        f'{name}=={version}': index.hashes(name, version)
        for name, version in read_pins(pins).items()
    }
    return HEADER.format(name=pins.name) + write_pins(hashes, hashes)


def locked_lists(requirements: Path) -> List[Path]:
    """Return the lists of pins that have a lock file."""
    return sorted(
        file for file in requirements.rglob('*.txt') if file.name not in UNLOCKED
    )


def main() -> int:
    """Write the lock files, or compare them, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--check', action='store_true', help='write nothing')
    parser.add_argument('--index-url', help="default: pip's own")
    parser.add_argument(
        '--requirements', type=Path, default=ROOT / 'requirements', help='their folder'
    )
    args = parser.parse_args()
    changed = []
    try:
        index = Index(args.index_url)
        for pins in locked_lists(args.requirements):
            lock, text = lock_of(pins), make_lock(pins, index)
            if lock.is_file() and lock.read_text(encoding='utf-8') == text:
                continue
            changed.append(lock)
            if not args.check:
                write_atomically(lock, text)
    except (SetupError, PipError) as error:
        print(f'stopped: {error}', file=sys.stderr)
        return 1
    for lock in changed:
        print(('differs: ' if args.check else 'written: ') + str(lock))
    return int(args.check and bool(changed))


if __name__ == '__main__':
    sys.exit(main())
