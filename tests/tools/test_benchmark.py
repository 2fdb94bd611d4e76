"""The benchmark: its counts, its clock, its memory, its reports, its refusals."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from mmlit import LIT
from mmlit.archs import ARCHS
from mmlit.models.attention import GlobalAttention
from mmlit.models.downsample import MergeConv2d
from mmlit_tools.benchmark import command as benchmark
from mmlit_tools.benchmark import (
    measure,
    models,
)
from mmlit_tools.benchmark.figures import fit_line, fit_memory
from mmlit_tools.benchmark.macs import count_macs
from mmlit_tools.benchmark.steps import Step

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

RETINANET = str(ROOT / 'configs/detection/retinanet_lit-ti_fpn_1x_coco.py')
MASK_RCNN = str(ROOT / 'configs/detection/mask-rcnn_lit-ti_fpn_1x_coco.py')
SMALL = ('--matmul-size', '64', '--repeat', '1', '--threads', '1')


def make_settings(mode='forward', **changes):
    return models.Settings(
        **{
            **dict(mode=mode, batch=1, dtype='float32', device='cpu', threads=1),
            **dict(with_cp=False),
            **changes,
        }
    )


def make_step(text, shape=(64, 96), **changes):
    settings = make_settings(**changes)
    spec = models.parse_model(text)
    model = models.build_model(spec, settings)
    return Step(model, spec.scope, shape, settings)


# --- counts -----------------------------------------------------------------------


@pytest.mark.parametrize('name', ['lit-ti:eager', 'swin-t', 'pvt-s', 'r50'])
def test_counts_are_those_of_torchs_counter(name):
    step = make_step(name)
    macs = count_macs(step.model, step.forward)
    with FlopCounterMode(display=False) as counter:
        step.forward()
    # On the CPU torch sees the deformable convolutions too: their products are its own.
    assert sum(macs.values()) == counter.get_total_flops() / 2
    assert (macs['deformable'] > 0) == name.startswith('lit')
    assert (macs['attention'] > 0) == (name != 'r50')


@pytest.mark.parametrize('name', ['lit-s', 'r50'])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore:.*torch.jit.*')
def test_counts_are_those_of_fvcore(name):
    step = make_step(name, (64, 64))
    macs = count_macs(step.model, step.forward)
    image = torch.randn(1, 3, 64, 64)
    analysis = FlopCountAnalysis(step.model, image).unsupported_ops_warnings(False)
    theirs = analysis.by_operator()
    # Theirs holds the products of the deformable convolutions, ours has them apart.
    merging = 0
    if name == 'lit-s':
        widths = ((96, 192, 8), (192, 384, 4), (384, 768, 2))
        merging = sum(4 * c * out * n**2 for c, out, n in widths)
    assert macs['linear'] + merging == theirs.get('linear', 0)
    # Theirs holds the offsets' convolutions, ours beside the deformable ones.
    offsets = 0
    if name == 'lit-s':
        offsets = sum(8 * 4 * c * n**2 for c, n in ((96, 8), (192, 4), (384, 2)))
    assert macs['convolution'] + offsets == theirs['conv']


@pytest.fixture
def no_sampling(monkeypatch):
    """Token merging on the meta device, of which mmcv's operator knows nothing."""

    def merge(self, x):
        grid = self.conv_offset(x).shape[-2:]
        return x.new_empty(x.shape[0], self.out_channels, *grid)

    monkeypatch.setattr(MergeConv2d, 'forward', merge)


def macs_by_hand(arch, height, width):
    """The paper's network, term by term: (all, token merging alone)."""
    arch = ARCHS[arch]
    tokens = [height * width // 16 // 4**i for i in range(4)]
    merging = total = 0
    for i, (n, c) in enumerate(zip(tokens, arch.embed_dims)):
        block = 2 * n * c * c * arch.mlp_ratios[i]
        if i >= 2:
            block += 4 * n * c * c + 2 * n * n * c
        total += arch.depths[i] * block
        if i > 0:  # Four points of the tokens before: weights, and offsets (y, x).
            merging += n * 4 * arch.embed_dims[i - 1] * (c + 2 * 4)
    return total + tokens[0] * 4 * 4 * 3 * arch.embed_dims[0] + merging, merging


@pytest.mark.parametrize(
    ('arch', 'gflop', 'merging'), [('small', 336.1, 7.6), ('tiny', 290.0, 4.0)]
)
@pytest.mark.usefixtures('no_sampling')
def test_counts_at_the_size_of_detection(arch, gflop, merging):
    with torch.device('meta'):
        model = LIT(arch, img_size=800).eval()
        images = torch.empty(2, 3, 800, 1344)
    for kernel in ('eager', 'sdpa'):
        for module in model.modules():
            if isinstance(module, GlobalAttention):
                module.kernel = models.KERNELS[kernel]
        macs = count_macs(model, lambda: model(images))
        # Two images are counted, and two FLOP make a multiply-accumulate.
        figures = sum(macs.values()), macs['deformable']
        assert figures == tuple(2 * n for n in macs_by_hand(arch, 800, 1344))
        assert [round(n / 1e9, 1) for n in figures] == [gflop, merging]


def test_recomputation_is_not_counted():
    plain, checkpointed = (
        make_step('lit-ti', mode='train', with_cp=with_cp) for with_cp in (False, True)
    )
    macs = count_macs(plain.model, plain.forward)
    assert count_macs(checkpointed.model, checkpointed.forward) == macs
    checkpointed()


# --- time and memory --------------------------------------------------------------


def test_steps_take_turns_and_a_failing_one_drops_out():
    calls = []

    def failing():
        calls.append('b')
        if calls.count('b') == 2:
            raise RuntimeError('out of memory\nand more')

    steps = dict(a=lambda: calls.append('a'), b=failing, c=lambda: calls.append('c'))
    ticks = []
    seconds, failures = measure.time_rounds(steps, 3, 'cpu', lambda: ticks.append(0))
    assert ''.join(calls) == 'abcabcac'
    assert len(ticks) == 9
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, c=3)
    assert failures == dict(b='RuntimeError: out of memory')


