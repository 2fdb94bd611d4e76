"""Convert state dicts between the authors' layouts and mmlit's, both ways.

Beside the names of `families.py`:

- The authors' token merging has a bias in front of its BatchNorm, mmlit's has none. In
  training BatchNorm subtracts it again, for evaluation `running_mean - bias` is the
  same.
- A bias table is an image here, (heads, 2*S_h-1, 2*S_w-1), and flat there,
  (rows, heads). An embedding is (1, S_h, S_w, C) here and (1, rows, C) there, in the
  last stage with a slot for the class token before the others.

A state dict may be that of a whole detector: the backbone's keys are found under any
prefix and keep it, all others are handed through.
"""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
from torch import Tensor

from ..archs import ARCHS, NUM_STAGES, Arch
from .families import (
    EMBEDDING,
    FAMILIES,
    TABLE,
    dropped_part,
    folded_key,
    guess_arch,
    mmlit_key,
    official_key,
    recognise,
    summary,
)

State = Dict[str, Tensor]
Shapes = Mapping[str, Sequence[int]]

_LAST_EMBEDDING = f'stages.{NUM_STAGES - 1}.pos_embed.{EMBEDDING}'
_MEAN, _BIAS = 'norm_layer.running_mean', 'dconv.bias'


@dataclass
class Conversion:
    """What came of an official state dict.

    Args:
        state: The same weights in mmlit's layout.
        family: ``'relative'`` or ``'absolute'``.
        dropped: Official key -> what it is, for all that was left out on purpose
            (``pos_embed4`` is listed for its class-token slot).
        sources: mmlit key -> the official keys that it was made from.
    """

    state: State
    family: str
    dropped: Dict[str, str]
    sources: Dict[str, List[str]]


def to_mmlit(
    state: Mapping[str, Tensor],
    shapes: Optional[Shapes] = None,
    fold_dtype: Optional[torch.dtype] = None,
) -> Conversion:
    """Convert an official state dict to mmlit's layout.

    Args:
        state: Weights under official keys, those of a network or of a part of it.
        shapes: Shapes of the network to fill, by mmlit key. Only for tables that are
            not square: one with as many rows as the network's is read in its shape.
            Nothing is resized here, see :func:`mmlit.weights.load.resize_positions`.
        fold_dtype: The token mergings' biases are folded in this precision, if it is
            higher than their own: a float64 network gets the exact difference.

    Raises:
        ValueError: No official layout, an unknown backbone key, a value that is not a
            floating point tensor, a bias without running mean (or one of another shape)
            or the other way round, a table or embedding that is not square.
    """
    prefix, family = recognise(state) or ('', None)
    if family not in FAMILIES:
        raise ValueError(
            "the state dict is in mmlit's layout already"
            if family
            else f'no backbone of the authors among the keys {summary(list(state))}'
        )
    done = Conversion({}, family, {}, {})
    biases, unknown = {}, []
    for key, value in state.items():
        if not key.startswith(prefix):
            done.state[key] = value
            continue
        name = key[len(prefix) :]
        ours, mean = mmlit_key(name, family), folded_key(name, family)
        if (ours or mean) and wrong_weight(key, value):
            raise ValueError(wrong_weight(key, value))
        if ours:
            ours = prefix + ours
            if ours.endswith(TABLE):
                value = _table_image(key, value, (shapes or {}).get(ours))
            elif ours.endswith(EMBEDDING):
                may_have_slot = ours == prefix + _LAST_EMBEDDING
                value, slots = _embedding_image(key, value, may_have_slot)
                if slots:
                    done.dropped[key] = 'class-token slot'
            done.state[ours], done.sources[ours] = value, [key]
        elif mean:
            biases[prefix + mean] = key
        elif dropped_part(name):
            done.dropped[key] = dropped_part(name)
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            'unknown keys in a state dict that looks like LIT '
            f"{guess_arch(state)} in the authors' {family} layout: {summary(unknown)}"
        )
    _fold(state, prefix, done, biases, fold_dtype)
    return done


