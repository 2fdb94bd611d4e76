"""What tools/processes.py does before mmengine: messages, variables, the config."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlit_tools import distributed as processes
from support.two_processes import free_port

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def stopped(config):
    with pytest.raises(SystemExit) as stop:
        processes.start_processes(Config(config))
    assert isinstance(stop.value.code, str) and '\n' not in stop.value.code
    return stop.value.code


@pytest.fixture
def rank_3(monkeypatch):
    """The environment of the last of four processes, as torchrun makes it."""
    for name, value in (('RANK', 3), ('WORLD_SIZE', 4), ('LOCAL_RANK', 3)):
        monkeypatch.setenv(name, str(value))


# --- messages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ('launcher', 'starter', 'lacks'),
    [
        ('pytorch', 'tools/dist_train.sh', 'RANK, WORLD_SIZE'),
        ('slurm', 'tools/slurm_train.sh', 'SLURM_PROCID'),
        ('mpi', 'mpirun', 'OMPI_COMM_WORLD_RANK'),
    ],
)
def test_nobody_started_this_process(monkeypatch, launcher, starter, lacks):
    for names in processes.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    message = stopped(dict(launcher=launcher))
    assert f'--launcher {launcher}' in message
    assert starter in message and lacks in message


def test_more_processes_than_gpus(monkeypatch, rank_3):
    monkeypatch.setattr(processes, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    message = stopped(dict(launcher='pytorch'))
    assert 'process 3' in message and 'torch sees 3' in message
    # With a GPU for each, all is left to mmengine.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    config = Config(dict(launcher='pytorch'))
    processes.start_processes(config)
    assert config.get('model_wrapper_cfg') is None
    assert not torch.distributed.is_initialized()


def test_no_address(monkeypatch, rank_3):
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    message = stopped(dict(launcher='pytorch'))
    assert 'MASTER_ADDR' in message and '127.0.0.1' in message


def test_an_unknown_wrapper():
    config = Config(dict(model_wrapper_cfg=dict(type='MyWrapper')))
    with pytest.raises(SystemExit, match="model_wrapper_cfg.type='MyWrapper'"):
        processes._wrap_without_devices(config)


# --- the config -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('theirs', 'expected'),
    [
        # What mmengine would have taken.
        ({}, dict(broadcast_buffers=False, find_unused_parameters=False)),
        (
            dict(find_unused_parameters=True),
            dict(broadcast_buffers=False, find_unused_parameters=True),
        ),
        (
            dict(model_wrapper_cfg=dict(static_graph=True)),
            dict(static_graph=True),
        ),
    ],
)
def test_the_wrapper_gets_no_device(theirs, expected):
    config = Config(theirs)
    processes._wrap_without_devices(config)
    expected = dict(expected, type='MMDistributedDataParallel', device_ids=None)
    assert config.model_wrapper_cfg == expected


def test_a_wrapper_that_knows_no_devices():
    wrapper = dict(type='MMFullyShardedDataParallel')
    config = Config(dict(model_wrapper_cfg=wrapper))
    processes._wrap_without_devices(config)
    assert config.model_wrapper_cfg == wrapper


def test_the_place_that_mpirun_gives(monkeypatch):
    for name, value in (('RANK', 5), ('SIZE', 8), ('LOCAL_RANK', 1)):
        monkeypatch.setenv(f'OMPI_COMM_WORLD_{name}', str(value))
    assert processes.find_place('mpi') == (5, 8, 1)


# --- in two processes -------------------------------------------------------------

PROGRAM = """
import sys
import torch
from mmlit_tools import distributed as processes
import torch.distributed as dist
from mmengine.config import Config
launcher, rank, work_dirs = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
timeout = dict(dist_cfg=dict(backend='nccl', timeout=60))
processes.start_processes(Config(dict(launcher=launcher, env_cfg=timeout)))
total = torch.tensor(rank + 1)
dist.all_reduce(total)
print('total', total.item(), dist.get_backend())
config = Config(dict(work_dir=work_dirs[0], resume=True, load_from=None))
processes.check_same_start(config)
print('same start', flush=True)
config.work_dir = work_dirs[rank]
processes.check_same_start(config)
"""


def test_without_a_gpu(tmp_path):
    """As srun starts them; torchrun does in test_dist_tools.py."""
    if torch.cuda.is_available():
        pytest.skip('torch sees a GPU: mmengine starts the processes')
    work_dirs = [tmp_path / 'first', tmp_path / 'second']
    for work_dir in work_dirs:
        work_dir.mkdir()
    (work_dirs[0] / 'last_checkpoint').write_text('first/epoch_3.pth')
    scontrol = tmp_path / 'bin' / 'scontrol'
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho localhost\necho other\n')
    scontrol.chmod(0o755)
    environment = dict(
        os.environ,
        PATH=f'{scontrol.parent}{os.pathsep}{os.environ["PATH"]}',
        SLURM_NODELIST='localhost,other',
        SLURM_NTASKS='2',
        MASTER_PORT=str(free_port()),
        OMP_NUM_THREADS='1',
    )
    environment.pop('MASTER_ADDR', None)
    running = []
    for rank in '01':
        running.append(
            subprocess.Popen(
                [sys.executable, '-c', PROGRAM, 'slurm', rank, *work_dirs],
                env=dict(environment, SLURM_PROCID=rank, SLURM_LOCALID=rank),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in running:
        out, error = process.communicate(timeout=300)
        assert 'total 3 gloo' in out and 'same start' in out, error
        # Then one sees the checkpoint, and the other a folder without.
        assert process.returncode == 1, error
        assert 'process 0 resumes from epoch_3.pth, process 1 starts anew' in error
        assert 'Traceback' not in error
