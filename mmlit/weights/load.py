"""What a LIT does with a state dict before torch loads it: recognise, convert, check.

torch's and mmengine's loaders match keys and, unless they are strict, only log what
does not match. Here the authors' layouts become mmlit's, position parameters of another
reference size are resized, and what does not fit raises instead of being left out.
"""

import logging
import re
from typing import (
    Any,
    Collection,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from mmengine.logging import print_log
from torch import Tensor, nn

from ..archs import ARCHS
from ..ops.resize import resize_bias_table, resize_embedding
from .convert import Conversion, to_mmlit, wrong_weight
from .families import (
    EMBEDDING,
    PATCH_EMBEDDING,
    RULES,
    TABLE,
    guess_arch,
    is_mmlit_key,
    official_key,
    present_key,
    recognise,
    summary,
    translate,
)

#: Where a checkpoint file keeps the weights: mmengine's and mmcv's, the authors'.
CONTAINERS = ('state_dict', 'model')
_OUTPUT_NORM = re.compile(r'stages\.(\d+)\.out_norm\.')


def prepare_state_dict(
    net: nn.Module, state_dict: Dict[str, Any], prefix: str, metadata: Any
) -> None:
    """Rewrite a state dict in place to what a LIT can be loaded with, and log it.

    Args:
        net: The LIT.
        state_dict: Weights in any layout. Where `prefix` is empty, they may be those of
            a whole detector, or in a whole checkpoint.
        prefix: What the keys that are meant for `net` begin with.
        metadata: torch's ``local_metadata``; its ``source`` names the file.

    Raises:
        ValueError: Weights of another network, or not all of a network's.
    """
    if not prefix:
        metadata = _unwrap(state_dict, metadata)
    source = metadata.get('source') if isinstance(metadata, Mapping) else None
    source = source if isinstance(source, str) else 'a state dict'
    name, own = _name(net), net.state_dict()
    odd = next((key for key in state_dict if not isinstance(key, str)), '')
    if odd != '':
        raise ValueError(
            f'{name} cannot load {source}: {odd!r:.80} is among its keys, where '
            'parameters have names'
        )
    file = {
        present_key(key[len(prefix) :]): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    if not file:
        _log(f'{name}: no backbone parameters in {source}', logging.WARNING)
        return
    try:
        found = _convert(file, own)
    except ValueError as error:
        raise ValueError(f'{name} cannot load {source}: {error}') from None
    shapes = {key: value.shape for key, value in own.items()}
    found.state, resized = resize_positions(found.state, shapes)
    _drop_unbuilt(net, own, found)
    trouble = _trouble(own, found, file)
    if trouble:
        raise ValueError(
            f'{name} cannot load {source}, which looks like LIT {guess_arch(file)}: '
            + '; '.join(trouble)
        )

    whole = _is_whole(found.state)
    norms = [k for k in own if whole and _OUTPUT_NORM.match(k) and k not in found.state]
    said = _said(net, found, norms, resized)
    if said:
        _log('; '.join([f'{name}: {said[0]} from {source}', *said[1:]]))
    if found.family != 'mmlit':
        # No classifier has them; this is said, and no mismatch for torch to report.
        found.state.update({key: own[key] for key in norms})
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in found.state.items()})


