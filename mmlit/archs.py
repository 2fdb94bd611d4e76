"""Define the four published LIT architectures (paper, section 3 and table 1).

Without torch: configs, converters and documentation can read this table cheaply.
"""

from dataclasses import dataclass, fields, replace
from typing import Dict, Sequence, Tuple, Union

from .arguments import check_rate

PATCH_SIZE = 4
NUM_STAGES = 4
#: Which stages hold attention blocks; the others hold MLP blocks only. This is the
#: paper's idea ("less is more") and the same in every arch.
ATTENTION_STAGES = (False, False, True, True)


@dataclass(frozen=True)
class Arch:
    """One LIT architecture; every tuple has one entry per stage.

    Args:
        embed_dims: Channels C of each stage.
        depths: Number of blocks of each stage.
        num_heads: Attention heads of each stage (read in attention stages only).
        mlp_ratios: Hidden width of each stage's MLPs over its channels.
        pos_embed: ``'relative'`` (a bias table per attention block) or
            ``'absolute'`` (an embedding added to the tokens of each stage).
        norm_eps: Epsilon of the blocks' and output LayerNorms.
        drop_path_rate: Stochastic depth rate of the last block.

    Raises:
        ValueError: A field has the wrong length, sign or name.
        TypeError: A field has the wrong type.
    """

    embed_dims: Tuple[int, ...]
    depths: Tuple[int, ...]
    num_heads: Tuple[int, ...]
    mlp_ratios: Tuple[float, ...]
    pos_embed: str
    norm_eps: float
    drop_path_rate: float

    def __post_init__(self):
        for name in ('embed_dims', 'depths', 'num_heads', 'mlp_ratios'):
            object.__setattr__(self, name, self._per_stage(name))
        for i, has_attention in enumerate(ATTENTION_STAGES):
            if has_attention and self.embed_dims[i] % self.num_heads[i]:
                raise ValueError(
                    f'arch num_heads[{i}]={self.num_heads[i]} must divide '
                    f'embed_dims[{i}]={self.embed_dims[i]}'
                )
        if self.pos_embed not in ('relative', 'absolute'):
            raise ValueError(
                f"arch pos_embed={self.pos_embed!r} must be 'relative' or 'absolute'"
            )
        if not self.norm_eps > 0:
            raise ValueError(f'arch norm_eps={self.norm_eps!r} must be above 0')
        check_rate('arch drop_path_rate', self.drop_path_rate)

    def _per_stage(self, name: str) -> tuple:
        value = getattr(self, name)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f'arch {name}={value!r} must be a tuple or a list')
        if len(value) != NUM_STAGES:
            raise ValueError(
                f'arch {name}={tuple(value)} has {len(value)} entries, LIT has '
                f'{NUM_STAGES} stages'
            )
        number = (int, float) if name == 'mlp_ratios' else int
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, number):
                raise TypeError(
                    f'arch {name}={tuple(value)}: {entry!r} is not a number'
                )
            if not entry > 0:
                raise ValueError(f'arch {name}={tuple(value)} must be above 0')
        return tuple(value)


_SMALL = Arch(
    embed_dims=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    mlp_ratios=(4, 4, 4, 4),
    pos_embed='relative',
    norm_eps=1e-5,
    drop_path_rate=0.2,
)
_MEDIUM = replace(_SMALL, depths=(2, 2, 18, 2), drop_path_rate=0.3)
ARCHS = {
    'tiny': Arch(
        embed_dims=(64, 128, 320, 512),
        depths=(3, 4, 6, 3),
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(8, 8, 4, 4),
        pos_embed='absolute',
        norm_eps=1e-6,
        drop_path_rate=0.1,
    ),
    'small': _SMALL,
    'medium': _MEDIUM,
    'base': replace(
        _MEDIUM,
        embed_dims=(128, 256, 512, 1024),
        num_heads=(4, 8, 16, 32),
        drop_path_rate=0.5,
    ),
}


def resolve_arch(arch: Union[str, Dict]) -> Arch:
    """Return the :class:`Arch` that a name of :data:`ARCHS` or a dict of fields means.

    Raises:
        ValueError: Unknown name, or a dict with missing or unknown keys.
        TypeError: Neither a name nor a dict.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch={arch!r} is unknown; valid: {", ".join(ARCHS)}')
        return ARCHS[arch]
    if isinstance(arch, dict):
        names = [field.name for field in fields(Arch)]
        missing = [name for name in names if name not in arch]
        unknown = [str(name) for name in arch if name not in names]
        if missing or unknown:
            raise ValueError(
                f'arch dict has missing keys {missing} and unknown keys {unknown}; '
                f'it needs exactly {names}'
            )
        return Arch(**arch)
    raise TypeError(f'arch={arch!r} must be a name ({", ".join(ARCHS)}) or a dict')
