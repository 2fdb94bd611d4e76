"""Define LIT, the Less attention vIsion Transformer, as a backbone. START HERE.

Pan, Zhuang, He, Liu, Cai: "Less is More: Pay Less Attention in Vision Transformers",
AAAI 2022, arXiv 2105.14217. A pyramid of four stages: MLP blocks in the first two,
blocks with global self-attention in the last two, deformable token merging between.

Shapes, in all files: B batch, H x W token grid of a stage, N = H*W tokens, C
channels, d = C / heads. Tokens stay channels-last, (B, H, W, C), all the way.
"""

from typing import Dict, List, Optional, Sequence, Tuple, Union

from mmengine.registry import MODELS

from ..archs import ATTENTION_STAGES, resolve_arch
from ..arguments import check_img_size, check_rate
from ..weights.load import prepare_state_dict
from .attention import GlobalAttention
from .blocks import Block
from .position import AbsolutePosition, reference_grid
from .pyramid import MIN_IMG_SIZE, Pyramid, Stage

#: Default init_cfg. Position tables, offset convs and deformable convs initialise
#: themselves.
DEFAULT_INIT_CFG = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer=['LayerNorm', '_BatchNorm'], val=1.0, bias=0.0),
]


@MODELS.register_module()
class LIT(Pyramid):
    """LIT backbone emitting a feature pyramid at strides 4, 8, 16 and 32.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'medium'``, ``'base'``, or a dict with the
            fields of :class:`mmlit.archs.Arch`.
        in_channels: Image channels.
        img_size: Reference image size (int or (h, w), pixels) of the relative bias
            tables: 800 in the authors' detection code, 512 in segmentation, 224 in
            classification. Images of any size are accepted whatever this is. No
            effect on absolute archs, whose embeddings stay at 224.
        out_indices: Stages to emit, increasing, out of 0-3. Stages after the last
            one are not built.
        out_norm_indices: Emitted stages that get an output LayerNorm. ``None``: 1-3
            for relative archs ([det]; segmentation uses 0-3), none for absolute ones.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, k >= 1 the first k
            stages whole (what enters, position, blocks, output norm). Frozen parts
            stay in eval mode.
        drop_rate: Dropout after the position step, projections and MLP layers.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth, rising linearly over all blocks from 0 to
            this rate. ``None``: the arch's own.
        norm_eval: Keep every BatchNorm in eval mode.
        with_cp: Gradient checkpointing of each block (non-reentrant).
        attn_kernel: How attention is computed, with the same numbers: ``'auto'``,
            ``'eager'``, ``'sdpa'``, ``'chunked'`` or ``'flex'`` (CUDA), see
            :mod:`mmlit.ops.attention`. The last two refuse ``attn_drop_rate``.
        init_cfg: mmengine's ``init_cfg``; ``None`` means the authors' initialisation.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type.
    """

    def __init__(
        self,
        arch: Union[str, Dict] = 'small',
        in_channels: int = 3,
        img_size: Union[int, Tuple[int, int]] = 224,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm_indices: Optional[Sequence[int]] = None,
        frozen_stages: int = -1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: Optional[float] = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        attn_kernel: str = 'auto',
        init_cfg: Optional[Union[Dict, Sequence[Dict]]] = None,
    ):
        arch = resolve_arch(arch)
        if out_norm_indices is None:
            out_norm_indices = (1, 2, 3) if arch.pos_embed == 'relative' else ()
        super().__init__(
            arch,
            in_channels,
            out_indices,
            out_norm_indices,
            frozen_stages,
            norm_eval,
            with_cp,
            DEFAULT_INIT_CFG if init_cfg is None else init_cfg,
        )
        self.img_size = check_img_size(img_size, MIN_IMG_SIZE)
        self.drop_rate = check_rate('drop_rate', drop_rate)
        self.attn_drop_rate = check_rate('attn_drop_rate', attn_drop_rate)
        self.attn_kernel = attn_kernel
        if drop_path_rate is None:
            drop_path_rate = arch.drop_path_rate
        self._build_stages(check_rate('drop_path_rate', drop_path_rate))

    def _build_stage(self, i: int, drop_path_rates: List[float]) -> Stage:
        relative = self.arch.pos_embed == 'relative'
        return Stage(
            [self._build_block(i, rate) for rate in drop_path_rates],
            **self._build_embed(i),
            pos_embed=None if relative else AbsolutePosition(self.embed_dims[i], i),
            # The authors drop after every absolute embedding, but only once, after the
            # patch embedding, in the relative archs.
            drop_rate=self.drop_rate if i == 0 or not relative else 0.0,
            out_norm=self._build_out_norm(i),
            with_cp=self.with_cp,
        )

    def _build_block(self, i: int, drop_path_rate: float) -> Block:
        arch, attn = self.arch, None
        if ATTENTION_STAGES[i]:
            relative = arch.pos_embed == 'relative'
            attn = GlobalAttention(
                arch.embed_dims[i],
                arch.num_heads[i],
                bias_grid=reference_grid(self.img_size, i) if relative else None,
                attn_drop_rate=self.attn_drop_rate,
                drop_rate=self.drop_rate,
                attn_kernel=self.attn_kernel,
            )
        return Block(
            arch.embed_dims[i],
            arch.mlp_ratios[i],
            arch.norm_eps,
            drop_rate=self.drop_rate,
            drop_path_rate=drop_path_rate,
            attn=attn,
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        """Every loader passes here: take official weights too, refuse wrong ones."""
        prepare_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
