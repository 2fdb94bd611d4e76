"""Export a network to an ONNX graph with open batch, height and width."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from torch import Tensor, nn
from torch.export import Dim

from mmlit.errors import UserError, spell_error
from mmlit_tools.export.dtm import FORMS, set_form
from mmlit_tools.export.parts import MIN_SIDE, PARTS, TRACED_SIZE, Part
from mmlit_tools.models import without_log

INPUT = 'image'
#: The oldest operators that torch's exporter writes itself.
EXPORTER_OPSET = 18
#: Images at a time in tracing.
TRACED_BATCH = 2


class ExportError(UserError):
    """The network cannot be exported, or the file is not its export."""


def export_graph(
    network: Part, names: list[str], form: str, opset: int
) -> onnx.ModelProto:
    """Export a network that maps one image tensor to tensors.

    Args:
        network: In evaluation mode; it is not changed.
        names: Of its outputs.
        form: How token merging is written: a key of `FORMS`.
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
    except Exception as error:  # Of many classes, for operators, sizes, versions.
        cause = spell_error(error.__cause__ or error)
        raise ExportError(f'the export failed ({cause})') from error
    _tidy(model)
    _check_open(model, opset)
    return model


class _Upsample(nn.Module):
    """Upsample by a whole factor, as mmseg's Upsample of one as a Python float.

    A float would fix the size of the map in the exported graph.
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
    """Rewrite a model in older operators than the exporter writes."""
    if opset >= EXPORTER_OPSET:
        return model
    if opset < 17:  # The first with LayerNormalization.
        model = onnx.inliner.inline_selected_functions(
            model, [('', 'LayerNormalization')], inline_schema_functions=True
        )
    return onnx.version_converter.convert_version(model, opset)


def _tidy(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold paths of this machine."""
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
    """Return the content of the file, checked by `onnx.checker`.

    Args:
        model: What `export_graph` gave.
        notes: Metadata of the file.
    """
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def read_notes(path: Path) -> dict[str, str]:
    """Return the metadata of a file, which `onnx.checker` checks as a whole.

    Raises:
        ExportError: It is broken, or not of this tool.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ExportError(
            f'{path} is not a sound ONNX file ({spell_error(error)})'
        ) from error
    notes = {entry.key: entry.value for entry in model.metadata_props}
    if notes.get('part') not in PARTS or notes.get('dtm') not in FORMS:
        raise ExportError(f'{path} was not written by export_onnx.py')
    return notes


def check_names(path: Path, names: list[str]) -> None:
    """Raise ExportError unless a file has these outputs."""
    outputs = [output.name for output in onnx.load(path).graph.output]
    if outputs != names:
        raise ExportError(f'{path} has the outputs {outputs}, the model {names}')


def describe(content: bytes, notes: dict[str, str]) -> str:
    """Describe a file in one line: model, part, operators, size."""
    opset = onnx.load_model_from_string(content).opset_import[0].version
    operator = FORMS[notes['dtm']].operator
    return (
        f'{notes["config"]}, {notes["part"]}, {operator}, opset {opset}: '
        f'{len(content) / 2**20:.1f} MiB'
    )
