"""Measure all models at one image shape after the other."""

from __future__ import annotations

import os

import torch
from rich.progress import Progress
from torch import nn

from mmlit.errors import UserError
from mmlit_tools.benchmark.macs import count_macs, count_parameters
from mmlit_tools.benchmark.measure import (
    cpu_memory,
    cuda_memory,
    make_matmul,
    spell_failure,
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
        """Measure all models on images of (height, width) pixels.

        Returns:
            A dict per model: `model`, `height`, `width`; `parameters` and `macs` (by
            kind, of the whole batch); `seconds` of each round; `memory`, see
            `cpu_memory`; `matmul` (seconds by dtype, of the same rounds); `notes`,
            the reasons of missing figures, which are None or empty.
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
            except Exception as error:  # A failing model must not end the others.
                row['notes'].append(spell_failure(error))
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
        """Measure everything but time; return the warm step."""
        settings = spec.adapt(self._settings)
        self._show(f'{spec.label}: memory', shape)
        model = self._model(spec)
        row['parameters'] = count_parameters(model)
        # First: where memory is lacking, that process is killed before this one.
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
            raise UserError(self._unbuilt[spec])
        if spec not in self._models:
            try:
                self._models[spec] = build_model(spec, self._settings)
            except Exception as error:
                self._unbuilt[spec] = spell_failure(error)
                raise
        return self._models[spec]

    def _show(self, what: str, shape: tuple[int, int]) -> None:
        text = f'{shape[0]}x{shape[1]} {what}'
        self._progress.update(self._bar, description=text)


def memory_obstacle(settings: Settings) -> str | None:
    """Return why memory cannot be measured here, or None."""
    if torch.device(settings.device).type == 'cuda':
        return None
    if not os.path.exists('/proc/self/status'):
        return 'memory: resident sets are read from /proc, which is missing here'
    return None
