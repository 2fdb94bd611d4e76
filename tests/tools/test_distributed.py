"""Distributed runs: messages, variables, the config, and the launch scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlit.errors import UserError
from mmlit_tools import distributed
from support.running_tools import free_port

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def refusal(launcher):
    with pytest.raises(UserError) as refused:
        distributed.start_processes(Config(dict(launcher=launcher)))
    return str(refused.value)


@pytest.mark.parametrize(
    ('launcher', 'starter', 'lacks'),
    [
        ('pytorch', 'tools/dist_train.sh', 'RANK, WORLD_SIZE'),
        ('slurm', 'tools/slurm_train.sh', 'SLURM_PROCID'),
        ('mpi', 'mpirun', 'OMPI_COMM_WORLD_RANK'),
    ],
)
def test_nobody_started_this_process(monkeypatch, launcher, starter, lacks):
    for names in distributed.VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    message = refusal(launcher)
    assert f'--launcher {launcher}' in message
    assert starter in message and lacks in message


def test_more_processes_than_gpus_and_no_address(monkeypatch):
    # The environment of the last of four processes, as torchrun sets it.
    for name, value in (('RANK', 3), ('WORLD_SIZE', 4), ('LOCAL_RANK', 3)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    message = refusal('pytorch')
    assert 'process 3' in message and 'torch sees 3' in message
    # With a GPU for each, all is left to mmengine.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    config = Config(dict(launcher='pytorch'))
    distributed.start_processes(config)
    assert config.get('model_wrapper_cfg') is None
    assert not torch.distributed.is_initialized()
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    message = refusal('pytorch')
    assert 'MASTER_ADDR' in message and '127.0.0.1' in message


DDP = dict(type='MMDistributedDataParallel', device_ids=None)
DEFAULT = dict(DDP, broadcast_buffers=False, find_unused_parameters=False)
FSDP = dict(type='MMFullyShardedDataParallel')


@pytest.mark.parametrize(
    ('theirs', 'expected'),
    [
        ({}, DEFAULT),  # mmengine's own
        (dict(find_unused_parameters=True), dict(DEFAULT, find_unused_parameters=True)),
        (dict(model_wrapper_cfg=dict(static_graph=1)), dict(DDP, static_graph=1)),
        (dict(model_wrapper_cfg=FSDP), FSDP),
    ],
)
def test_the_wrapper_gets_no_device(theirs, expected):
    config = Config(theirs)
    distributed._wrap_without_devices(config)
    assert config.model_wrapper_cfg == expected
    config = Config(dict(model_wrapper_cfg=dict(type='MyWrapper')))
    with pytest.raises(UserError, match="model_wrapper_cfg.type='MyWrapper'"):
        distributed._wrap_without_devices(config)


def test_the_place_that_mpirun_gives(monkeypatch):
    for name, value in (('RANK', 5), ('SIZE', 8), ('LOCAL_RANK', 1)):
        monkeypatch.setenv(f'OMPI_COMM_WORLD_{name}', str(value))
    assert distributed.find_place('mpi') == (5, 8, 1)


PROGRAM = """
import sys
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmlit_tools import distributed
from mmlit_tools.cli import command

@command('train.py')
def main(arguments):
    launcher, rank, *work_dirs = arguments
    timeout = dict(dist_cfg=dict(backend='nccl', timeout=60))
    distributed.start_processes(Config(dict(launcher=launcher, env_cfg=timeout)))
    total = torch.tensor(int(rank) + 1)
    dist.all_reduce(total)
    print('total', total.item(), dist.get_backend())
    config = Config(dict(work_dir=work_dirs[0], resume=True, load_from=None))
    distributed.check_same_start(config)
    print('same start', flush=True)
    config.work_dir = work_dirs[int(rank)]
    distributed.check_same_start(config)

main(sys.argv[1:])
"""


@pytest.mark.slow
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
    path = f'{scontrol.parent}{os.pathsep}{os.environ["PATH"]}'
    slurm = dict(SLURM_NODELIST='localhost,other', SLURM_NTASKS='2', PATH=path)
    port = dict(MASTER_PORT=str(free_port()), OMP_NUM_THREADS='1')
    environment = {**os.environ, **slurm, **port}
    environment.pop('MASTER_ADDR', None)
    running = [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, 'slurm', rank, *work_dirs],
            env=dict(environment, SLURM_PROCID=rank, SLURM_LOCALID=rank),
            **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        )
        for rank in '01'
    ]
    for process in running:
        out, error = process.communicate(timeout=300)
        assert 'total 3 gloo' in out and 'same start' in out, error
        # Then one sees the checkpoint, and the other a folder without.
        assert process.returncode == 1, error
        assert 'process 0 resumes from epoch_3.pth, process 1 starts anew' in error
        assert 'Traceback' not in error


def launch(tmp_path, script, *arguments, **variables):
    """Return what a script of tools/ would run, as a list of words."""
    fake = tmp_path / 'bin'
    fake.mkdir()
    for name in ('python', 'srun'):
        (fake / name).write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
        (fake / name).chmod(0o755)
    variables['PATH'] = f'{fake}{os.pathsep}{os.environ["PATH"]}'
    result = subprocess.run(
        ['bash', str(TOOLS / script), *arguments],
        **dict(cwd=tmp_path, env={**os.environ, **variables}),
        **dict(capture_output=True, text=True),
    )
    lines = result.stdout.splitlines()
    return result, [Path(lines[0]).name, *lines[1:]] if lines else []


OPTIONS = ('--cfg-options', 'a.b="[1, 2]"', 'c=*')
TORCHRUN = ['python', '-m', 'torch.distributed.run']
SRUN = ['srun', '-p', 'part', '--job-name=a job']
SLURM = dict(GPUS='4', GPUS_PER_NODE='2', SRUN_ARGS='--mem=1G --quiet')
TO_SRUN = '--gres=gpu:2 --ntasks=4 --mem=1G --quiet'
TRAINS, TESTS = ('train.py', 'a config.py'), ('test.py', 'a config.py', 'a file.pth')


@pytest.mark.parametrize(
    ('script', 'arguments', 'variables', 'head', 'among', 'tail'),
    [
        (
            *('dist_train.sh', ['a config.py', '2'], dict(PORT='1', NNODES='3')),
            *(TORCHRUN, '--nnodes=3 --node_rank=0 --nproc_per_node=2 --master_port=1'),
            [*TRAINS, '--launcher', 'pytorch'],
        ),
        (
            *('dist_test.sh', [*TESTS[1:], '2'], {}, TORCHRUN),
            '--nproc_per_node=2 --nnodes=1 --master_port=29500 --master_addr=127.0.0.1',
            [*TESTS, '--launcher', 'pytorch'],
        ),
        (
            *('slurm_train.sh', ['part', 'a job', 'a config.py', 'a dir'], SLURM),
            *(SRUN, TO_SRUN, [*TRAINS, '--work-dir=a dir', '--launcher=slurm']),
        ),
        (
            *('slurm_test.sh', ['part', 'a job', *TESTS[1:]], SLURM),
            *(SRUN, TO_SRUN, [*TESTS, '--launcher=slurm']),
        ),
    ],
)
def test_scripts_pass_on_every_argument(
    tmp_path, script, arguments, variables, head, among, tail
):
    _, command = launch(tmp_path, script, *arguments, *OPTIONS, **variables)
    assert command[: len(head)] == head and set(among.split()) < set(command)
    tail = [str(TOOLS / tail[0]), *tail[1:], *OPTIONS]
    tail = ['python', '-u', *tail] if head == SRUN else tail
    assert command[-len(tail) :] == tail
