"""Turn measurements into a table, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from mmlit.checkpoints.atomic import write_whole
from mmlit_tools.benchmark.macs import FORMULAS, KINDS
from mmlit_tools.benchmark.models import LIT_IMG_SIZE, PEERS
from mmlit_tools.benchmark.steps import IGNORED_SHARE, OBJECTS_PER_IMAGE

MIB = 2**20
#: A backward pass costs twice a forward pass: gradients of inputs and of weights.
PASSES = {'forward': 1, 'train': 3}
COLUMNS = (
    'model',
    'image',
    'params (M)',
    'GMAC / image',
    'latency (ms): median',
    'min to max',
    'images / s',
    'GFLOP/s',
    'of matmul',
    'memory of a step (MiB)',
    'peak (MiB)',
)
#: Explanations for the Markdown report.
METHOD = (
    'Models: lit-* are backbones with bias tables for images of '
    f"{LIT_IMG_SIZE} px, {', '.join(PEERS)} are mmdet's own; all emit four levels "
    'and train all their weights; other names are the whole detectors or segmentors of '
    'configs. Weights and images are random.',
    'Latency: the models take turns (A B A B), wall clock on a CPU, CUDA events on a '
    'GPU.',
    'Training of a backbone: the loss is a fixed random weighting of the mean of each '
    'channel of each level. Training of a detector: its own losses, on '
    f'{OBJECTS_PER_IMAGE} random objects per image. Training of a segmentor: its own '
    f'losses, on random labels, {IGNORED_SHARE:.0%} of them 255 (none). There is no '
    'optimizer.',
    'Forward pass of a detector: up to the raw outputs of its heads, without '
    'post-processing; in a two-stage detector the heads run on all proposals.',
    "Forward pass of a segmentor: mmseg's prediction, up to the logits at the image's "
    'size, of the image as a whole, also where the config says to slide a window; '
    'auxiliary heads only train.',
    'bfloat16 and float16: autocast, without loss scaling.',
)


# --- figures ----------------------------------------------------------------------


def complete_rows(rows: list[dict], settings: dict) -> list[dict]:
    """Add what follows from the measurements of `Bench.measure`.

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
    """Return the dtype of the matrix multiplication that speeds are compared with."""
    on_cpu = torch.device(settings['device']).type == 'cpu'
    return 'float32' if on_cpu else settings['dtype']


def fit_memory(rows: list[dict]) -> list[dict]:
    """Fit a line to the memory of a step over pixels, for each model.

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


def fit_line(pixels: Sequence[int], memory: Sequence[int]) -> dict[str, float]:
    """Fit a least squares line to memory (bytes) over pixels.

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
    """Return median, quartiles and extremes of at least one value."""
    q1, median, q3 = np.percentile(seconds, [25, 50, 75]).tolist()
    return dict(median=median, q1=q1, q3=q3, min=min(seconds), max=max(seconds))


# --- screen -----------------------------------------------------------------------


def make_table(report: dict) -> Table:
    """Make the table for the screen."""
    table = Table(title=describe_run(report['settings']))
    for i, column in enumerate(COLUMNS):
        justify = 'left' if i < 2 else 'right'
        table.add_column(column, justify=justify, overflow='fold', no_wrap=0 < i < 6)
    for row in report['rows']:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict) -> list[str]:
    """Format one row of the table; what was not measured is empty."""
    latency, memory = row['latency'] or {}, row['memory'] or {}
    low, high = _number(latency.get('min'), 1e-3), _number(latency.get('max'), 1e-3)
    return [
        row['model'],
        f'{row["height"]}x{row["width"]}',
        _number(row['parameters'], 1e6, 2),
        _number(row['gmac_per_image'], 1, 2),
        _number(latency.get('median'), 1e-3),
        f'{low} to {high}' if latency else '',
        _number(row['images_per_s'], 1, 3),
        _number(row['gflops_per_s'], 1),
        f'{row["share"]:.0%}' if row['share'] else '',
        _number(memory.get('above'), MIB, 0),
        _number(memory.get('peak'), MIB, 0),
    ]


def _number(value: float | None, unit: float, digits: int = 1) -> str:
    return '' if value is None else f'{value / unit:.{digits}f}'


def describe_run(settings: dict) -> str:
    """Spell the settings in a sentence."""
    step = {
        'forward': 'Forward pass (evaluation mode, no gradients)',
        'train': 'Training step (forward and backward pass, no optimizer)',
    }[settings['mode']]
    half = '' if settings['dtype'] == 'float32' else ' under autocast'
    parts = [f'{step}: batch {settings["batch"]}', settings['dtype'] + half]
    parts.append(settings['device'])
    if settings['with_cp']:
        parts.append('gradient checkpointing in LIT')
    if settings['repeat']:
        parts.append(f'{settings["repeat"]} interleaved rounds after warming up')
    return ', '.join(parts)


# --- files ------------------------------------------------------------------------


