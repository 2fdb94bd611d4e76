"""Exports to ONNX give the numbers of PyTorch in onnxruntime, at any size."""

import contextlib
import io
import json
import re
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mmlit.errors import UserError
from mmlit.models.downsample import PatchEmbed
from mmlit.ops import patch_conv, resize
from mmlit.ops import relative_bias as bias
from mmlit.ops.deform_merge import deformable_merge
from mmlit_tools.export import command, dtm
from support.export_helpers import (
    MASK_RCNN,
    RETINANET,
    SEMANTIC_FPN,
    run_file,
    worst_difference,
    write_checkpoint,
)
from support.micro_models import write_mini
from support.running_tools import ROOT, stopped

SIZES = ('--size', 64, 96, '--size', 75, 130, '--size', 32, 45)
FAST = ('--repeat', 1)
TOLERANCE = 1e-4
LEVELS = [f'level{i}' for i in range(4)]
PYRAMIDS = [f'pyramid{i}' for i in range(5)]
HEADS = [f'{kind}{i}' for kind in ('cls_score', 'bbox_pred') for i in range(5)]


def export(*arguments):
    command.main([str(argument) for argument in arguments])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('export')


@pytest.fixture(scope='module')
def retinanet(folder):
    """Export RetinaNet with LIT-Ti by DeformConv: (file, model, output)."""
    model = write_checkpoint(folder / 'det.pth', RETINANET, classes=('cat', 'dog'))
    out, said = folder / 'det.onnx', io.StringIO()
    with contextlib.redirect_stdout(said):
        export(RETINANET, folder / 'det.pth', out, *SIZES, *FAST)
    return out, model, said.getvalue()


@pytest.fixture(scope='module')
def semantic_fpn(folder):
    """Export Semantic FPN with a small LIT by GridSample, in the oldest operators."""
    config = write_mini(folder / 'seg.py', SEMANTIC_FPN, 'relative')
    model = write_checkpoint(folder / 'seg.pth', config)
    out = folder / 'seg.onnx'
    export(config, folder / 'seg.pth', out, '--dtm', 'grid-sample', *SIZES, *FAST)
    return out, model


def in_row(outputs):
    return [level for levels in outputs for level in levels]


def largest_offset(model, image):
    """Return the largest offset of the first token merging, in tokens."""
    x = model.backbone.stages[0](image).permute(0, 3, 1, 2)
    return model.backbone.stages[1].downsample.dconv.conv_offset(x).abs().max()


# --- files ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(1, 3, 101, 64), (3, 3, 128, 96)])
@pytest.mark.parametrize(
    ('name', 'outputs'), [('retinanet', HEADS), ('semantic_fpn', ['logits'])]
)
def test_a_model_at_any_size(name, outputs, shape, request):
    file, model, *_ = request.getfixturevalue(name)
    image = torch.randn(shape)
    with torch.no_grad():
        wanted = model(image, mode='tensor')
        # Offsets that move samples by tokens: without them DTM were a convolution.
        assert largest_offset(model, image) > 1
    found = run_file(file, image)
    assert list(found) == outputs
    wanted = [wanted] if outputs == ['logits'] else in_row(wanted)
    assert worst_difference(found.values(), wanted) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'opset', 'operator', 'other'),
    [
        ('retinanet', 19, 'DeformConv', 'GridSample'),
        ('semantic_fpn', 16, 'GridSample', 'DeformConv'),
    ],
)
def test_what_a_file_holds(name, opset, operator, other, request, folder):
    file = request.getfixturevalue(name)[0]
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [('', opset)]
    kinds = [node.op_type for node in model.graph.node]
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    assert kinds.count(operator) == 3 and other not in kinds
    (image,) = model.graph.input
    sides = image.type.tensor_type.shape.dim
    assert [side.dim_param for side in sides] == ['batch', '', 'height', 'width']
    # Nothing of the machine that made it, and one file alone.
    assert str(ROOT).encode() not in file.read_bytes()
    assert not list(folder.glob(f'{file.name}?*')) + list(folder.glob('.*.part'))


