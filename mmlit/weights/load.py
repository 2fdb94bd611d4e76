"""Prepare a state dict for a LIT: recognise, convert, resize, check.

torch's and mmengine's loaders match keys and, unless they are strict, only log what
does not match. Here the authors' layouts become mmlit's, position parameters of another
reference size are resized, and what does not fit raises instead of being left out.
"""

import logging
import re
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional

from mmengine.logging import print_log
from torch import Tensor, nn

from ..archs import ARCHS
from ..ops.resize import resize_bias_table, resize_embedding
from .convert import Conversion, Shapes, State, to_mmlit, wrong_weight
from .families import (
    EMBEDDING,
    FAMILIES,
    PATCH_EMBEDDING,
    TABLE,
    guess_arch,
    is_mmlit_key,
    official_key,
    recognise,
    rename_0_1_key,
    summary,
)

#: Where a checkpoint file keeps the weights: mmengine's and mmcv's, the authors'.
CONTAINERS = ('state_dict', 'model')
_OUT_NORM = re.compile(r'stages\.(\d+)\.out_norm\.')


def prepare_state_dict(net: nn.Module, state_dict: Dict[str, Any], prefix: str) -> None:
    """Rewrite a state dict in place to what a LIT can be loaded with, and log it.

    Args:
        net: The LIT.
        state_dict: Weights in any layout. Where `prefix` is empty, they may be those of
            a whole detector, or in a whole checkpoint.
        prefix: What the keys that are meant for `net` begin with.

    Raises:
        ValueError: Weights of another network, or not all of a network's.
    """
    name, own = _name(net), net.state_dict()
    for container in () if prefix else CONTAINERS:
        inner = state_dict.get(container)
        if isinstance(inner, Mapping):
            state_dict.clear()
            state_dict.update(inner)
    keys = [k for k in state_dict if isinstance(k, str) and k.startswith(prefix)]
    file = {rename_0_1_key(key[len(prefix) :]): state_dict[key] for key in keys}
    if not file:
        _log(f'{name}: no backbone parameters', logging.WARNING)
        return
    try:
        found = _convert(file, own)
    except ValueError as error:
        raise ValueError(f'{name} cannot load a state dict: {error}') from None
    found.state, resized = resize_positions(
        found.state, {key: value.shape for key, value in own.items()}
    )
    _drop_unbuilt(net, own, found)
    problems = _find_problems(own, found, file)
    if problems:
        raise ValueError(
            f'{name} cannot load a state dict, which looks like LIT '
            f'{guess_arch(file)}: {"; ".join(problems)}'
        )

    whole = _is_whole(found.state)
    norms = [k for k in own if whole and _OUT_NORM.match(k) and k not in found.state]
    report = _report(net, found, norms, resized)
    if report:
        _log(f'{name}: {report}')
    if found.family != 'mmlit':
        # Classifiers have none: reported above, so no missing keys for torch to report.
        found.state.update({key: own[key] for key in norms})
    for key in keys:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in found.state.items()})


