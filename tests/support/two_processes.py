"""Run a function, or a script of tools/, in two processes over gloo."""

import functools
import importlib.util
import inspect
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

    Works are functions at the top of a module, or partials of these. Starting takes
    seconds, so that what can be checked in one go is; the error says which work failed.
    """
    mp.spawn(_join, (free_port(), [_locate(work) for work in works]), nprocs=2)


def _locate(work):
    """Return file, name and arguments: pytest's names of test modules do not import."""
    function, arguments = getattr(work, 'func', work), getattr(work, 'args', ())
    return inspect.getfile(function), function.__name__, arguments


def _join(rank, port, works):
    torch.set_num_threads(1)
    # Not by a file: once one process waited for that after the other had ended.
    dist.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    for file, name, arguments in works:
        getattr(_load(file), name)(*arguments, rank)
    dist.destroy_process_group()


@functools.lru_cache
def _load(file):
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
