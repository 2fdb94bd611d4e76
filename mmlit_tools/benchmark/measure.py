"""Measure time and memory of steps; describe the machine."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from mmlit.errors import UserError, spell_error
from mmlit_tools.benchmark.models import DTYPES, Settings, Spec
from mmlit_tools.benchmark.steps import Step

MEMORY_COMMAND = (sys.executable, '-m', 'mmlit_tools.benchmark.memory_process')
DISTRIBUTIONS = (
    *('mmlit', 'torch', 'mmcv', 'mmengine', 'mmdet', 'mmsegmentation', 'numpy'),
    *('onedl-mmcv', 'onedl-mmengine', 'onedl-mmdetection', 'onedl-mmsegmentation'),
)
MIB = 2**20


class StepError(UserError, RuntimeError):
    """A model cannot be measured."""


def spell_failure(error: Exception) -> str:
    """Return an error in one line, for the notes below a table."""
    return str(error) if isinstance(error, UserError) else spell_error(error)


def use_threads(count: int) -> None:
    """Set the number of torch's CPU threads, unless it is the present one.

    Any call makes MKL keep threads ready inside torch's own: fused attention, which
    multiplies small matrices there, took 1.4 times as long (torch 2.13).
    `OMP_NUM_THREADS` has no such effect.
    """
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def time_rounds(
    steps: dict[str, Callable[[], None]],
    repeat: int,
    device: str,
    advance: Callable[[], None],
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time steps in turns, A B A B ..., so that a slow minute hits all of them.

    Args:
        steps: By name; warmed up.
        repeat: Number of rounds.
        device: Where they compute.
        advance: Called after each step.

    Returns:
        Seconds of each round by name, and the reasons of those that failed, which
        leave the first dict.
    """
    seconds = {name: [] for name in steps}
    failures = {}
    for _ in range(repeat):
        for name, step in steps.items():
            if name not in failures:
                gc.collect()
                try:
                    seconds[name].append(_time(step, device))
                except Exception as error:  # A failing step must not end the others.
                    failures[name] = spell_failure(error)
            advance()
    return {k: v for k, v in seconds.items() if k not in failures}, failures


def _time(step: Callable[[], None], device: str) -> float:
    if torch.device(device).type != 'cuda':
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def make_matmul(size: int, dtype: str, device: str) -> Callable[[], None]:
    """Return a step that multiplies two square matrices of this size."""
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def cpu_memory(
    spec: Spec, shape: tuple[int, int], settings: Settings
) -> dict[str, int | bool]:
    """Measure the memory of one step in bytes, in a fresh process.

    Returns:
        `before`: resident set with the model built; `peak`: peak resident set of the
        process; `above`: how far the step alone rose above `before`; `reset`: whether
        the peak was reset before the step (else `above` is an upper bound).

    Raises:
        StepError: The process failed.
    """
    asked = dict(spec=asdict(spec), shape=shape, settings=asdict(settings))
    command = [*MEMORY_COMMAND, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = ' (out of memory?)' if name == 'SIGKILL' else ''
        raise StepError(f'a process with it alone was ended by {name}{hint}')
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        raise StepError(last[:200])
    return json.loads(done.stdout.splitlines()[-1])


def cuda_memory(step: Step, device: str) -> dict[str, int | bool]:
    """Measure as `cpu_memory` by CUDA's allocator, without other models' weights."""
    weights = _bytes_of(step.model)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    above = torch.cuda.max_memory_allocated(device) - allocated
    return dict(before=weights, peak=weights + above, above=above, reset=True)


def _bytes_of(model: nn.Module) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def describe_machine(settings: Settings) -> dict:
    """Return what the figures depend on besides the models."""
    text = _read('/proc/cpuinfo')
    model = re.search(r'^model name\s*: (.*)$', text, re.MULTILINE)
    memory = re.search(r'^MemTotal:\s*(\d+) kB', _read('/proc/meminfo'), re.MULTILINE)
    cuda = torch.device(settings.device).type == 'cuda'
    return dict(
        date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        cpu=model[1] if model else platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        memory_gib=round(int(memory[1]) / MIB, 1) if memory else None,
        instructions=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        load_average=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        gpu=torch.cuda.get_device_name(settings.device) if cuda else None,
        cuda=torch.version.cuda if cuda else None,
        tf32_convolution=torch.backends.cudnn.allow_tf32 if cuda else None,
        tf32_matmul=torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        system=platform.platform(),
        versions=dict(python=platform.python_version(), **_versions()),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, 'torch': torch.__version__}


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ''
