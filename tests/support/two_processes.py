"""Run a function, or a script of tools/, in two processes over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def in_two(*works):
    """Call each work(rank) in two processes that have a group; raise their errors.

    Works are functions at the top of a module. Starting takes seconds: check as much as
    possible in one call.
    """
    mp.spawn(_join, (free_port(), works), nprocs=2)


def _join(rank, port, works):
    torch.set_num_threads(1)
    # Not by a file: once one process waited for that after the other had ended.
    dist.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    for work in works:
        work(rank)
    dist.destroy_process_group()


def free_port():
    """Return a free port for MASTER_PORT."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def launch(script, *arguments, cwd, **variables):
    """Start a script of tools/ with this Python, on a port of its own."""
    environment = dict(
        os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT=str(free_port())
    )
    environment.update({key: str(value) for key, value in variables.items()})
    return subprocess.Popen(
        ['bash', str(TOOLS / script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