def to_official(state: Mapping[str, Tensor], arch_or_family: Union[str, Arch]) -> State:
    """Convert mmlit's state dict to an official one that computes the same.

    The token mergings' biases and the class-token slot are written as zeros.
    :func:`to_mmlit` gives exactly the same state dict back (tables that are not square
    need its ``shapes``; the authors' code has square ones only).

    Args:
        state: Weights under mmlit's keys, those of a network or of a part of it.
        arch_or_family: ``'relative'``, ``'absolute'``, a name of ``ARCHS`` or an Arch.

    Raises:
        ValueError: Unknown family, no mmlit layout, a value that is not a floating
            point tensor, or a backbone key that the authors' networks of this family do
            not have.
    """
    prefix, layout = recognise(state) or ('', None)
    if layout != 'mmlit':
        raise ValueError(
            f"the state dict is in the authors' {layout} layout already"
            if layout
            else f'no backbone of mmlit among the keys {summary(list(state))}'
        )
    arch = ARCHS.get(arch_or_family, arch_or_family)
    family = arch.pos_embed if isinstance(arch, Arch) else arch
    if family not in FAMILIES:
        raise ValueError(
            f'arch_or_family={arch_or_family!r} is unknown; valid: '
            f'{", ".join([*FAMILIES, *ARCHS])}'
        )
    done, unknown = {}, []
    for key, value in state.items():
        if not key.startswith(prefix):
            done[key] = value
            continue
        theirs = official_key(key[len(prefix) :], family)
        if theirs is None:
            unknown.append(key)
            continue
        check_weight(key, value)
        if theirs.endswith(TABLE):
            value = value.permute(1, 2, 0).flatten(0, 1)
        elif key.endswith(EMBEDDING):
            value = value.flatten(1, 2)
            if key == prefix + _LAST_EMBEDDING:
                value = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
        elif theirs.endswith(_MEAN):
            done[prefix + theirs.replace(_MEAN, _BIAS)] = torch.zeros_like(value)
        done[prefix + theirs] = value.contiguous()
    if unknown:
        raise ValueError(
            f"the authors' {family} networks have no {summary(unknown)}: nothing of "
            'them can hold these weights'
        )
    return done


def wrong_weight(key: str, value: Any) -> str:
    """Say why a value cannot be the parameter of this name; ``''`` where it can."""
    if not isinstance(value, Tensor):
        return f'{key} holds a {type(value).__name__}, not a tensor'
    if not (value.is_floating_point() or key.endswith('num_batches_tracked')):
        return f'{key} holds {value.dtype}, not floating point numbers'
    return ''


def check_weight(key: str, value: Any) -> None:
    """Refuse what cannot be the parameter of this name in mmlit's layout."""
    dims = 3 if key.endswith(TABLE) else 4 if key.endswith(EMBEDDING) else None
    wrong = wrong_weight(key, value)
    if not wrong and dims not in (None, value.dim()):
        wrong = f'{key} has shape {tuple(value.shape)}, not {dims} dimensions'
    if wrong:
        raise ValueError(wrong)


def _table_image(key: str, flat: Tensor, shape: Optional[Sequence[int]]) -> Tensor:
    """(rows, heads) -> (heads, 2*S_h-1, 2*S_w-1)."""
    if flat.dim() != 2:
        raise ValueError(f'{key} has shape {tuple(flat.shape)}, a table (rows, heads)')
    rows = flat.shape[0]
    height = width = math.isqrt(rows)
    if shape is not None and rows == shape[1] * shape[2]:
        height, width = shape[1:]
    elif height * width != rows or height % 2 == 0:
        known = '' if shape is None else f', and not the {shape[1]} x {shape[2]} built'
        raise ValueError(
            f'{key} has {rows} rows, which is no square of an odd number{known}: its '
            'grid is unknown'
        )
    return flat.t().reshape(flat.shape[1], height, width).contiguous()


def _embedding_image(key: str, flat: Tensor, may_have_slot: bool) -> tuple:
    """(1, [slot +] S*S, C) -> (1, S, S, C) and the number of slots cut off."""
    rows = flat.shape[1] if flat.dim() == 3 and flat.shape[0] == 1 else 0
    for slots in (0, 1)[: 1 + may_have_slot]:
        side = math.isqrt(max(rows - slots, 0))
        if side and side * side == rows - slots:
            return flat[:, slots:].reshape(1, side, side, flat.shape[2]), slots
    raise ValueError(f'{key} has shape {tuple(flat.shape)}, which is no square grid')


def _fold(
    state: Mapping[str, Tensor],
    prefix: str,
    done: Conversion,
    biases: Mapping[str, str],
    dtype: Optional[torch.dtype],
) -> None:
    """Subtract the token mergings' biases from the running means behind them."""
    means = {key for key in done.sources if key.endswith('.running_mean')}
    missing = []
    for key in means ^ biases.keys():
        theirs = prefix + official_key(key[len(prefix) :], done.family)
        missing.append(theirs.replace(_MEAN, _BIAS) if key in means else theirs)
    if missing:
        raise ValueError(
            f'missing keys in a state dict that looks like LIT {guess_arch(state)}: '
            f'{summary(sorted(missing))} (the bias of a token merging and the running '
            'mean behind it are of use together only)'
        )
    for ours, key in biases.items():
        mean, bias = done.state[ours], state[key]
        if mean.shape != bias.shape:
            raise ValueError(
                f'{key} is {tuple(bias.shape)}, the running mean behind it '
                f'{tuple(mean.shape)}'
            )
        wide = torch.promote_types(mean.dtype, dtype or bias.dtype)
        done.state[ours] = mean.to(wide) - bias.to(wide)
        done.sources[ours].append(key)
