"""From a network in PyTorch to a model in ONNX, open in batch, height and width."""

from __future__ import annotations

import copy
import warnings

import onnx
import onnx.inliner
import onnx.version_converter
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from torch import Tensor, nn
from torch.export import Dim

from mmlit_tools.export.dtm import FORMS, set_form
from mmlit_tools.export.parts import MIN_SIDE, PARTS, TRACED_SIZE, Part
from mmlit_tools.models import without_log

INPUT = 'image'
#: The oldest operators that torch's exporter writes by itself.
EXPORTER_OPSET = 18
#: Images at a time while it is traced.
TRACED_BATCH = 2


class ExportError(Exception):
    """The network cannot be exported; the message says why, in one line."""


def export_graph(
    network: Part, names: list[str], form: str, opset: int
) -> onnx.ModelProto:
    """Exports a network that maps one image tensor to tensors.

    Args:
        network: In evaluation mode; it stays as it is.
        names: Of its outputs.
        form: How token merging is written, see `export_dtm.FORMS`.
        opset: Version of ONNX's operators.

    Raises:
        ExportError: Some operation has no counterpart in ONNX, or none for open sizes.
    """
    image = torch.zeros(TRACED_BATCH, network.channels, *TRACED_SIZE)
    network = copy.deepcopy(network)
    set_form(network, form)
    _open_upsampling(network)
    sizes = {
        0: Dim('batch', min=1),
        2: Dim('height', min=MIN_SIDE),
        3: Dim('width', min=MIN_SIDE),
    }
    try:
        with without_log(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                network,
                (image,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=names,
                opset_version=max(opset, EXPORTER_OPSET),
                dynamic_shapes=(sizes,),
            )
            model = _lower(program.model_proto, opset)
    # Whatever stands in the way: operators, sizes, versions.
    except Exception as error:
        raise ExportError(
            f'the export failed ({_first_line(error.__cause__ or error)})'
        ) from error
    _tidy(model)
    _check_open(model, opset)
    return model


class _Upsample(nn.Module):
    """mmseg's upsampling by a whole factor, which it multiplies as a Python float.

    That would fix the size of its map in an exported graph.
    """

    def __init__(self, original: nn.Module):
        super().__init__()
        self.original = original

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, factor * H, factor * W)."""
        factor, mode = int(self.original.scale_factor), self.original.mode
        size = [side * factor for side in x.shape[-2:]]
        return F.interpolate(x, size, None, mode, self.original.align_corners)


def _open_upsampling(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child).__module__.startswith('mmseg.') and (
                type(child).__name__ == 'Upsample'
                and isinstance(child.scale_factor, float)
                and child.scale_factor.is_integer()
            ):
                setattr(parent, name, _Upsample(child))


def _lower(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Rewrites a model in older operators than the exporter writes."""
    if opset >= EXPORTER_OPSET:
        return model
    if opset < 17:  # Where LayerNormalization began.
        model = onnx.inliner.inline_selected_functions(
            model, [('', 'LayerNormalization')], inline_schema_functions=True
        )
    return onnx.version_converter.convert_version(model, opset)


def _tidy(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes: they hold the paths of this machine."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.doc_string = ''
        del part.metadata_props[:]
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def _check_open(model: onnx.ModelProto, opset: int) -> None:
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {'': opset} or model.functions:
        raise ExportError(f'the graph needs operators of {written}, not opset {opset}')
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        closed = [str(i) for i in (0, 2, 3) if sides[i].HasField('dim_value')]
        if closed:
            raise ExportError(
                f'the sizes of {value.name} came out fixed in dimension '
                + ', '.join(closed)
            )


def serialize(model: onnx.ModelProto, notes: dict[str, str]) -> bytes:
    """The content of the file, checked by `onnx.checker`.

    Args:
        model: What `export_graph` gave.
        notes: What the file is to say of itself.
    """
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def read_notes(content: bytes) -> dict[str, str]:
    """What a file says of itself; `onnx.checker` looks at all of it.

    Raises:
        ExportError: It is broken, or not of this tool.
    """
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ExportError(f'it is no sound ONNX file ({_first_line(error)})') from error
    notes = {entry.key: entry.value for entry in model.metadata_props}
    if notes.get('part') not in PARTS or notes.get('dtm') not in FORMS:
        raise ExportError('it was not written by export_onnx.py')
    return notes


def check_names(content: bytes, names: list[str]) -> None:
    """Makes sure that a file has these outputs.

    Raises:
        ExportError: It has others.
    """
    outputs = [o.name for o in onnx.load_model_from_string(content).graph.output]
    if outputs != names:
        raise ExportError(f'it puts out {outputs}, the model {names}')


def describe(content: bytes, notes: dict[str, str]) -> str:
    """A line on a file: what it is of, in which operators, how large."""
    model = onnx.load_model_from_string(content)
    size = len(content) / 2**20
    opset = model.opset_import[0].version
    form = FORMS[notes['dtm']]
    return (
        f'{notes["config"]}, {notes["part"]}, {form.operator}, opset {opset}: '
        f'{size:.1f} MiB'
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'
