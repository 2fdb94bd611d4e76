"""What is installed in .venv, read off its files, and pip calls that mend it.

Standard library only: this runs before anything is installed.
"""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterable, List, Optional

from setup_hashes import Hashes, explain_mismatch, write_pins
from setup_process import (
    SetupError,
    Status,
    child_environment,
    run_logged,
    say,
    tail,
    write_atomically,
)

# OpenCV distributions that would overwrite the headless one's files.
FOREIGN_OPENCV = (
    'opencv-python',
    'opencv-contrib-python',
    'opencv-contrib-python-headless',
)


def normalise(name: str) -> str:
    """Return a distribution's name as it is compared: 'Foo_Bar' -> 'foo-bar'."""
    return re.sub(r'[-_.]+', '-', name).lower()


def read_pins(file: Path) -> Dict[str, str]:
    """Return the {name: version} of a requirements file; anything else raises."""
    pins = {}
    for line in file.read_text(encoding='utf-8').splitlines():
        line = line.partition('#')[0].strip()
        if not line:
            continue
        name, separator, version = line.partition('==')
        if not separator or not re.fullmatch(r'[\w.+!-]+', version):
            raise SetupError(f'{file}: expected name==version, found {line!r}')
        pins[normalise(name)] = version
    return pins


def find_installed(site: Path) -> Dict[str, Path]:
    """Return {'name==version': dist-info folder} of a site-packages folder."""
    found = {}
    for folder in site.glob('*.dist-info'):
        name, _, version = folder.name[: -len('.dist-info')].partition('-')
        found[f'{normalise(name)}=={version}'] = folder
    return found


def is_intact(dist_info: Path) -> bool:
    """Tell if every file that a distribution's RECORD lists is there, in its size.

    An installation that was killed leaves no RECORD, or files cut short.
    """
    record = dist_info / 'RECORD'
    if not record.is_file():
        return False
    with open(record, encoding='utf-8', newline='') as rows:
        for path, _, size in csv.reader(rows):
            file = dist_info.parent / path
            if path.endswith('.pyc'):  # Python may have written it anew.
                continue
            if size and (not file.is_file() or file.stat().st_size != int(size)):
                return False
    return True


def is_editable(dist_info: Path) -> bool:
    """Tell if pip installed a distribution in editable mode, by what it noted down."""
    try:
        origin = json.loads((dist_info / 'direct_url.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):  # From an index, there is none.
        return False
    return bool(origin.get('dir_info', {}).get('editable'))


def find_missing(site: Path, pins: Dict[str, str], deep: bool) -> List[str]:
    """Return the pins that `site` lacks; `deep` also looks at every file."""
    installed = find_installed(site)
    missing = []
    for name, version in pins.items():
        # A local label, as in 2.13.0+cpu, satisfies the pin as it does for pip.
        found = [
            folder
            for key, folder in installed.items()
            if key == f'{name}=={version}' or key.startswith(f'{name}=={version}+')
        ]
        others = [key for key in installed if key.startswith(f'{name}==')]
        whole = len(others) == 1 and found and (not deep or is_intact(found[0]))
        if not whole:
            missing.append(f'{name}=={version}')
    return missing


def remove_debris(site: Path) -> None:
    """Remove what a killed pip leaves behind and stumbles over afterwards."""
    for folder in site.glob('~*'):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in site.glob('*.dist-info'):
        if not (folder / 'RECORD').is_file():
            # pip would refuse to replace it ("no RECORD file was found").
            shutil.rmtree(folder, ignore_errors=True)


# Download progress in lines that PipWatcher reads. pip 24.1 and newer: the set-up's
# first installation, which brings that, does without.
PROGRESS = ('--progress-bar', 'raw')


class Pip:
    """pip of one virtual environment, with its output in log files."""

    def __init__(self, python: Path, logs: Path) -> None:
        self.python = python
        self.logs = logs

    def try_install(self, what: str, arguments: Iterable[str], total: int = 0) -> bool:
        """Run `pip install` and tell if it succeeded."""
        command = [self.python, '-m', 'pip', 'install', '--no-input', *arguments]
        watch = PipWatcher(total)
        return run_logged(command, self.log(what), what, watch) == 0

    def install(self, what: str, arguments: Iterable[str], total: int = 0) -> None:
        """Run `pip install`; a failure raises with the end of its output."""
        if not self.try_install(what, arguments, total):
            output = self.log(what).read_text(encoding='utf-8', errors='replace')
            mismatch = explain_mismatch(output)
            if mismatch:
                raise SetupError(f'{mismatch} (see {self.log(what)})')
            raise SetupError(
                f'pip could not do this: {what}. The end of {self.log(what)}:\n'
                f'{tail(self.log(what))}\n'
                'If that names a network problem, run the same command again: what is '
                'done is kept.'
            )

    def install_locked(
        self, what: str, pins: List[str], hashes: Hashes, options: Iterable[str]
    ) -> None:
        """Install `pins` and nothing else, from files whose hashes are in `hashes`."""
        # pip reads hashes from files only.
        file = self.log(what).with_suffix('.requirements')
        write_atomically(file, write_pins(pins, hashes))
        arguments = ('--no-deps', '--require-hashes', *options, '-r', str(file))
        self.install(what, arguments, total=len(pins))

    def uninstall(self, names: List[str]) -> None:
        """Uninstall distributions that are in the way."""
        say(f'uninstalling {", ".join(names)}')
        command = [self.python, '-m', 'pip', 'uninstall', '-y', *names]
        run_logged(command, self.log('uninstall'), 'uninstall')

    def log(self, what: str) -> Path:
        """Return the log file of the step `what`."""
        return self.logs / f'{re.sub("[^a-z0-9]+", "-", what.lower()).strip("-")}.log'


class PipWatcher:
    """Reads pip's output: which package of how many, and how far a download is."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self.name = ''

    def __call__(self, line: str) -> Optional[Status]:
        """Return the status after `line`, or None if it says nothing."""
        collecting = re.match(r'Collecting (\S+)', line)
        if collecting:
            self.count += 1
            self.name = collecting.group(1)
            return self.count, max(self.total, self.count), self.name
        download = re.match(r'Progress (\d+) of (\d+)', line)
        if download and int(download.group(2)) > 20_000_000:
            done, size = (int(number) // 1_000_000 for number in download.groups())
            return done, size, f'MB of {self.name}'
        if line.startswith('Installing collected packages'):
            total = max(self.total, self.count)
            return total, total, 'unpacking'
        return None


def pip_check(python: Path) -> str:
    """Return what `pip check` prints."""
    command = [str(python), '-m', 'pip', 'check']
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_environment()
    )
    return done.stdout.strip()
