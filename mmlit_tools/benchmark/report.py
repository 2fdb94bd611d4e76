"""The report files of `benchmark.py`: JSON, CSV and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmlit.checkpoints.atomic import write_whole
from mmlit_tools.benchmark.figures import reference_dtype
from mmlit_tools.benchmark.macs import FORMULAS, KINDS
from mmlit_tools.benchmark.models import LIT_IMG_SIZE
from mmlit_tools.benchmark.steps import OBJECTS_PER_IMAGE, UNLABELLED_SHARE
from mmlit_tools.benchmark.tables import (
    COLUMNS,
    MIB,
    describe_run,
    make_cells,
    make_csv,
)

#: How the figures come about, in words.
METHOD = (
    'Models: lit-* are backbones with bias tables for images of '
    f"{LIT_IMG_SIZE} px, swin-t, pvt-s and r50 are mmdet's own; all emit four levels "
    'and train all their weights; other names are the whole detectors or segmentors of '
    'configs. Weights and images are random.',
    'Latency: the models take turns (A B A B), wall clock on a CPU, CUDA events on a '
    'GPU.',
    'Training of a backbone: the loss is a fixed random weighting of the mean of each '
    'channel of each level. Training of a detector: its own losses, on '
    f'{OBJECTS_PER_IMAGE} random objects per image. Training of a segmentor: its own '
    f'losses, on random labels, {UNLABELLED_SHARE:.0%} of them 255 (none). There is no '
    'optimizer.',
    'Forward pass of a detector: up to the raw outputs of its heads, without '
    'post-processing; in a two-stage detector the heads run on all proposals.',
    "Forward pass of a segmentor: mmseg's prediction, up to the logits at the image's "
    'size, of the image as a whole, also where the config says to slide a window; '
    'auxiliary heads only train.',
    'bfloat16 and float16: autocast, without loss scaling.',
)


def write_report(report: dict, folder: Path) -> None:
    """Writes `benchmark.json`, `.csv` and `.md` into a folder, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        ('json', json.dumps(report, indent=1) + '\n'),
        ('csv', make_csv(report)),
        ('md', make_markdown(report)),
    ):
        content = memoryview(text.encode())
        write_whole(folder / f'benchmark.{suffix}', content, True, lambda _: None)


def make_markdown(report: dict) -> str:
    """The same table, and all that a reader needs to judge it."""
    parts = [
        '# Benchmark',
        describe_run(report['settings']) + '.',
        _describe_machine(report['machine']),
        _table(COLUMNS, [make_cells(row) for row in report['rows']]),
        *(f'- {note}' for note in report['notes']),
        _matmul(report),
        _memory(report),
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


def _matmul(report: dict) -> str:
    settings = report['settings']
    size = settings['matmul_size']
    lines = []
    for row in {(r['height'], r['width']): r for r in report['rows']}.values():
        rates = ', '.join(
            f'{dtype} {rate:.1f} GFLOP/s'
            for dtype, rate in row['matmul_gflops_per_s'].items()
        )
        lines.append(f'- {row["height"]}x{row["width"]}: {rates}')
    return '\n'.join(
        [
            f'"of matmul" is the share of what a matrix multiplication of {size} x '
            f'{size} reaches in {reference_dtype(settings)}; measured in the same '
            'rounds, medians:',
            '',
            *lines,
        ]
    )


def _memory(report: dict) -> str:
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
    columns = (
        *('model', 'image sizes', 'slope (KiB / pixel)', 'intercept (MiB)'),
        'worst residual',
    )
    text = (
        'Growth of the memory of a step with the pixels of the images (height x width, '
        f'batch {report["settings"]["batch"]}): least squares line, and the largest '
        'distance of a point from it relative to the point.'
    )
    return f'{how}\n\n## Memory against pixels\n\n{text}\n\n{_table(columns, rows)}'


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