@pytest.mark.slow
def test_the_table_has_every_size_and_batch(retinanet):
    _, _, said = retinanet
    assert 'retinanet_lit-ti_fpn_1x_coco.py, model, DeformConv, opset 19' in said
    rows = re.findall(r'(\d+x\d+) +│ +(\d) │ +(\d\.\de-\d\d) \(\w+\)', said)
    sizes = ('64x96', '75x130', '32x45')
    assert [row[:2] for row in rows] == [(s, n) for s in sizes for n in '13']
    assert all(0 < float(row[2]) <= TOLERANCE for row in rows)


@pytest.mark.slow
def test_check_passes_the_file_and_finds_a_changed_weight(retinanet, folder, capsys):
    file, _, _ = retinanet
    how = ('--check', '--size', 64, 96, '--batch', 1, *FAST)
    export(RETINANET, folder / 'det.pth', file, *how)
    assert 'gives the numbers of PyTorch' in capsys.readouterr().out
    model = onnx.load(file)
    merge = next(n for n in model.graph.node if n.op_type == 'DeformConv')
    weight = next(w for w in model.graph.initializer if w.name == merge.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    changed = folder / 'changed.onnx'
    onnx.save(model, changed)
    said = stopped(command.main, RETINANET, folder / 'det.pth', changed, *how)
    assert 'changed.onnx differs from PyTorch' in said


# --- parts, and initial weights ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ('part', 'dtm', 'pos_embed', 'names'),
    [
        ('backbone', 'deform-conv', 'relative', LEVELS),
        ('neck', 'grid-sample', 'absolute', PYRAMIDS),
    ],
)
def test_parts_and_forms(part, dtm, pos_embed, names, tmp_path):
    config = write_mini(tmp_path / 'mini.py', RETINANET, pos_embed)
    model = write_checkpoint(tmp_path / 'mini.pth', config)
    out = tmp_path / 'part.onnx'
    how = ('--part', part, '--dtm', dtm, '--size', 64, 96, '--batch', 1)
    export(config, tmp_path / 'mini.pth', out, *how, '--opset', 22, *FAST)
    image = torch.randn(2, 3, 75, 130)
    with torch.no_grad():
        wanted = model.backbone(image)
        if part == 'neck':
            wanted = model.neck(wanted)
        assert largest_offset(model, image) > 1
    found = run_file(out, image)
    assert list(found) == names
    assert worst_difference(found.values(), wanted) <= TOLERANCE
    assert onnx.load(out).opset_import[0].version == 22


@pytest.mark.slow
def test_initial_weights_are_said_and_nothing_is_fetched(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError('the network is not to be used')

    monkeypatch.setattr('socket.socket.connect', refuse)
    config = write_mini(tmp_path / 'mini.py', SEMANTIC_FPN, 'absolute')
    assert 'https://' in SEMANTIC_FPN.read_text()  # What is not to be fetched.
    out = tmp_path / 'model.onnx'
    export(config, out, '--size', 64, 64, '--batch', 1, *FAST)
    assert 'initial weights, and nothing is downloaded' in capsys.readouterr().out
    # The whole model, where no part is named.
    assert list(run_file(out, torch.randn(1, 3, 64, 64))) == ['logits']


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (('--opset', 18), ('--opset 18', 'DeformConv', 'opset 19', 'grid-sample')),
        (('--dtm', 'grid-sample', '--opset', 15), ('GridSample', 'opset 16')),
        (('--size', 28, 64), ('--size', '29', '28')),
        (('--repeat', 0), ('--repeat', 'at least 1')),
        (('--check', '--part', 'neck'), ('leave out --part',)),
        (('--check',), ('out.onnx', 'does not exist')),
    ],
)
def test_options_that_cannot_be(options, words, tmp_path):
    said = stopped(command.main, RETINANET, tmp_path / 'out.onnx', *options)
    assert all(word in said for word in words), said


