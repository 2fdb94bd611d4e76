"""Name LIT's parameters as mmlit and each family of official files do.

The authors have two families of networks, called `relative` (small, medium, base) and
`absolute` (tiny) here, after their position parameters.
"""

import re
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..archs import ARCHS, NUM_STAGES

#: Ends of the keys of position parameters, which differ in more than their names.
TABLE = 'relative_position_bias_table'
EMBEDDING = 'absolute_pos_embed'
#: A whole network has a patch embedding, a part of one has none.
PATCH_EMBEDDING = 'stages.0.patch_embed.'

_AFFINE = r'(?:weight|bias)'
_EMBED = rf'(?:proj|norm)\.{_AFFINE}'
_BLOCK = r'[0-9]{1,3}'
_LAYER = rf'{_BLOCK}\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.{_AFFINE}'
_CONV = rf'(?:weight|conv_offset\.{_AFFINE})'
_BATCHNORM = r'(?:weight|bias|running_mean|running_var|num_batches_tracked)'

Name = Tuple[str, str, str]
Pairs = List[Tuple[re.Pattern, str]]


def _relative() -> Iterator[Name]:
    """Stages count from 0; token merging is the end of one."""
    yield 'patch_embed.*', 'stages.0.patch_embed.*', _EMBED
    for i in range(NUM_STAGES):
        theirs, ours = f'layers.{i}.blocks.*', f'stages.{i}.blocks.*'
        yield theirs, ours, _LAYER
        yield f'{theirs}.attn.{TABLE}', f'{ours}.attn.position_bias.{TABLE}', _BLOCK
        yield f'norm{i}.*', f'stages.{i}.out_norm.*', _AFFINE
    for i in range(1, NUM_STAGES):
        yield from _merging(f'layers.{i - 1}.downsample', f'stages.{i}.downsample')


def _absolute() -> Iterator[Name]:
    """Stages count from 1; token merging is the beginning of one."""
    yield 'patch_embed1.*', 'stages.0.patch_embed.*', _EMBED
    for i in range(NUM_STAGES):
        yield f'block{i + 1}.*', f'stages.{i}.blocks.*', _LAYER
        yield f'pos_embed{i + 1}', f'stages.{i}.pos_embed.{EMBEDDING}', ''
    for i in range(1, NUM_STAGES):
        yield from _merging(f'patch_embed{i + 1}', f'stages.{i}.downsample')


def _merging(theirs: str, ours: str) -> Iterator[Name]:
    yield f'{theirs}.dconv.*', f'{ours}.dconv.*', _CONV
    yield f'{theirs}.norm_layer.*', f'{ours}.norm.*', _BATCHNORM


def _compile(names: Iterable[Name]) -> Pairs:
    """Pair a pattern for the first of each two names with a template for the second."""
    pairs = []
    for source, target, rest in names:
        pattern = re.escape(source).replace(r'\*', f'({rest})')
        pairs.append((re.compile(pattern), target.replace('*', r'\g<1>')))
    return pairs


#: By family: the authors' name, mmlit's, and what ``*`` stands for in both.
_NAMES = {'relative': [*_relative()], 'absolute': [*_absolute()]}
FAMILIES = tuple(_NAMES)
_TO_MMLIT = {family: _compile(_NAMES[family]) for family in FAMILIES}
_TO_OFFICIAL = {
    family: _compile((ours, theirs, rest) for theirs, ours, rest in _NAMES[family])
    for family in FAMILIES
}
#: Official keys without a use in a backbone.
_DROPPED = re.compile(
    rf'(head)\..+|(norm)\.{_AFFINE}|(cls_token)'
    rf'|layers\.[0-3]\.blocks\.{_BLOCK}\.attn\.(relative_position_index)'
)
#: What the first keys of a LIT begin with, and the layout that this tells.
_LAYOUTS = {
    'stages.0.patch_embed': 'mmlit',
    'patch_embed': 'relative',
    'patch_embed1': 'absolute',
}
# The shortest prefix is tried first: `stages.0.` is never one of `patch_embed`.
_FIRST_KEY = re.compile(
    rf'((?:.*?\.)??)({"|".join(map(re.escape, _LAYOUTS))})\.{_EMBED}'
)
#: A part of a network has too few keys to be told under a prefix of any name.
_WRAPPERS = re.compile(r'(?:(?:module|model|backbone)\.)*')
_KEY_OF_0_1 = re.compile(r'(^|\.)stages\.([0-3])\.(enter|position)\.')


def mmlit_key(key: str, family: str) -> Optional[str]:
    """Return mmlit's name for an official key, ``None`` where it has none."""
    return _translate(key, _TO_MMLIT[family])