needs_proc = pytest.mark.skipif(
    not Path('/proc/self/status').exists(), reason='memory is read from /proc'
)


@needs_proc
def test_memory_is_that_of_a_fresh_process():
    ours = torch.ones(2**28)  # 1 GiB, resident.
    spec = models.parse_model('lit-ti')
    memory = measure.cpu_memory(spec, (64, 64), make_settings('train'))
    assert memory['peak'] < ours.numel() * 4
    # The gradients of 19 M weights at least; not the weights, which were there before.
    assert 19.3e6 * 4 < memory['above'] < 2 * 19.3e6 * 4
    assert memory['before'] + memory['above'] <= memory['peak']


@needs_proc
def test_a_killed_process_is_told(monkeypatch, tmp_path):
    script = tmp_path / 'killed.py'
    script.write_text('import os; os.kill(os.getpid(), 9)')
    monkeypatch.setattr(measure, 'MEMORY_SCRIPT', script)
    with pytest.raises(measure.StepError, match=r'SIGKILL \(out of memory'):
        measure.cpu_memory(models.parse_model('lit-ti'), (64, 64), make_settings())


def test_fit_is_the_least_squares_line():
    fit = fit_line([1, 2, 3, 4], [13, 15, 17, 19])
    assert fit == pytest.approx(
        dict(slope=2, intercept=11, worst_residual=0, points=4), abs=1e-12
    )
    # By hand: slope 3, intercept -1, so 2, 5, 8 against 3, 3, 9.
    fit = fit_line([1, 2, 3], [3, 3, 9])
    assert (fit['slope'], fit['intercept']) == pytest.approx((3, -1))
    assert fit['worst_residual'] == pytest.approx(2 / 3)


def test_fit_needs_three_areas():
    rows = [
        dict(model='a', height=64, width=side, memory=dict(above=64 * side + 5))
        for side in (32, 64)
    ]
    turned = dict(model='a', height=32, width=64, memory=rows[0]['memory'])
    unmeasured = dict(model='a', height=99, width=99, memory=None)
    assert fit_memory([*rows, turned, unmeasured]) == []
    rows.append(dict(model='a', height=64, width=96, memory=dict(above=64 * 96 + 5)))
    (fit,) = fit_memory([*rows, unmeasured])
    assert fit['model'] == 'a'
    assert (fit['slope'], fit['intercept']) == pytest.approx((1, 5))


# --- the command ------------------------------------------------------------------


def run(folder, *arguments):
    benchmark.main([*SMALL, '--out-dir', str(folder), *arguments])
    report = json.loads((folder / 'benchmark.json').read_text())
    with open(folder / 'benchmark.csv', newline='') as lines:
        table = list(csv.DictReader(lines))
    return report, table, (folder / 'benchmark.md').read_text()


