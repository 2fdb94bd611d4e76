"""Check that torch can use the GPU, and that mmcv's ops were built for it."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

from .findings import Advice, Fault, first_line
from .install import major_minor, mmcv_command

# PyTorch's indexes that run on any driver of a CUDA generation; older drivers: none.
INDEXES = {'11': 'cu118', '12': 'cu126', '13': 'cu130'}


def check_devices() -> str:
    """Ask torch for the GPU that is here."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # The reason is asked for below.
        usable = torch.cuda.is_available()
    if usable:
        return f'CPU, {torch.cuda.get_device_name()} by CUDA {torch.version.cuda}'
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES', 'none set') in ('', '-1')
    if hidden or not _has_nvidia_gpu():
        return 'CPU' + (' (CUDA_VISIBLE_DEVICES hides the rest)' if hidden else '')
    if torch.version.cuda is None:
        raise Advice('an NVIDIA GPU is here, but torch is a CPU build', torch_command())
    try:
        torch.cuda.init()
        reason = 'torch does not say why'
    except Exception as error:
        reason = first_line(error)
    said = f'torch of CUDA {torch.version.cuda} cannot use the GPU here: {reason}'
    # What is left, if not the driver's age: an update that has not been loaded yet.
    raise Fault(said, torch_command() if 'too old' in reason else 'sudo reboot')


def torch_command() -> str:
    """Return the command for a torch of a CUDA that the driver can run."""
    import torch

    command = 'pip uninstall -y torch && pip install torch'
    if torch.version.cuda is None:
        return f'{command}=={torch.__version__.partition("+")[0]}'
    index = INDEXES.get(_driver_cuda().partition('.')[0], 'cpu')
    return f'{command} --index-url https://download.pytorch.org/whl/{index}'


def _has_nvidia_gpu() -> bool:
    return any(Path('/dev').glob('nvidia[0-9]*')) or 'GPU 0' in _nvidia_smi('-L')


def _driver_cuda() -> str:
    """Return the newest CUDA that the driver knows, like '12.4', or ''."""
    _, _, after = _nvidia_smi().partition('CUDA Version:')
    return after.split()[0] if after.split() else ''


def _nvidia_smi(*options: str) -> str:
    program = shutil.which('nvidia-smi')
    if program is None:
        return ''
    try:
        done = subprocess.run(
            [program, *options],
            stdin=subprocess.DEVNULL,  # The worker's has the next question.
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout if done.returncode == 0 else ''


def check_mmcv_cuda() -> str:
    """Compare the CUDA of mmcv's ops with that of torch."""
    import torch
    from mmcv.ops import get_compiling_cuda_version

    ops = get_compiling_cuda_version()
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f'torch uses no CUDA here (ops: CUDA {ops})'
    if major_minor(ops) is None:
        raise Fault(
            'torch uses a GPU, but the ops are for the CPU only', cuda_command()
        )
    if ops.partition('.')[0] != torch.version.cuda.partition('.')[0]:
        raise Fault(
            f'the ops are of CUDA {ops}, torch is of CUDA {torch.version.cuda}',
            cuda_command(),
        )
    return f'ops of CUDA {ops}, torch of CUDA {torch.version.cuda}'


def cuda_command() -> str:
    """Return the command that builds the ops for the GPUs here.

    It takes a CUDA toolkit of torch's version.
    """
    import torch

    found = {
        torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())
    }
    listed = ';'.join(f'{major}.{minor}' for major, minor in sorted(found))
    return mmcv_command(f'FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="{listed}" ')
