"""Check weights before and after their conversion."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from mmlit import LIT
from mmlit.archs import ARCHS, PATCH_SIZE
from mmlit.models.position import reference_grid
from mmlit.weights.convert import check_weight
from mmlit.weights.families import PATCH_EMBEDDING, TABLE, is_mmlit_key


def check_values(state: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError unless all values under mmlit's names can be parameters."""
    for key, value in state.items():
        if key.startswith(prefix) and is_mmlit_key(key[len(prefix) :]):
            check_weight(key, value)


def reference_size(state: Mapping[str, Any], prefix: str) -> tuple[int, int] | None:
    """Return the image size of the relative tables, or None if there are none.

    Raises:
        ValueError: They are of several sizes.
    """
    tables = [k for k in state if k.startswith(prefix) and k.endswith(TABLE)]
    if not tables:
        return None
    stage, first = min((stage_of(key, prefix), key) for key in tables)
    size = tuple(
        (side + 1) // 2 * PATCH_SIZE << stage for side in state[first].shape[1:]
    )
    for key in tables:
        grid = reference_grid(size, stage_of(key, prefix))
        if tuple(state[key].shape[1:]) != tuple(2 * side - 1 for side in grid):
            raise ValueError(
                f'{key} is {shape_of(state[key])}, which is of another reference size '
                f'than the {shape_of(state[first])} of {first}'
            )
    return size


def check_complete(
    state: Mapping[str, Any], prefix: str, arch: str, img_size: tuple[int, int] | None
) -> None:
    """Raise ValueError unless a whole network can load the weights.

    Weights without a patch embedding are a part of one, and pass.
    """
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    if not any(key.startswith(PATCH_EMBEDDING) for key in own):
        return
    if arch not in ARCHS:
        if 'missing' in arch:
            raise ValueError(f'the weights look like those of LIT {arch}')
        return  # An arch without a name.
    norms = {int(key.split('.')[1]) for key in own if '.out_norm.' in key}
    with torch.device('meta'):  # Only the shapes matter.
        net = LIT(arch, img_size=img_size or 224, out_norm_indices=sorted(norms))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*to a meta parameter', UserWarning)
            net.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(' '.join(str(error).split())) from error


def stage_of(key: str, prefix: str) -> int:
    """Return the stage of one of mmlit's keys."""
    return int(key[len(prefix) :].split('.')[1])


def shape_of(value: Any) -> str:
    """Spell the shape of a tensor."""
    return ' x '.join(map(str, getattr(value, 'shape', ())))