def write_report(report: dict, folder: Path) -> None:
    """Write `benchmark.json`, `.csv` and `.md` into a folder, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ('json', json.dumps(report, indent=1) + '\n'),
        ('csv', make_csv(report)),
        ('md', make_markdown(report)),
    ):
        content = memoryview(text.encode())
        write_whole(folder / f'benchmark.{suffix}', content)


def make_csv(report: dict) -> str:
    """Make one line per model and image size; times in seconds, memory in bytes."""
    common = ('mode', 'batch', 'dtype', 'device', 'threads')
    lines = []
    for row in report['rows']:
        latency, memory = row['latency'] or {}, row['memory'] or {}
        names = ('model', 'height', 'width', 'parameters', 'gmac_per_image')
        line = {name: row[name] for name in names}
        macs = row['macs'] or {}
        line.update({f'gmac_{k}': macs[k] / 1e9 if k in macs else None for k in KINDS})
        line.update({name: report['settings'][name] for name in common})
        keys = ('median', 'q1', 'q3', 'min', 'max')
        line.update({f'latency_{key}_s': latency.get(key) for key in keys})
        rates = ('images_per_s', 'gflops_per_s', 'share')
        line.update({name: row[name] for name in rates})
        line.update({f'memory_{k}': memory.get(k) for k in ('above', 'peak')})
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def make_markdown(report: dict) -> str:
    """Make the same table, with all that a reader needs to judge it."""
    parts = [
        '# Benchmark',
        describe_run(report['settings']) + '.',
        _describe_machine(report['machine']),
        _table(COLUMNS, [_cells(row) for row in report['rows']]),
        *(f'- {note}' for note in report['notes']),
        _describe_matmul(report),
        _describe_memory(report),
        '## How it was measured',
        '\n'.join(f'- {line}' for line in METHOD),
        '## Multiply-accumulates',
        'GMAC per image, by what does them; GFLOP = 2 x GMAC:',
        _breakdown(report),
        'Formulas:',
        '\n'.join(f'- {formula}.' for formula in FORMULAS),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ['---', '---', *(['---:'] * (len(columns) - 2))], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _describe_machine(machine: dict) -> str:
    versions = ', '.join(f'{k} {v}' for k, v in machine['versions'].items())
    lines = [
        f'- Date: {machine["date"]}',
        f'- CPU: {machine["cpu"]} ({machine["instructions"]}), {machine["cores"]} '
        f'cores, {machine["threads"]} threads used, {machine["memory_gib"]} GiB of '
        f'memory; load average before the start: {machine["load_average"]:.2f}',
        f'- Versions: {versions}; {machine["system"]}',
    ]
    if machine['gpu']:
        lines.insert(
            2,
            f'- GPU: {machine["gpu"]}, CUDA {machine["cuda"]}; TF32 in convolutions: '
            f'{machine["tf32_convolution"]}, in matrix multiplications: '
            f'{machine["tf32_matmul"]}',
        )
    return '\n'.join(lines)


def _describe_matmul(report: dict) -> str:
    settings = report['settings']
    size = settings['matmul_size']
    lines = []
    for row in {(r['height'], r['width']): r for r in report['rows']}.values():
        rates = ', '.join(
            f'{dtype} {rate:.1f} GFLOP/s'
            for dtype, rate in row['matmul_gflops_per_s'].items()
        )
        lines.append(f'- {row["height"]}x{row["width"]}: {rates}')
    head = (
        f'"of matmul" is the share of what a matrix multiplication of {size} x {size} '
        f'reaches in {reference_dtype(settings)}; measured in the same rounds, medians:'
    )
    return '\n'.join([head, '', *lines])


def _describe_memory(report: dict) -> str:
    if not any(row['memory'] for row in report['rows']):
        return ''
    if report['machine']['gpu']:
        how = (
            "Memory of a step: what CUDA's allocator held at its peak above what it "
            "held before the step. Peak: with the model's own weights."
        )
    else:
        how = (
            'Memory of a step: of a fresh process that builds the model and runs one '
            'step, the peak resident set (VmHWM) after the step minus the resident set '
            '(VmRSS) before it; in training it holds the gradients of all weights. '
            'Peak: the peak resident set of that process, its libraries included.'
        )
        if not all(row['memory']['reset'] for row in report['rows'] if row['memory']):
            how += (
                ' The peak could not be reset before the step: where building the '
                'model took more, memory of a step is an upper bound.'
            )
    if not report['fits']:
        return how
    rows = [
        [
            fit['model'],
            str(fit['points']),
            f'{fit["slope"] / 1024:.3f}',
            f'{fit["intercept"] / MIB:.1f}',
            f'{fit["worst_residual"]:.1%}',
        ]
        for fit in report['fits']
    ]
    columns = ('model', 'image sizes', 'slope (KiB / pixel)', 'intercept (MiB)')
    table = _table((*columns, 'worst residual'), rows)
    text = (
        'Growth of the memory of a step with the pixels of the images (height x width, '
        f'batch {report["settings"]["batch"]}): least squares line, and the largest '
        'distance of a point from it relative to the point.'
    )
    return f'{how}\n\n## Memory against pixels\n\n{text}\n\n{table}'


def _breakdown(report: dict) -> str:
    batch = report['settings']['batch']
    rows = [
        [
            row['model'],
            f'{row["height"]}x{row["width"]}',
            *(f'{row["macs"][kind] / batch / 1e9:.2f}' for kind in KINDS),
            f'{row["gmac_per_image"]:.2f}',
            f'{2 * row["gmac_per_image"]:.1f}',
        ]
        for row in report['rows']
        if row['macs']
    ]
    return _table(('model', 'image', *KINDS, 'all', 'GFLOP'), rows)
