"""One image shape after the other: memory, counts, warm-up, rounds in turns."""

from __future__ import annotations

import os

import torch
from rich.progress import Progress
from torch import nn

from mmlit_tools.benchmark.macs import count_macs, count_parameters
from mmlit_tools.benchmark.measure import (
    StepError,
    cpu_memory,
    cuda_memory,
    make_matmul,
    reason,
    time_rounds,
)
from mmlit_tools.benchmark.models import Settings, Spec, build_model
from mmlit_tools.benchmark.steps import Step


class Bench:
    """All models of a run, built once and measured at one shape after the other.

    Args:
        specs: The models.
        settings: What they have in common.
        repeat: Rounds.
        warmup: Steps of each model before the rounds, besides the one that counts
            multiply-accumulates.
        matmul_size: Side of the reference matrices.
        with_memory: Whether to measure memory.
        progress: Where a bar is shown.
        shapes: How many shapes will be measured.
    """

    def __init__(
        self,
        specs: list[Spec],
        settings: Settings,
        repeat: int,
        warmup: int,
        matmul_size: int,
        with_memory: bool,
        progress: Progress,
        shapes: int,
    ):
        self._specs = specs
        self._settings = settings
        self._repeat = repeat
        self._warmup = warmup
        self._on_cuda = torch.device(settings.device).type == 'cuda'
        self._with_memory = with_memory
        self._matmuls = {
            dtype: make_matmul(matmul_size, dtype, settings.device)
            for dtype in dict.fromkeys(
                ('float32', *(spec.adapt(settings).dtype for spec in specs))
            )
        }
        rounds = repeat * (len(specs) + len(self._matmuls))
        self._progress = progress
        self._bar = progress.add_task('', total=shapes * (len(specs) + rounds))
        self._models: dict[Spec, nn.Module] = {}
        self._unbuilt: dict[Spec, str] = {}

    def measure(self, shape: tuple[int, int]) -> list[dict]:
        """Measures all models on images of (height, width) pixels.

        Returns:
            A dict per model: `model`, `height`, `width`; `parameters` and `macs` (by
            kind, of the whole batch); `seconds` of each round; `memory`, see
            `cpu_memory`; `matmul` (seconds by dtype, of the same rounds); `notes`,
            why something is missing. What is missing is None or empty.
        """
        rows, steps = {}, {}
        for spec in self._specs:
            rows[spec] = row = dict(
                model=spec.label,
                height=shape[0],
                width=shape[1],
                parameters=None,
                macs=None,
                seconds=[],
                memory=None,
                notes=[],
            )
            try:
                steps[spec] = self._prepare(spec, shape, row)
            # Whatever a model raises is its own row's matter.
            except Exception as error:
                row['notes'].append(reason(error))
                if self._on_cuda:
                    torch.cuda.empty_cache()
            self._progress.advance(self._bar)
        self._show('rounds', shape)
        for matmul in self._matmuls.values():
            matmul()
        seconds, failures = time_rounds(
            {**steps, **self._matmuls},
            self._repeat,
            self._settings.device,
            lambda: self._progress.advance(self._bar),
        )
        missing = len(self._specs) - len(steps)
        self._progress.advance(self._bar, missing * self._repeat)
        for spec, row in rows.items():
            row['seconds'] = seconds.get(spec, [])
            row['matmul'] = {dtype: seconds[dtype] for dtype in self._matmuls}
            row['notes'] += [failures[spec]] if spec in failures else []
        return list(rows.values())

    def _prepare(self, spec: Spec, shape: tuple[int, int], row: dict) -> Step:
        """Everything but the rounds: fills the row in, returns the warm step."""
        settings = spec.adapt(self._settings)
        self._show(f'{spec.label}: memory', shape)
        model = self._model(spec)
        row['parameters'] = count_parameters(model)
        # First of all: where this process would die for lack of memory, that one has
        # died before it.
        if self._with_memory and not self._on_cuda:
            row['memory'] = cpu_memory(spec, shape, settings)
        self._show(f'{spec.label}: warm-up', shape)
        step = Step(model, spec.scope, shape, settings)
        row['macs'] = count_macs(model, step.forward)
        for _ in range(self._warmup):
            step()
        if self._with_memory and self._on_cuda:
            row['memory'] = cuda_memory(step, self._settings.device)
        return step

    def _model(self, spec: Spec) -> nn.Module:
        if spec in self._unbuilt:
            raise StepError(self._unbuilt[spec])
        if spec not in self._models:
            try:
                self._models[spec] = build_model(spec, self._settings)
            except Exception as error:
                self._unbuilt[spec] = str(error)
                raise
        return self._models[spec]

    def _show(self, what: str, shape: tuple[int, int]) -> None:
        text = f'{shape[0]}x{shape[1]} {what}'
        self._progress.update(self._bar, description=text)


def memory_obstacle(settings: Settings) -> str | None:
    """Why memory cannot be measured here, if so."""
    if torch.device(settings.device).type == 'cuda':
        return None
    if not os.path.exists('/proc/self/status'):
        return 'memory: resident sets are read from /proc, which is not here'
    return None
