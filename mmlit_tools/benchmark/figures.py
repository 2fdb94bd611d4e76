"""What follows from what `benchmark.py` measures: medians, rates, shares, fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

#: A backward pass costs twice a forward pass: gradients of inputs and of weights.
PASSES = {'forward': 1, 'train': 3}


def complete_rows(rows: list[dict], settings: dict) -> list[dict]:
    """Adds what follows from the measurements of `Bench.measure`.

    `gmac_per_image`; `latency` (median, quartiles and extremes, seconds);
    `images_per_s`; `gflops_per_s` achieved, `matmul_gflops_per_s` by dtype, and
    `share`, the former over the latter in float32 on a CPU and in the run's dtype on a
    GPU. None where it was not measured.
    """
    reference = reference_dtype(settings)
    batch = settings['batch']
    complete = []
    for row in rows:
        flop = 2 * settings['matmul_size'] ** 3
        matmul = {
            dtype: flop / summarise(seconds)['median'] / 1e9
            for dtype, seconds in row['matmul'].items()
        }
        latency = summarise(row['seconds']) if row['seconds'] else None
        macs = sum(row['macs'].values()) if row['macs'] else None
        rate = None
        if latency and macs:
            rate = 2 * macs * PASSES[settings['mode']] / latency['median'] / 1e9
        complete.append(
            dict(
                **row,
                gmac_per_image=macs / batch / 1e9 if macs else None,
                latency=latency,
                images_per_s=batch / latency['median'] if latency else None,
                gflops_per_s=rate,
                matmul_gflops_per_s=matmul,
                share=rate / matmul[reference] if rate else None,
            )
        )
    return complete


def reference_dtype(settings: dict) -> str:
    """The dtype of the matrix multiplication that speeds are compared with."""
    on_cpu = torch.device(settings['device']).type == 'cpu'
    return 'float32' if on_cpu else settings['dtype']


def fit_memory(rows: list[dict]) -> list[dict]:
    """Fits the memory of a step over pixels with a line, for each model.

    Models with fewer than three image areas are left out: two points are always on a
    line.
    """
    fits = []
    for model in dict.fromkeys(row['model'] for row in rows):
        points = [
            (row['height'] * row['width'], row['memory']['above'])
            for row in rows
            if row['model'] == model and row['memory']
        ]
        if len({pixels for pixels, _ in points}) > 2:
            fits.append(dict(model=model, **fit_line(*zip(*points))))
    return fits


def fit_line(pixels: list[int], memory: list[int]) -> dict[str, float]:
    """Least squares line through memory (bytes) over pixels.

    Returns:
        `slope` in bytes per pixel, `intercept` in bytes, `worst_residual`: the
        largest distance of a point from the line, relative to the point; `points`.
    """
    x, y = np.array(pixels, float), np.array(memory, float)
    slope, intercept = np.polyfit(x, y, 1)
    worst = np.abs(slope * x + intercept - y) / y
    return dict(
        slope=float(slope),
        intercept=float(intercept),
        worst_residual=float(worst.max()),
        points=len(x),
    )


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of at least one value."""
    q1, median, q3 = np.percentile(seconds, [25, 50, 75]).tolist()
    return dict(median=median, q1=q1, q3=q3, min=min(seconds), max=max(seconds))