def resize_positions(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> Tuple[Dict[str, Tensor], List[str]]:
    """Resize the position parameters of a state dict to another reference size.

    As the authors do when they load: once, in float64 rounded to float32.

    Args:
        state: Weights under mmlit's keys.
        shapes: Wanted shapes by key, such as those of a network.

    Returns:
        The state dict with what was resized replaced, and the keys of that. Where
        heads or channels differ no resizing helps: those stay as they are.
    """
    fitted, resized = dict(state), []
    for key in shapes.keys() & state.keys():
        value, shape = state[key], tuple(shapes[key])
        if wrong_weight(key, value) or value.dim() != len(shape):
            continue
        if value.shape == shape or 0 in value.shape:
            continue
        if key.endswith(TABLE) and value.shape[0] == shape[0]:
            grid = tuple((side + 1) // 2 for side in shape[1:])
            fitted[key] = resize_bias_table(value.double(), grid).float()
        elif key.endswith(EMBEDDING) and value.shape[::3] == shape[::3]:
            fitted[key] = resize_embedding(value.double(), shape[1:3]).float()
        else:
            continue
        resized.append(key)
    return fitted, resized


def _unwrap(state_dict: Dict[str, Any], metadata: Any) -> Any:
    """Put the weights in a whole checkpoint's place; returns their metadata."""
    for container in CONTAINERS:
        inner = state_dict.get(container)
        if isinstance(inner, Mapping):
            state_dict.clear()
            state_dict.update(inner)
            known = getattr(inner, '_metadata', None)
            return (isinstance(known, Mapping) and known.get('')) or metadata
    return metadata


def _convert(file: Mapping[str, Any], own: Mapping[str, Tensor]) -> Conversion:
    """The backbone's weights among the file's, in mmlit's layout.

    Raises:
        ValueError: There are none, or they cannot be converted.
    """
    found = ('', 'mmlit') if own.keys() & file.keys() else recognise(file)
    if found is None:
        raise ValueError(f'no key of it is one of a LIT: {summary(list(file))}')
    prefix, layout = found
    backbone = {k[len(prefix) :]: v for k, v in file.items() if k.startswith(prefix)}
    if layout == 'mmlit':
        sources = {key: [prefix + key] for key in backbone}
        conversion = Conversion(backbone, layout, {}, sources)
    else:
        shapes = {key: value.shape for key, value in own.items()}
        try:
            conversion = to_mmlit(backbone, shapes, own[next(iter(own))].dtype)
        except ValueError as error:
            present = {translate(key, RULES[layout]) for key in backbone}
            missing = _missing(own, present, layout)
            also = f'; missing keys: {summary(missing)}' if missing else ''
            raise ValueError(f'{error}{also}') from None
        conversion.sources = {
            ours: [prefix + key for key in keys]
            for ours, keys in conversion.sources.items()
        }
    for key in file:
        if not key.startswith(prefix):
            conversion.dropped[key] = key.split('.')[0]
    return conversion


def _drop_unbuilt(net: nn.Module, own: Mapping[str, Tensor], found: Conversion) -> None:
    """Leave out output norms and stages that this network does not have."""
    for key in [key for key in found.state if key not in own and is_mmlit_key(key)]:
        stage = int(key.split('.')[1])
        if stage >= len(net.stages):
            part = f'stage {stage}'
        elif _OUTPUT_NORM.match(key):
            part = f'output norm {stage}'
        else:
            continue
        del found.state[key]
        found.dropped[found.sources[key][0]] = part


def _trouble(
    own: Mapping[str, Tensor], found: Conversion, file: Mapping[str, Any]
) -> List[str]:
    """What keeps the weights from being loaded, in words; nothing if all is well."""
    wrong, unknown = [], []
    for key, value in found.state.items():
        theirs = found.sources[key][0]
        if key not in own:
            # In mmlit's layout, what no LIT has is torch's to report.
            unknown += [theirs] if is_mmlit_key(key) else []
        elif wrong_weight(key, value):
            wrong.append(wrong_weight(theirs, value))
        elif value.shape != own[key].shape:
            shapes = tuple(file[theirs].shape), tuple(own[key].shape)
            wrong.append('{} is {}, not {}'.format(theirs, *shapes))
    kinds = (
        ('wrong shapes', wrong),
        ('keys that the network does not have', unknown),
        ('missing keys', _missing(own, found.state, found.family)),
    )
    return [f'{what}: {summary(keys)}' for what, keys in kinds if keys]


def _missing(
    own: Mapping[str, Tensor], present: Collection[Optional[str]], layout: str
) -> List[str]:
    """What a whole network needs and does not find, under the names of the layout."""
    missing = []
    for key in own if _is_whole(present) else ():
        optional = _OUTPUT_NORM.match(key) or key.endswith('num_batches_tracked')
        if key not in present and is_mmlit_key(key) and not optional:
            missing.append((layout in RULES and official_key(key, layout)) or key)
    return missing


def _is_whole(keys: Iterable[Optional[str]]) -> bool:
    return any(key and key.startswith(PATCH_EMBEDDING) for key in keys)


def _said(
    net: nn.Module, found: Conversion, norms: List[str], resized: List[str]
) -> List[str]:
    """What the log line has to say; nothing where own weights fit as they are."""
    wanted = [
        k for k, _ in net.named_parameters() if is_mmlit_key(k) and k not in norms
    ]
    filled = [key for key in wanted if key in found.state]
    said = [f'{len(filled)} of {len(wanted)} backbone parameters']
    if norms:
        stages = dict.fromkeys(key.split('.')[1] for key in norms)
        said.append(f'output norms {", ".join(stages)} stay at initialisation')
    if resized:
        said.append(f'{len(resized)} position parameters resized')
    if found.dropped:
        said.append('dropped: ' + ', '.join(dict.fromkeys(found.dropped.values())))
    own_and_whole = found.family == 'mmlit' and filled == wanted
    return [] if own_and_whole and len(said) == 1 else said


def _name(net: nn.Module) -> str:
    """What was built: `LIT small`, or its widths where it has no name."""
    for name, arch in ARCHS.items():
        if arch == net.arch:
            return f'LIT {name}'
    return f'LIT of embed_dims {net.arch.embed_dims}, depths {net.arch.depths}'


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(text, logger='current', level=level)
