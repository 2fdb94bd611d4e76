"""Start the processes of a distributed run, also where there is no GPU.

On GPUs mmengine joins them itself. Without any it cannot: it calls
`torch.cuda.set_device` first, and gives its DistributedDataParallel `device_ids`. But
it leaves an existing process group alone, and arguments that a config sets; so the
group is made here, over gloo, and the config completed.
"""

from __future__ import annotations

import atexit
import os
import subprocess
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import find_latest_checkpoint
from torch.nn.parallel import DistributedDataParallel

from mmlit.errors import UserError

#: Each launcher's variables for the rank of this process, the number of processes, and
#: the rank on this machine.
VARIABLES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=(
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
)
STARTERS = dict(
    pytorch='torchrun (tools/dist_train.sh, tools/dist_test.sh)',
    slurm='srun (tools/slurm_train.sh, tools/slurm_test.sh)',
    mpi="Open MPI's mpirun",
)
#: What mmengine takes out of `env_cfg.dist_cfg` before torch sees it.
OPTIONS_OF_MMENGINE = ('backend', 'init_backend', 'port', 'timeout')


def start_processes(config: Config) -> None:
    """Prepare a config with a launcher for its Runner, with GPUs or without.

    Raises:
        UserError: `config.launcher` did not start this process, or started more
            processes on this machine than it has GPUs.
    """
    rank, size, local_rank = find_place(config.launcher)
    if get_device() == 'cuda' and local_rank >= torch.cuda.device_count():
        raise UserError(
            f'process {local_rank} of this machine, counted from 0, has no GPU: torch '
            f'sees {torch.cuda.device_count()}; start a process for each and no more'
        )
    if get_device() == 'cpu':
        _start_gloo(config, rank, size, local_rank)
        _wrap_without_devices(config)


def check_same_start(config: Config) -> None:
    """Raise UserError unless all processes start from the same checkpoint.

    Each looks for itself, and machines may not share the work folder.
    """
    checkpoint = config.get('load_from')
    if config.get('resume') and checkpoint is None:
        checkpoint = find_latest_checkpoint(config.work_dir)
    does = 'resumes' if config.get('resume') and checkpoint else 'starts anew'
    # The name alone: machines may see the same folder under different paths.
    start = f'{does} from {os.path.basename(checkpoint or "its initial weights")}'
    starts = all_gather_object(start)
    others = [rank for rank, other in enumerate(starts) if other != starts[0]]
    if others:
        raise UserError(
            f'process 0 {starts[0]}, process {others[0]} {starts[others[0]]}: all have '
            f'to see the same work folder (here {os.path.abspath(config.work_dir)})'
        )


def find_place(launcher: str) -> tuple[int, int, int]:
    """Return the rank, the number of processes, and the rank on this machine."""
    missing = [name for name in VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher} is for processes that {STARTERS[launcher]} has '
            f'started, and this one lacks their {", ".join(missing)} in its environment'
        )
    rank, size, local_rank = (int(os.environ[name]) for name in VARIABLES[launcher])
    return rank, size, local_rank


def _start_gloo(config: Config, rank: int, size: int, local_rank: int) -> None:
    """Join a process group, which mmengine then finds."""
    options = config.get('env_cfg', {}).get('dist_cfg', {})
    if options.get('port') is not None:  # what mmengine has for Slurm
        os.environ['MASTER_PORT'] = str(options['port'])
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_machine(config.launcher)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    more = {k: v for k, v in options.items() if k not in OPTIONS_OF_MMENGINE}
    if options.get('timeout') is not None:
        more['timeout'] = timedelta(seconds=options['timeout'])
    dist.init_process_group('gloo', **more)
    # Threads of gloo that outlive it now and then abort a process at its exit.
    atexit.register(dist.destroy_process_group)
    if rank == 0:
        print(f'torch sees no GPU: {size} processes on CPUs, over gloo')


def _first_machine(launcher: str) -> str:
    """Return the machine of process 0, asking Slurm as mmengine does."""
    if launcher == 'slurm' and 'SLURM_NODELIST' in os.environ:
        ask = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        return subprocess.check_output(ask, text=True).split()[0]
    raise UserError(
        f'--launcher {launcher} without a GPU needs MASTER_ADDR in the environment: '
        'the address of the machine of process 0, 127.0.0.1 where there is one machine'
    )


def _wrap_without_devices(config: Config) -> None:
    """Set mmengine's default model wrapper, without the number of a GPU."""
    wrapper = config.get('model_wrapper_cfg')
    if wrapper is None:
        find_unused = config.get('find_unused_parameters', False)
        wrapper = dict(broadcast_buffers=False, find_unused_parameters=find_unused)
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    kind = MODEL_WRAPPERS.get(wrapper['type'])
    if kind is None:
        raise UserError(f'model_wrapper_cfg.type={wrapper["type"]!r} is not registered')
    if issubclass(kind, DistributedDataParallel):
        wrapper.setdefault('device_ids', None)
    config.model_wrapper_cfg = wrapper