def folded_key(key: str, family: str) -> Optional[str]:
    """Return mmlit's running mean that an official token merging's bias folds into."""
    if not key.endswith('.dconv.bias'):
        return None
    return mmlit_key(key[: -len('dconv.bias')] + 'norm_layer.running_mean', family)


def official_key(key: str, family: str) -> Optional[str]:
    """Return the authors' name for a key of mmlit, ``None`` where there is none."""
    return _translate(key, _TO_OFFICIAL[family])


def _translate(key: str, pairs: Pairs) -> Optional[str]:
    for pattern, template in pairs:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(template)
    return None


def dropped_part(key: str) -> Optional[str]:
    """Name the part of an official network that a key is of and no backbone needs."""
    match = _DROPPED.fullmatch(key)
    return match and match[match.lastindex]


def is_mmlit_key(key: str) -> bool:
    """Tell whether a LIT of mmlit could have a parameter or buffer of this name."""
    out_norm = re.fullmatch(rf'stages\.[0-3]\.out_norm\.{_AFFINE}', key)
    return bool(out_norm) or any(official_key(key, family) for family in FAMILIES)


def rename_0_1_key(key: str) -> str:
    """Return a key of mmlit 0.1 under its present name, any other as it is."""
    match = _KEY_OF_0_1.search(key)
    if not match:
        return key
    part = 'downsample' if match[2] > '0' else 'patch_embed'
    part = 'pos_embed' if match[3] == 'position' else part
    return f'{key[: match.start(3)]}{part}{key[match.end(3) :]}'


def recognise(keys: Iterable[str]) -> Optional[Tuple[str, str]]:
    """Find a LIT, or a part of one, among the keys of a state dict.

    Returns:
        The prefix of its keys and its layout, ``'mmlit'``, ``'relative'`` or
        ``'absolute'``; ``None`` where there is no LIT.

    Raises:
        ValueError: There are several, none plainly the backbone.
    """
    keys, found = [key for key in keys if isinstance(key, str)], {}
    for match in filter(None, map(_FIRST_KEY.fullmatch, keys)):
        found[match[1]] = _LAYOUTS[match[2]]
    if len(found) > 1:
        plain = sorted(filter(_WRAPPERS.fullmatch, found), key=len)
        if not plain:
            raise ValueError(
                f'several backbones, under {summary(list(found))}; load one of them '
                "alone, in mmengine by init_cfg=dict(type='Pretrained', prefix=...)"
            )
        found = {plain[0]: found[plain[0]]}
    for prefix, layout in found.items():
        return prefix, layout
    for key in keys:
        prefix = _WRAPPERS.match(key)[0]
        part = key[len(prefix) :]
        if is_mmlit_key(part):
            return prefix, 'mmlit'
        for family in FAMILIES:
            if mmlit_key(part, family) or folded_key(part, family):
                return prefix, family
    return None


def guess_arch(state: Mapping[str, Any]) -> str:
    """Guess which LIT a state dict, perhaps incomplete, in any of the layouts is of.

    Returns:
        A name of ``ARCHS``, or words that fit behind "looks like LIT".
    """
    prefix, layout = recognise(state) or ('', None)
    dims, depths, pos_embed = [None] * NUM_STAGES, [0] * NUM_STAGES, None
    for key, value in state.items():
        key = key[len(prefix) :] if key.startswith(prefix) else ''
        key = (mmlit_key(key, layout) if layout in FAMILIES else key) or ''
        if not is_mmlit_key(key):
            continue
        stage = int(key[len('stages.')])
        if key.endswith(('patch_embed.proj.weight', 'downsample.dconv.weight')):
            dims[stage] = next(iter(getattr(value, 'shape', ())), None)
        elif '.blocks.' in key:
            depths[stage] = max(depths[stage], int(key.split('.')[3]) + 1)
        if key.endswith((TABLE, EMBEDDING)):
            pos_embed = 'relative' if key.endswith(TABLE) else 'absolute'
    missing = {
        name: sum(arch.depths) - sum(depths) + dims.count(None)
        for name, arch in ARCHS.items()
        if all(dim in (None, own) for dim, own in zip(dims, arch.embed_dims))
        and all(depth <= own for depth, own in zip(depths, arch.depths))
        and pos_embed in (None, arch.pos_embed)
    }
    if not missing or dims.count(None) == NUM_STAGES:
        positions = f'{pos_embed or "no"} positions'
        return f'with embed_dims {tuple(dims)}, depths {tuple(depths)}, {positions}'
    name = min(missing, key=missing.get)
    return name if missing[name] == 0 and pos_embed else f'{name} with parts missing'


def summary(names: Sequence[str]) -> str:
    """List the first few of many names, and how many there are."""
    text = ', '.join(names[:4])
    return text if len(names) <= 4 else f'{text}, ... ({len(names)} in all)'
