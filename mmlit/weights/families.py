"""The names of LIT's parameters in the authors' two layouts and in mmlit's own.

The authors have two families of networks, called `relative` (small, medium, base) and
`absolute` (tiny) here, after their position parameters. A rule is a pair of key
patterns; what a <hole> stands for is the same on both sides.
"""

import re
from functools import lru_cache
from typing import Any, Iterable, Mapping, Optional, Sequence, Tuple

from ..archs import ARCHS, NUM_STAGES

Rules = Sequence[Tuple[str, str]]

HOLES = {
    'block': r'[0-9]{1,3}',
    'embed': r'(?:proj|norm)\.(?:weight|bias)',
    'conv': r'weight|conv_offset\.(?:weight|bias)',
    'batchnorm': r'weight|bias|running_mean|running_var|num_batches_tracked',
    'layer': r'(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias)',
    'affine': r'weight|bias',
    'any': r'.+',
}
#: Ends of the keys of position parameters, which differ in more than their names.
TABLE = 'relative_position_bias_table'
EMBEDDING = 'absolute_pos_embed'
#: A whole network has a patch embedding, a part of one has none.
PATCH_EMBEDDING = 'stages.0.patch_embed.'


def _relative_rules() -> Rules:
    """Stages count from 0; token merging is the end of one."""
    rules = [('patch_embed.<embed>', 'stages.0.patch_embed.<embed>')]
    for s in range(NUM_STAGES):
        theirs, ours = f'layers.{s}.blocks.<block>', f'stages.{s}.blocks.<block>'
        rules += [
            (f'{theirs}.<layer>', f'{ours}.<layer>'),
            (f'{theirs}.attn.{TABLE}', f'{ours}.attn.position_bias.{TABLE}'),
            (f'norm{s}.<affine>', f'stages.{s}.out_norm.<affine>'),
        ]
    for s in range(1, NUM_STAGES):
        theirs, ours = f'layers.{s - 1}.downsample', f'stages.{s}.downsample'
        rules += [
            (f'{theirs}.dconv.<conv>', f'{ours}.dconv.<conv>'),
            (f'{theirs}.norm_layer.<batchnorm>', f'{ours}.norm.<batchnorm>'),
        ]
    return rules


def _absolute_rules() -> Rules:
    """Stages count from 1; token merging is the beginning of one."""
    rules = [('patch_embed1.<embed>', 'stages.0.patch_embed.<embed>')]
    for s in range(NUM_STAGES):
        rules += [
            (f'block{s + 1}.<block>.<layer>', f'stages.{s}.blocks.<block>.<layer>'),
            (f'pos_embed{s + 1}', f'stages.{s}.pos_embed.{EMBEDDING}'),
        ]
    for s in range(1, NUM_STAGES):
        theirs, ours = f'patch_embed{s + 1}', f'stages.{s}.downsample'
        rules += [
            (f'{theirs}.dconv.<conv>', f'{ours}.dconv.<conv>'),
            (f'{theirs}.norm_layer.<batchnorm>', f'{ours}.norm.<batchnorm>'),
        ]
    return rules


#: (Official key, mmlit key).
RULES = {'relative': _relative_rules(), 'absolute': _absolute_rules()}
#: (Official bias in front of a BatchNorm, mmlit's running mean that it folds into).
FOLDED = {
    'relative': [
        (
            f'layers.{s - 1}.downsample.dconv.bias',
            f'stages.{s}.downsample.norm.running_mean',
        )
        for s in range(1, NUM_STAGES)
    ],
    'absolute': [
        (f'patch_embed{s + 1}.dconv.bias', f'stages.{s}.downsample.norm.running_mean')
        for s in range(1, NUM_STAGES)
    ],
}
#: (Official key without a use in a backbone, the name to report it under).
DROPPED = {
    'relative': [
        ('head.<any>', 'head'),
        ('norm.<affine>', 'norm'),
        *(
            (
                f'layers.{s}.blocks.<block>.attn.relative_position_index',
                'relative_position_index',
            )
            for s in range(NUM_STAGES)
        ),
    ],
    'absolute': [
        ('head.<any>', 'head'),
        ('norm.<affine>', 'norm'),
        ('cls_token', 'cls_token'),
    ],
}

#: What the first keys of a LIT begin with, and the layout that this tells.
ENTRANCES = {
    'patch_embed': 'relative',
    'patch_embed1': 'absolute',
    'stages.0.patch_embed': 'mmlit',
}
_ENTRANCE_KEY = re.compile(
    # The shortest prefix first: `stages.0.` is none of `patch_embed`.
    rf'(?P<prefix>(?:.*?\.)??)(?P<entrance>{"|".join(map(re.escape, ENTRANCES))})\.'
    + HOLES['embed']
)
#: A part of a network has too few keys to be told under a prefix of any name.
_WRAPPERS = re.compile(r'(?:(?:module|model|backbone)\.)*')


#: What mmlit 0.1 called the parts of a stage, and their present names.
RENAMED = [
    (re.compile(r'(^|\.)stages\.0\.enter\.'), r'\1stages.0.patch_embed.'),
    (re.compile(r'(^|\.)stages\.([1-3])\.enter\.'), r'\1stages.\2.downsample.'),
    (re.compile(r'(^|\.)stages\.([0-3])\.position\.'), r'\1stages.\2.pos_embed.'),
]


