"""The benchmark: its clock, its memory, its reports, its refusals."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from mmlit_tools.benchmark import bench, command, measure, models
from mmlit_tools.models import ModelError
from support.micro_models import FPN, write_micro
from support.running_tools import stopped
from support.this_stack import STACK

SMALL = ('--matmul-size', '64', '--repeat', '1', '--threads', '1')
SETTINGS = models.Settings('train', 1, 'float32', 'cpu', threads=1, with_cp=False)
PROC = Path('/proc/self/status').exists()


def test_steps_take_turns_and_a_failing_one_drops_out():
    calls, ticks = [], []

    def failing():
        calls.append('b')
        if calls.count('b') == 2:
            raise RuntimeError('out of memory\n\nand more')

    steps = dict(a=lambda: calls.append('a'), b=failing, c=lambda: calls.append('c'))
    seconds, failures = measure.time_rounds(steps, 3, 'cpu', lambda: ticks.append(0))
    assert ''.join(calls) == 'abcabcac' and len(ticks) == 9
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, c=3)
    assert failures == dict(b='RuntimeError: out of memory')


@pytest.mark.slow
@pytest.mark.skipif(not PROC, reason='memory is read from /proc')
def test_memory_is_that_of_a_fresh_process():
    ours = torch.ones(2**28)  # 1 GiB, resident.
    memory = measure.cpu_memory(models.parse_model('lit-ti'), (64, 64), SETTINGS)
    assert memory['peak'] < ours.numel() * 4
    # The gradients of 19 M weights at least; not the weights, which were there before.
    assert 19.3e6 * 4 < memory['above'] < 2 * 19.3e6 * 4
    assert memory['before'] + memory['above'] <= memory['peak']


def run(folder, *arguments):
    command.main([*SMALL, '--out-dir', str(folder), *map(str, arguments)])
    report = json.loads((folder / 'benchmark.json').read_text())
    with open(folder / 'benchmark.csv', newline='') as lines:
        table = list(csv.DictReader(lines))
    return report, table, (folder / 'benchmark.md').read_text()


@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_reports_agree(mode, tmp_path, capsys, monkeypatch):
    forward = mode == 'forward'
    memory = dict(before=5 << 20, peak=99 << 20, above=7 << 20, reset=True)
    monkeypatch.setattr(bench, 'cpu_memory', lambda *_: memory)
    lit = write_micro(tmp_path / 'lit.py', *FPN)
    options = ['--models', lit, 'r50', '--mode', mode, '--batch', 2, '--sizes', 64]
    options += [96, '--repeat', 2] if forward else ['--no-memory']
    report, table, text = run(tmp_path, *options)
    said = capsys.readouterr().out
    rows = report['rows']
    assert [row['model'] for row in rows] == ['lit', 'r50'] * (1 + forward)
    assert report['notes'] == []
    mmseg = 'onedl-mmsegmentation' if STACK == 'onedl' else 'mmsegmentation'
    assert mmseg in report['machine']['versions']
    for row, line in zip(rows, table):
        macs = sum(row['macs'].values())
        assert row['gmac_per_image'] == pytest.approx(macs / 2 / 1e9)
        assert len(row['seconds']) == 1 + forward
        median = sum(row['seconds']) / len(row['seconds'])
        assert row['latency']['median'] == pytest.approx(median)
        assert row['images_per_s'] == pytest.approx(2 / median)
        flop = 2 * macs * (1 if forward else 3)
        assert row['gflops_per_s'] == pytest.approx(flop / median / 1e9)
        times = row['matmul']['float32']
        matmul = 2 * 64**3 / (sum(times) / len(times)) / 1e9
        assert row['share'] == pytest.approx(row['gflops_per_s'] / matmul)
        assert float(line['latency_median_s']) == row['latency']['median']
        assert float(line['gmac_per_image']) == row['gmac_per_image']
        assert (line['mode'], line['batch']) == (mode, '2')
        cells = [row['model'], f'{row["parameters"] / 1e6:.2f}', f'{1000 * median:.1f}']
        assert bool(row['memory']) == forward
        if forward:
            assert int(line['memory_above']) == row['memory']['above'] == 7 << 20
            cells += ['7', '99']
        assert all(cell in text and cell in said for cell in cells), cells
    pictures = sorted(path.name for path in tmp_path.glob('*.png'))
    assert pictures == ['latency.png', 'memory.png'] * forward
    for name in pictures:
        assert cv2.imread(str(tmp_path / name)).std() > 10


@pytest.mark.slow
def test_lit_alone_needs_no_mmdet(tmp_path):
    """With the memory of a fresh process."""
    arguments = ['--models', 'lit-ti', '--sizes', '64', *SMALL, '--dtype', 'bfloat16']
    arguments += ['--out-dir', str(tmp_path)]
    code = 'import sys; from mmlit_tools.benchmark import command; '
    code += f'command.main({arguments!r}); assert "mmdet" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)
    (row,) = json.loads((tmp_path / 'benchmark.json').read_text())['rows']
    assert row['parameters'] == 19_370_264 and bool(row['memory']) == PROC
    # The share is over float32 on a CPU.
    ratio = row['gflops_per_s'] / row['matmul_gflops_per_s']['float32']
    assert row['share'] == pytest.approx(ratio)
    assert set(row['matmul']) == {'float32', 'bfloat16'}


def test_a_model_that_cannot_be_built_is_an_empty_row(tmp_path, monkeypatch, capsys):
    build = models.models.build_model

    def fail(config):
        if config.model.get('attn_kernel') == 'eager':
            raise ModelError('attn_kernel=eager needs another torch')
        return build(config)

    monkeypatch.setattr(models.models, 'build_model', fail)
    monkeypatch.setattr('mmlit_tools.configs.find_spec', lambda name: None)
    options = ('--models', 'lit-ti:eager', 'r50', 'lit-ti', '--sizes', '64', '96')
    report, table, text = run(tmp_path, '--no-memory', *options)
    assert [bool(row['seconds']) for row in report['rows']] == [False, False, True] * 2
    assert table[0]['latency_median_s'] == ''
    for place in (text, capsys.readouterr().out):
        assert 'lit-ti:eager, 64x64: attn_kernel=eager needs' in place
        assert 'r50, 96x96: ' in place
        assert 'is not installed: ' in place and '"mmlit[' in place
    options = ['--out-dir', tmp_path, '--no-memory', '--models', 'r50', '--sizes', 64]
    said = 'benchmark.py: nothing could be measured'
    assert stopped(command.main, *SMALL, *options).startswith(said)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ('--models lit-xl', "model 'lit-xl' is unknown; valid: lit-ti, lit-s"),
        ('--models lit-s lit-s', 'model lit-s is named twice'),
        ('--shape 64 31', 'must be at least 32, got 31'),
        ('--sizes 16', 'must be at least 32, got 16'),
        ('--repeat 0', '--repeat must be at least 1, got 0'),
        ('--device tpu', "--device must be cpu or cuda[:N], got 'tpu'"),
    ],
)
def test_wrong_options_are_told_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in stopped(command.main, *options.split())
    assert list(tmp_path.iterdir()) == []