@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_reports_agree(mode, tmp_path, capsys):
    shapes = ['--shape', '64', '64']
    shapes += ['--shape', '64', '96'] if mode == 'forward' else []
    options = ['--models', 'lit-ti', 'r50', '--mode', mode, '--batch', '2', *shapes]
    options += ['--repeat', '2'] if mode == 'forward' else ['--no-memory']
    report, table, text = run(tmp_path, *options)
    said = capsys.readouterr().out
    rows = report['rows']
    assert [row['model'] for row in rows] == ['lit-ti', 'r50'] * (len(shapes) // 3)
    for row, line in zip(rows, table):
        macs = sum(row['macs'].values())
        assert row['gmac_per_image'] == pytest.approx(macs / 2 / 1e9)
        assert len(row['seconds']) == (2 if mode == 'forward' else 1)
        median = sum(row['seconds']) / len(row['seconds'])
        assert row['latency']['median'] == pytest.approx(median)
        assert row['images_per_s'] == pytest.approx(2 / median)
        flop = 2 * macs * (3 if mode == 'train' else 1)
        assert row['gflops_per_s'] == pytest.approx(flop / median / 1e9)
        times = row['matmul']['float32']
        matmul = 2 * 64**3 / (sum(times) / len(times)) / 1e9
        assert row['share'] == pytest.approx(row['gflops_per_s'] / matmul)
        assert float(line['latency_median_s']) == row['latency']['median']
        assert float(line['gmac_per_image']) == row['gmac_per_image']
        assert (line['mode'], line['batch']) == (mode, '2')
        cells = [row['model'], f'{row["parameters"] / 1e6:.2f}', f'{1000 * median:.1f}']
        if mode == 'forward':
            assert int(line['memory_above']) == row['memory']['above'] > 0
            cells.append(f'{row["memory"]["above"] / 2**20:.0f}')
        for place in (text, said):
            assert all(cell in place for cell in cells), cells
    assert rows[0]['parameters'] == 19_370_264
    pictures = sorted(path.name for path in tmp_path.glob('*.png'))
    assert pictures == (['latency.png', 'memory.png'] if mode == 'forward' else [])
    for name in pictures:
        assert cv2.imread(str(tmp_path / name)).std() > 10


def test_lit_alone_needs_no_mmdet(tmp_path):
    arguments = ['--models', 'lit-ti', '--no-memory', '--sizes', '64', *SMALL]
    arguments += ['--dtype', 'bfloat16', '--out-dir', str(tmp_path)]
    code = 'import sys; from mmlit_tools.benchmark import command as benchmark; '
    code += f'benchmark.main({arguments!r}); assert "mmdet" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)
    (row,) = json.loads((tmp_path / 'benchmark.json').read_text())['rows']
    assert row['memory'] is None
    # The share is over float32 on a CPU.
    ratio = row['gflops_per_s'] / row['matmul_gflops_per_s']['float32']
    assert row['share'] == pytest.approx(ratio)
    assert set(row['matmul']) == {'float32', 'bfloat16'}


def test_a_model_that_cannot_be_built_is_an_empty_row(tmp_path, monkeypatch, capsys):
    def build(*args, attn_kernel, **kwargs):
        if attn_kernel == 'eager':
            raise ValueError('attn_kernel=eager needs another torch')
        return LIT(*args, attn_kernel=attn_kernel, **kwargs)

    monkeypatch.setattr(models, 'LIT', build)
    monkeypatch.setattr(models, 'find_spec', lambda name: None)
    options = ('--models', 'lit-ti:eager', 'r50', 'lit-ti', '--sizes', '64', '96')
    report, table, text = run(tmp_path, '--no-memory', *options)
    assert [bool(row['seconds']) for row in report['rows']] == [False, False, True] * 2
    assert table[0]['latency_median_s'] == ''
    for place in (text, capsys.readouterr().out):
        assert 'lit-ti:eager, 64x64: ValueError: attn_kernel=eager needs' in place
        assert 'r50, 96x96: ' in place
        assert 'mmdet is not installed' in place


def test_nothing_measured_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(models, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='nothing could be measured'):
        run(tmp_path, '--no-memory', '--models', 'r50', '--sizes', '64')


def test_a_whole_detector(tmp_path):
    report, _, _ = run(
        *(tmp_path, '--models', f'{RETINANET}:eager', '--no-memory', '--sizes', '64')
    )
    (row,) = report['rows']
    assert row['model'] == 'retinanet_lit-ti_fpn_1x_coco:eager'
    assert row['parameters'] > 29e6
    assert row['seconds']
    assert str(ROOT) not in json.dumps(report)


def test_a_whole_detector_trains_boxes_and_masks():
    step = make_step(MASK_RCNN, (64, 64), mode='train')
    loss = step.forward()
    loss.backward()
    assert math.isfinite(loss.detach())
    head = step.model.roi_head
    for module in (step.model.backbone, head.bbox_head, head.mask_head):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert sum(grad.abs().sum() for grad in grads) > 0


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--models', 'lit-xl'], "model 'lit-xl' is unknown; valid: lit-ti, lit-s"),
        (['--models', 'lit-s:fast'], "kernel 'fast' is unknown; valid: auto, eager"),
        (['--models', 'r50:sdpa'], 'only LIT has kernels'),
        (['--models', 'no/such.py'], 'there is no such file'),
        (['--models', 'lit-s', 'lit-s'], 'model lit-s is named twice'),
        (['--shape', '64', '31'], 'must be at least 32, got 31'),
        (['--sizes', '16'], 'must be at least 32, got 16'),
        (['--repeat', '0'], '--repeat must be at least 1, got 0'),
        (['--batch', '0'], '--batch must be at least 1, got 0'),
        (['--device', 'tpu'], "--device must be cpu or cuda[:N], got 'tpu'"),
    ],
)
def test_wrong_options_are_told_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(options)
    assert words in stop.value.code
    assert '\n' not in stop.value.code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ("default_scope = 'mmpose'\nmodel = dict(backbone=dict())", "has 'mmpose'"),
        ("_base_ = 'no_such_base.py'", 'the config cannot be read'),
    ],
)
def test_a_config_of_something_else_is_refused(content, words, tmp_path):
    (tmp_path / 'config.py').write_text(content)
    with pytest.raises(ValueError, match=words):
        models.parse_model(str(tmp_path / 'config.py'))
