"""The measurements of `benchmark.py` as tables: for the screen, as CSV."""

from __future__ import annotations

import csv
import io

from rich.table import Table

from mmlit_tools.benchmark.macs import KINDS

MIB = 2**20
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


def make_table(report: dict) -> Table:
    """The table for the screen."""
    table = Table(title=describe_run(report['settings']))
    for i, column in enumerate(COLUMNS):
        justify = 'left' if i < 2 else 'right'
        table.add_column(column, justify=justify, overflow='fold', no_wrap=0 < i < 6)
    for row in report['rows']:
        table.add_row(*make_cells(row))
    return table


def make_cells(row: dict) -> list[str]:
    """One row of the table; what was not measured is empty."""
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
    """The settings in a sentence."""
    step = {
        'forward': 'Forward pass (evaluation mode, no gradients)',
        'train': 'Training step (forward and backward pass, no optimizer)',
    }[settings['mode']]
    half = '' if settings['dtype'] == 'float32' else ' under autocast'
    extras = ['gradient checkpointing in LIT'] if settings['with_cp'] else []
    if settings['repeat']:
        extras.append(f'{settings["repeat"]} interleaved rounds after warming up')
    return ', '.join(
        [
            f'{step}: batch {settings["batch"]}',
            settings['dtype'] + half,
            settings['device'],
            *extras,
        ]
    )


def make_csv(report: dict) -> str:
    """One line per model and image size; times in seconds, memory in bytes."""
    common = ('mode', 'batch', 'dtype', 'device', 'threads')
    lines = []
    for row in report['rows']:
        latency, memory = row['latency'] or {}, row['memory'] or {}
        names = ('model', 'height', 'width', 'parameters', 'gmac_per_image')
        line = {name: row[name] for name in names}
        line.update({f'gmac_{k}': _giga(row['macs'], k) for k in KINDS})
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


def _giga(macs: dict[str, int] | None, kind: str) -> float | None:
    return macs[kind] / 1e9 if macs else None
