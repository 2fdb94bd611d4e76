"""An environment of its own for mim: .build/mim, over the packages of .venv.

openmim brings old versions of packages that .venv has newer (requirements/mim.txt), so
it cannot go there. It gets a virtual environment whose own packages come first, and
behind them those of .venv: torch, mmcv with its compiled ops, mmdet and mmsegmentation
are there once. mmlit's tests put the wheel they test in front of both.

Standard library only: this runs before anything is installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

from setup_hashes import Hashes
from setup_packages import Pip
from setup_process import SetupError, child_environment, run_logged, tail

# What mim needs of either side, in one process.
CHECK = 'import mim.commands, mmcv.ops, mmdet'
ELSE = (
    '.venv itself is complete, and the demos need nothing else: '
    '.venv/bin/python tools/demo.py'
)


def site_of(folder: Path) -> Path:
    """Return the site-packages folder of the virtual environment `folder`."""
    version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    return folder / 'lib' / version / 'site-packages'


def make(
    folder: Path, stack: Path, pins: List[str], hashes: Hashes, logs: Path
) -> None:
    """Make the environment anew, with `pins`, in front of the packages in `stack`."""
    shutil.rmtree(folder, ignore_errors=True)
    log = logs / 'mim-venv.log'
    command = [sys.executable, '-m', 'venv', folder]
    if run_logged(command, log, f'creating {folder.name}, for mim alone') != 0:
        raise SetupError(f'{folder} could not be made:\n{tail(log)}\n{ELSE}')
    python = folder / 'bin' / 'python'
    # Wheels only, as in .venv.
    options = ('--only-binary', ':all:')
    what = 'installing mim, away from the stack'
    try:
        Pip(python, logs).install_locked(what, pins, hashes, options)
    except SetupError as error:
        raise SetupError(f'{error}\n{ELSE}') from None
    # Python appends what such a file names, so the packages above win.
    (site_of(folder) / 'stack.pth').write_text(f'{stack}{os.linesep}', encoding='utf-8')
    done = subprocess.run(
        [str(python), '-c', CHECK],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode != 0:
        raise SetupError(f'mim does not run in {folder}:\n{done.stderr}\n{ELSE}')