def resize_positions(state: Mapping[str, Tensor], shapes: Shapes) -> tuple:
    """Resize the position parameters of a state dict to another reference size.

    As the authors do when they load: once, in float64 rounded to float32.

    Args:
        state: Weights under mmlit's keys.
        shapes: Wanted shapes by key, such as those of a network.

    Returns:
        The state dict with what was resized replaced, and the list of its keys. Where
        heads or channels differ no resizing helps: those stay as they are.
    """
    state, resized = dict(state), []
    for key in shapes.keys() & state.keys():
        value, shape = state[key], tuple(shapes[key])
        if wrong_weight(key, value) or value.dim() != len(shape):
            continue
        if value.shape == shape:
            continue
        if key.endswith(TABLE) and value.shape[0] == shape[0]:
            grid = tuple((side + 1) // 2 for side in shape[1:])
            state[key] = resize_bias_table(value.double(), grid).float()
        elif key.endswith(EMBEDDING) and value.shape[::3] == shape[::3]:
            state[key] = resize_embedding(value.double(), shape[1:3]).float()
        else:
            continue
        resized.append(key)
    return state, resized


def _convert(file: State, own: State) -> Conversion:
    """Find the backbone's weights among the file's, in mmlit's layout.

    Raises:
        ValueError: There are none, or they cannot be converted.
    """
    found = ('', 'mmlit') if own.keys() & file.keys() else recognise(file)
    if found is None:
        raise ValueError(f'no key of it is one of a LIT: {summary(list(file))}')
    prefix, layout = found
    backbone = {k[len(prefix) :]: v for k, v in file.items() if k.startswith(prefix)}
    if layout == 'mmlit':
        sources = {key: [key] for key in backbone}
        conversion = Conversion(backbone, layout, {}, sources)
    else:
        shapes = {key: value.shape for key, value in own.items()}
        conversion = to_mmlit(backbone, shapes, own[next(iter(own))].dtype)
    for ours, keys in conversion.sources.items():
        conversion.sources[ours] = [prefix + key for key in keys]
    for key in file:
        if not key.startswith(prefix):
            conversion.dropped[key] = key.split('.')[0]
    return conversion


def _drop_unbuilt(net: nn.Module, own: State, found: Conversion) -> None:
    """Leave out output norms and stages that this network does not have."""
    for key in [key for key in found.state if key not in own and is_mmlit_key(key)]:
        stage = int(key.split('.')[1])
        if stage >= len(net.stages):
            part = f'stage {stage}'
        elif _OUT_NORM.match(key):
            part = f'output norm {stage}'
        else:
            continue
        del found.state[key]
        found.dropped[found.sources[key][0]] = part


def _find_problems(own: State, found: Conversion, file: State) -> List[str]:
    """Describe what keeps the weights from being loaded."""
    wrong, unexpected = [], []
    for key, value in found.state.items():
        source = found.sources[key][0]
        if key not in own:
            # In mmlit's layout, a key that no LIT has is torch's to report.
            unexpected += [source] if is_mmlit_key(key) else []
        elif wrong_weight(key, value):
            wrong.append(wrong_weight(source, value))
        elif value.shape != own[key].shape:
            shapes = tuple(file[source].shape), tuple(own[key].shape)
            wrong.append('{} is {}, not {}'.format(source, *shapes))
    problems = {
        'wrong shapes': wrong,
        'keys that the network does not have': unexpected,
        'missing keys': _missing(own, found.state, found.family),
    }
    return [f'{kind}: {summary(keys)}' for kind, keys in problems.items() if keys]


def _missing(own: State, present: Collection[str], layout: str) -> List[str]:
    """List the keys that a whole network lacks, under the names of the layout."""
    missing = []
    for key in own if _is_whole(present) else ():
        optional = _OUT_NORM.match(key) or key.endswith('num_batches_tracked')
        if key not in present and is_mmlit_key(key) and not optional:
            missing.append((layout in FAMILIES and official_key(key, layout)) or key)
    return missing


def _is_whole(keys: Iterable[str]) -> bool:
    return any(key.startswith(PATCH_EMBEDDING) for key in keys)


def _report(
    net: nn.Module, found: Conversion, norms: List[str], resized: List[str]
) -> Optional[str]:
    """Sum up what was loaded; ``None`` where own weights fit as they are."""
    wanted = [key for key, _ in net.named_parameters() if key not in norms]
    filled = [key for key in wanted if key in found.state]
    notes = []
    if norms:
        stages = dict.fromkeys(key.split('.')[1] for key in norms)
        notes.append(f'output norms {", ".join(stages)} stay at initialisation')
    if resized:
        notes.append(f'{len(resized)} position parameters resized')
    if found.dropped:
        notes.append('dropped: ' + ', '.join(dict.fromkeys(found.dropped.values())))
    if found.family == 'mmlit' and filled == wanted and not notes:
        return None
    loaded = f'{len(filled)} of {len(wanted)} backbone parameters loaded'
    return '; '.join([loaded, *notes])


def _name(net: nn.Module) -> str:
    """Name what was built: `LIT small`, or its widths where it has no name."""
    for name, arch in ARCHS.items():
        if arch == net.arch:
            return f'LIT {name}'
    return f'LIT of embed_dims {net.arch.embed_dims}, depths {net.arch.depths}'


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(text, logger='current', level=level)
