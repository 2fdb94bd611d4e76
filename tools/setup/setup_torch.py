"""Which build of torch this machine gets, and how it is installed.

Standard library only: this runs before anything is installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Tuple

from setup_packages import PROGRESS, Pip
from setup_process import SetupError, child_environment, say

NVIDIA_DRIVER = Path('/proc/driver/nvidia/version')
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'


def choose_device() -> str:
    """Return 'cuda' where an NVIDIA GPU is present, else 'cpu'; MMLIT_DEVICE wins."""
    wish = os.environ.get('MMLIT_DEVICE', '')
    if wish:
        if wish not in ('cpu', 'cuda'):
            raise SetupError(f"MMLIT_DEVICE is {wish!r}: expected 'cpu' or 'cuda'")
        return wish
    if NVIDIA_DRIVER.exists():
        return 'cuda'
    if shutil.which('nvidia-smi') is None:
        return 'cpu'
    try:
        done = subprocess.run(
            ['nvidia-smi', '-L'], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return 'cpu'
    return 'cuda' if done.returncode == 0 and 'GPU ' in done.stdout else 'cpu'


def installed(python: Path) -> Tuple[str, str]:
    """Return the torch.__version__ and torch.version.cuda ('' for none) of `python`."""
    code = "import torch; print(torch.__version__, torch.version.cuda or '')"
    done = subprocess.run(
        [str(python), '-c', code],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode != 0:
        raise SetupError(f'torch cannot be imported:\n{done.stderr.strip()}')
    version, _, cuda = done.stdout.strip().partition(' ')
    return version, cuda


def install(pip: Pip, device: str, version: str, constraints: Path) -> None:
    """Install torch `version` for `device`; its CUDA libraries heed `constraints`."""
    requirement = f'torch=={version}'
    if device == 'cuda':
        say('torch comes with CUDA for the NVIDIA GPU: several GB to download')
        options = ('--force-reinstall', '-c', str(constraints), *PROGRESS)
        pip.install(f'installing {requirement}', (*options, requirement), total=1)
    elif sys.platform.startswith('linux'):
        install_cpu(pip, requirement)
    else:  # macOS and Windows have one build only, without CUDA.
        options = ('--force-reinstall', '--no-deps', *PROGRESS)
        pip.install(f'installing {requirement}', (*options, requirement), total=1)


def install_cpu(pip: Pip, requirement: str) -> None:
    """Install the CPU build of `requirement`, never the CUDA one.

    Naming the +cpu build makes pip fail at once, before any download, where its own
    configuration offers none.
    """
    wanted = ('--no-deps', '--force-reinstall', *PROGRESS, f'{requirement}+cpu')
    say(f'looking for a CPU build of {requirement}, about 200 MB')
    if pip.try_install('installing torch (CPU) from the configured index', wanted, 1):
        return
    say(f"not there; trying PyTorch's own index, {CPU_INDEX}")
    # An index out of reach answers late or never: two attempts of 15 s, then we know.
    patience = ('--timeout', '15', '--retries', '1', '--index-url', CPU_INDEX)
    what = "installing torch (CPU) from PyTorch's index"
    if pip.try_install(what, (*patience, *wanted), 1):
        return
    raise SetupError(
        f'no CPU build of {requirement} was found: neither the index that pip is '
        f'configured with nor {CPU_INDEX} gave {requirement}+cpu '
        f'(see {pip.log(what)}).\n'
        'Either make one of them reachable, or install a CPU torch of that version '
        'into the environment yourself, or accept the CUDA build (several GB) with '
        'MMLIT_DEVICE=cuda; then run the same command again.'
    )