def present_key(key: str) -> str:
    """Return a key of mmlit 0.1 under its present name, any other as it is."""
    for old, new in RENAMED:
        key = old.sub(new, key)
    return key


def recognise(keys: Iterable[str]) -> Optional[Tuple[str, str]]:
    """Find a LIT, or a part of one, among the keys of a state dict.

    Returns:
        The prefix of its keys and its layout, ``'mmlit'``, ``'relative'`` or
        ``'absolute'``; ``None`` where there is no LIT.

    Raises:
        ValueError: There are several, none plainly the backbone; or a key is no string.
    """
    keys, found = list(keys), {}
    for key in keys:
        if not isinstance(key, str):
            raise ValueError(
                f'{key!r:.80} is among the keys, where parameters have names'
            )
    for match in filter(None, map(_ENTRANCE_KEY.fullmatch, keys)):
        found[match['prefix']] = ENTRANCES[match['entrance']]
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
        if not _ANY_PART.fullmatch(part):
            continue
        if is_mmlit_key(part):
            return prefix, 'mmlit'
        for family, rules in RULES.items():
            if translate(part, [*rules, *FOLDED[family]]):
                return prefix, family
    return None


def official_key(key: str, family: str) -> Optional[str]:
    """The authors' name for one of mmlit's keys; ``None`` where they have none."""
    return translate(key, [(ours, theirs) for theirs, ours in RULES[family]])


def is_mmlit_key(key: str) -> bool:
    """Whether a LIT of mmlit could have a parameter or buffer of this name."""
    out_norm = re.fullmatch(r'stages\.[0-3]\.out_norm\.(?:weight|bias)', key)
    return bool(out_norm) or any(official_key(key, family) for family in RULES)


def guess_arch(state: Mapping[str, Any]) -> str:
    """Which LIT a state dict is of, judged by widths, depths and position parameters.

    Args:
        state: Weights in any of the layouts; they may be incomplete.

    Returns:
        A name of ``ARCHS``, or words that fit behind "looks like LIT".
    """
    prefix, layout = recognise(state) or ('', None)
    dims, depths, pos_embed = [None] * NUM_STAGES, [0] * NUM_STAGES, None
    for key, value in state.items():
        key = key[len(prefix) :] if key.startswith(prefix) else ''
        key = (translate(key, RULES[layout]) if layout in RULES else key) or ''
        match = re.fullmatch(
            r'stages\.([0-3])\.(?:patch_embed\.proj|downsample\.dconv)\.weight', key
        )
        if match:
            dims[int(match[1])] = next(iter(getattr(value, 'shape', ())), None)
        match = re.match(r'stages\.([0-3])\.blocks\.(\d+)\.', key)
        if match:
            stage, depth = int(match[1]), int(match[2]) + 1
            depths[stage] = max(depths[stage], depth)
        if key.endswith((TABLE, EMBEDDING)):
            pos_embed = 'relative' if key.endswith(TABLE) else 'absolute'
    lost = {}
    for name, arch in ARCHS.items():
        if (
            all(dim in (None, own) for dim, own in zip(dims, arch.embed_dims))
            and all(depth <= own for depth, own in zip(depths, arch.depths))
            and pos_embed in (None, arch.pos_embed)
        ):
            lost[name] = sum(arch.depths) - sum(depths) + dims.count(None)
    if not lost or dims.count(None) == NUM_STAGES:
        positions = f'{pos_embed or "no"} positions'
        return f'with embed_dims {tuple(dims)}, depths {tuple(depths)}, {positions}'
    name = min(lost, key=lost.get)
    return name if lost[name] == 0 and pos_embed else f'{name} with parts missing'


def translate(key: str, rules: Rules) -> Optional[str]:
    """The right side of the first rule whose left side fits the key, or ``None``."""
    for left, right in rules:
        match = _compile(left).fullmatch(key)
        if match:
            return re.sub(r'<(\w+)>', lambda hole, found=match: found[hole[1]], right)
    return None


@lru_cache(maxsize=None)
def _compile(side: str) -> 're.Pattern[str]':
    parts = re.split(r'<(\w+)>', side)  # text, hole, text, hole, ..., text
    pattern = [
        f'(?P<{part}>{HOLES[part]})' if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    ]
    return re.compile(''.join(pattern))


#: One look for what would take one for each rule: a file may have a million keys.
_ANY_PART = re.compile(
    '|'.join(
        re.sub(r'\?P<\w+>', '?:', _compile(side).pattern)
        for family in RULES
        for rule in (*RULES[family], *FOLDED[family])
        for side in rule
    )
)


def summary(names: Sequence[str], most: int = 4) -> str:
    """The first few of many names, and how many there are."""
    shown = (  # A file may give names of any length and kind.
        name if len(name) <= 120 and name.isprintable() else f'{ascii(name[:100])}...'
        for name in map(str, names[:most])
    )
    text = ', '.join(shown)
    return text if len(names) <= most else f'{text}, ... ({len(names)} in all)'
