"""The launch scripts pass every argument on whole, to the right program."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def launch(tmp_path, script, *arguments, **variables):
    """The command that a script would run, one argument a line."""
    fake = tmp_path / 'bin'
    fake.mkdir()
    for name in ('python', 'srun'):
        (fake / name).write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
        (fake / name).chmod(0o755)
    variables['PATH'] = f'{fake}{os.pathsep}{os.environ["PATH"]}'
    result = subprocess.run(
        ['bash', str(TOOLS / script), *arguments],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    return result, [Path(lines[0]).name, *lines[1:]] if lines else []


OPTIONS = ('--cfg-options', 'a.b="[1, 2]"', 'c=*')


def test_dist_train(tmp_path):
    arguments = ('my config.py', '2', *OPTIONS)
    _, command = launch(tmp_path, 'dist_train.sh', *arguments, PORT='1', NNODES='3')
    assert command[:3] == ['python', '-m', 'torch.distributed.run']
    assert {'--nnodes=3', '--node_rank=0', '--nproc_per_node=2'} < set(command)
    assert {'--master_addr=127.0.0.1', '--master_port=1'} < set(command)
    tail = [str(TOOLS / 'train.py'), 'my config.py', '--launcher', 'pytorch', *OPTIONS]
    assert command[-len(tail) :] == tail


def test_dist_test(tmp_path):
    arguments = ('my config.py', 'my file.pth', '2', *OPTIONS)
    _, command = launch(tmp_path, 'dist_test.sh', *arguments)
    assert {'--nproc_per_node=2', '--nnodes=1', '--master_port=29500'} < set(command)
    tail = ['my config.py', 'my file.pth', '--launcher', 'pytorch', *OPTIONS]
    assert command[-len(tail) - 1 :] == [str(TOOLS / 'test.py'), *tail]


@pytest.mark.parametrize(
    ('script', 'third', 'tail'),
    [
        ('slurm_train.sh', 'my dir', ['--work-dir=my dir']),
        ('slurm_test.sh', 'my file.pth', ['my file.pth']),
    ],
)
def test_slurm(tmp_path, script, third, tail):
    arguments = ('part', 'a job', 'my config.py', third, *OPTIONS)
    environment = dict(GPUS='4', GPUS_PER_NODE='2', SRUN_ARGS='--mem=1G --quiet')
    _, command = launch(tmp_path, script, *arguments, **environment)
    assert command[:4] == ['srun', '-p', 'part', '--job-name=a job']
    assert {'--gres=gpu:2', '--ntasks=4', '--mem=1G', '--quiet'} < set(command)
    called = str(TOOLS / script.replace('slurm_', '').replace('.sh', '.py'))
    rest = [called, 'my config.py', *tail, '--launcher=slurm', *OPTIONS]
    assert command[-len(rest) - 2 :] == ['python', '-u', *rest]


@pytest.mark.parametrize('script', [p.name for p in sorted(TOOLS.glob('*.sh'))])
def test_too_few_arguments(tmp_path, script):
    result, command = launch(tmp_path, script, 'config.py')
    assert (result.returncode, command) == (2, [])
    assert 'usage:' in result.stderr