def test_files_that_cannot_be(tmp_path):
    out = tmp_path / 'out.onnx'

    def refusal(*arguments):
        return stopped(command.main, RETINANET, *arguments)

    assert 'must end in .onnx' in refusal(tmp_path / 'out.pth')
    assert 'nowhere' in refusal(tmp_path / 'nowhere' / 'out.onnx')
    assert 'no.pth does not exist' in refusal('no.pth', out)
    out.write_bytes(b'not ONNX')
    assert '--force' in refusal(out)
    assert 'is not a sound ONNX file' in refusal(out, '--check')
    assert out.read_bytes() == b'not ONNX'


def test_models_that_cannot_be(tmp_path):
    out = tmp_path / 'out.onnx'
    two_stages = write_mini(tmp_path / 'two.py', MASK_RCNN, 'absolute')
    assert '--part neck' in stopped(command.main, two_stages, out)
    config = tmp_path / 'plain.py'
    config.write_text("model = dict(backbone=dict(type='LIT'))")
    assert 'default_scope=None' in stopped(command.main, config, out)
    mini = write_mini(tmp_path / 'mini.py', RETINANET, 'absolute')
    other = write_mini(tmp_path / 'other.py', RETINANET, 'relative')
    write_checkpoint(tmp_path / 'other.pth', other)
    said = stopped(command.main, mini, tmp_path / 'other.pth', out)
    assert 'other.pth does not fit' in said and 'position' in said
    assert not out.exists()


def test_an_old_onnxruntime_is_named(monkeypatch):
    monkeypatch.setattr(command.metadata, 'version', lambda name: '1.24.4')
    with pytest.raises(UserError, match='1.24.4 has no DeformConv: take 1.25'):
        command.check_runtime('deform-conv')
    command.check_runtime('grid-sample')


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    monkeypatch.delitem(sys.modules, 'mmlit_tools.export.graph', raising=False)
    monkeypatch.delattr('mmlit_tools.export.graph', raising=False)
    said = stopped(command.main, RETINANET, tmp_path / 'out.onnx')
    assert 'onnx is not installed: pip install "mmlit[onnx]"' in said


# --- what takes other ways in an export ---------------------------------------------


def test_both_forms_sample_as_mmlit_does():
    torch.manual_seed(0)
    tokens, weight = torch.randn(2, 5, 9, 6), torch.randn(7, 5, 2, 2)
    offsets = 3 * torch.randn(2, 8, 4, 3)  # far out of the map too
    wanted = deformable_merge(tokens, offsets, weight)
    found = dtm.grid_sample(tokens, offsets, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_export_computes_what_mmlit_does(monkeypatch):
    torch.manual_seed(0)
    table = torch.randn(3, 9, 13)
    patches = PatchEmbed(3, 8)
    images = [torch.randn(1, 3, *size) for size in ((8, 12), (9, 14), (11, 15))]
    cases = [
        (bias, lambda: bias.dense_bias(table)),
        (resize, lambda: resize.resize_bias_table(table, (5, 7))),
        (resize, lambda: resize.resize_bias_table(table, (1, 4))),
        *((patch_conv, lambda image=image: patches(image)) for image in images),
    ]
    for module, compute in cases:
        wanted = compute()
        with monkeypatch.context() as patch:
            patch.setattr(module, 'is_exporting', lambda: True)
            found = compute()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# --- docs ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_the_docs_runs(retinanet, monkeypatch, tmp_path, capsys):
    file, model, _ = retinanet
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    (tmp_path / 'model.onnx').write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'docs/deployment.md').read_text()
    (example,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    names = {}
    exec(example, names)
    inputs = [torch.from_numpy(pixels).permute(2, 0, 1)]
    batch = model.data_preprocessor(dict(inputs=inputs, data_samples=None))['inputs']
    np.testing.assert_allclose(names['image'], batch.numpy(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        wanted = in_row(model(batch, mode='tensor'))
    assert worst_difference(names['outputs'].values(), wanted) <= TOLERANCE
    assert json.loads(names['notes']['classes']) == ['cat', 'dog']
    assert 'cls_score0' in capsys.readouterr().out
