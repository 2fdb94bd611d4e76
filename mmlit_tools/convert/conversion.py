"""Convert weights, and list what becomes of each key."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmlit.models.position import reference_grid
from mmlit.weights.convert import to_mmlit, to_official
from mmlit.weights.families import (
    EMBEDDING,
    TABLE,
    guess_arch,
    official_key,
    recognise,
    rename_0_1_key,
)
from mmlit.weights.load import resize_positions
from mmlit_tools.convert.checks import (
    check_complete,
    check_values,
    reference_size,
    shape_of,
    stage_of,
)

#: Limit on the size of resized tables; those of LIT base at 4096 px take 0.3 GiB.
MOST_BYTES = 4 << 30


@dataclass
class Row:
    """What became of one key, or of all keys of a neck or head."""

    kind: str  # 'converted', 'unchanged', 'dropped' or 'added'
    source: str
    target: str
    shape: str
    note: str
    keys: int = 1


@dataclass
class Result:
    """Converted weights.

    Args:
        state: The weights under their new keys.
        prefix: What the backbone's keys begin with.
        arch: A name of ``ARCHS``, or words that fit behind "LIT".
        img_size: Reference size of the relative tables; ``None`` if there are none.
        rows: What became of all keys.
    """

    state: dict[str, Any]
    prefix: str
    arch: str
    img_size: tuple[int, int] | None
    rows: list[Row]

    def counts(self) -> str:
        """Count the keys that were converted, passed through, dropped and added."""
        counts = Counter()
        for row in self.rows:
            counts[row.kind] += row.keys
        return ', '.join(f'{number} keys {kind}' for kind, number in counts.items())


def convert_to_mmlit(
    state: Mapping[str, Any], img_size: tuple[int, int] | None
) -> Result:
    """Convert official weights to mmlit's layout, resized to an `img_size` if given.

    Raises:
        ValueError: They are not official, incomplete, or `img_size` has no effect.
    """
    state = {rename_0_1_key(key): value for key, value in state.items()}
    prefix, layout = recognise(state) or ('', None)
    if layout == 'mmlit':
        if img_size is None:
            raise ValueError(
                "the weights are in mmlit's layout already; --img-size resizes their "
                "tables, --to-official converts them to the authors'"
            )
        ours = {key: value for key, value in state.items() if key.startswith(prefix)}
        check_values(state, prefix)
        found, sources, dropped = dict(state), {key: [key] for key in ours}, {}
    else:
        done = to_mmlit(state)
        found, sources, dropped = done.state, done.sources, done.dropped
    before = found
    found, resized = resize(found, prefix, img_size)
    arch, size = guess_arch(state), reference_size(found, prefix)
    check_complete(found, prefix, arch, size)
    rows = []
    for key, theirs in sources.items():
        note = 'renamed' if theirs != [key] else ''
        if len(theirs) > 1:
            note = 'bias folded into the running mean'
        elif key in resized:
            note = f'resized from {shape_of(before[key])}'
        elif theirs[0] in dropped:
            note = f'as an image; {dropped[theirs[0]]} left out'
        elif key.endswith((TABLE, EMBEDDING)) and note:
            note = 'as an image'
        kind = 'converted' if note else 'unchanged'
        rows.append(Row(kind, ' - '.join(theirs), key, shape_of(found[key]), note))
    used = {key for theirs in sources.values() for key in theirs}
    rows += others(state, used | dropped.keys())
    for key, what in dropped.items():
        if key not in used:
            note = f'dropped: {what}'
            rows.append(Row('dropped', key, '', shape_of(state[key]), note))
    return Result(found, prefix, arch, size, rows)


def convert_to_official(
    state: Mapping[str, Any], img_size: tuple[int, int] | None
) -> Result:
    """Convert mmlit's weights to the authors' layout.

    Raises:
        ValueError: They are not mmlit's, incomplete, or the authors' code has no place
            for them.
    """
    state = {rename_0_1_key(key): value for key, value in state.items()}
    prefix, layout = recognise(state) or ('', None)
    if layout != 'mmlit':
        to_official(state, 'relative')  # Raises, and names the layout.
    check_values(state, prefix)
    found, resized = resize(state, prefix, img_size)
    arch, size = guess_arch(state), reference_size(found, prefix)
    if size and size[0] != size[1]:
        raise ValueError(
            f"the tables are made for images of {size[0]} x {size[1]} px, the authors' "
            'for square ones; --img-size with one number resizes them'
        )
    kinds = [
        kind for kind in (TABLE, EMBEDDING) if any(k.endswith(kind) for k in found)
    ]
    family = 'absolute' if kinds == [EMBEDDING] else 'relative'
    done = to_official(found, family)
    check_complete(found, prefix, arch, size)
    rows, used = [], set()
    for key in found:
        theirs = key.startswith(prefix) and official_key(key[len(prefix) :], family)
        if not theirs:
            continue
        used.update((key, prefix + theirs))
        note = 'renamed'
        if key in resized:
            note = f'resized from {shape_of(state[key])}, flat'
        elif key.endswith((TABLE, EMBEDDING)):
            note = 'flat'
        if theirs == 'pos_embed4':
            note += ', with a class-token slot of zeros'
        shape = shape_of(done[prefix + theirs])
        rows.append(Row('converted', key, prefix + theirs, shape, note))
    rows += others(state, used)
    for key, value in done.items():
        if key not in used and key not in state:
            rows.append(Row('added', '', key, shape_of(value), 'added: zeros'))
    return Result(done, prefix, arch, size, rows)


def resize(
    state: Mapping[str, Any], prefix: str, img_size: tuple[int, int] | None
) -> tuple[Mapping[str, Any], list[str]]:
    """Resize the tables to a reference size; return the state dict and their keys.

    Raises:
        ValueError: There are no tables.
    """
    if img_size is None:
        return state, []
    shapes = {}
    for key, value in state.items():
        if key.startswith(prefix) and key.endswith(TABLE):
            grid = reference_grid(img_size, stage_of(key, prefix))
            shapes[key] = (value.shape[0], *(2 * side - 1 for side in grid))
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    if size > MOST_BYTES:
        raise ValueError(
            f'at --img-size {img_size[0]} {img_size[1]} its {len(shapes)} tables would '
            f'take {size / 2**30:.0f} GiB'
        )
    if not shapes:
        raise ValueError(
            '--img-size has no effect: there are no relative position tables (the '
            'absolute embeddings of LIT tiny stay at 224)'
        )
    return resize_positions(state, shapes)


def others(state: Mapping[str, Any], used: set[str]) -> list[Row]:
    """Return a row for each part of the model beside the backbone."""
    parts = Counter(key.split('.')[0] for key in state if key not in used)
    return [
        Row('unchanged', f'{part}.*', f'{part}.*', '', f'{number} keys', number)
        for part, number in parts.items()
    ]
