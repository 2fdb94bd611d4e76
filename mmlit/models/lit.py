"""LIT, the Less attention vIsion Transformer, as a backbone. START HERE.

Pan, Zhuang, He, Liu, Cai: "Less is More: Pay Less Attention in Vision Transformers",
AAAI 2022, arXiv 2105.14217. A pyramid of four stages: MLP blocks in the first two,
blocks with global self-attention in the last two, deformable token merging between.

Shapes, in all files: B batch, H x W token grid of a stage, N = H*W tokens, C
channels, d = C / heads. Tokens stay channels-last, (B, H, W, C), all the way.
"""

from typing import Dict, Optional, Sequence, Tuple, Union

import torch
from mmengine.model import BaseModule, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..archs import ATTENTION_STAGES, NUM_STAGES, PATCH_SIZE, resolve_arch
from ..arguments import check_bool, check_img_size, check_indices, check_int, check_rate
from ..weights.load import prepare_state_dict
from .attention import GlobalAttention
from .blocks import Block
from .downsample import DeformableTokenMerging
from .embedding import PatchEmbed
from .position import AbsolutePosition, reference_grid
from .pyramid import Stage

MIN_IMG_SIZE = PATCH_SIZE * 2 ** (NUM_STAGES - 1)  # one token left in the last stage

#: The authors' initialisation of what torch would start otherwise. Position tables,
#: offsets and deformable weights start by themselves, in their own classes.
DEFAULT_INIT_CFG = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer=['LayerNorm', '_BatchNorm'], val=1.0, bias=0.0),
]


@MODELS.register_module()
class LIT(BaseModule):
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
        super().__init__(DEFAULT_INIT_CFG if init_cfg is None else init_cfg)
        self.arch = arch = resolve_arch(arch)
        relative = arch.pos_embed == 'relative'
        img_size = check_img_size(img_size, MIN_IMG_SIZE)
        if out_norm_indices is None:
            out_norm_indices = (1, 2, 3) if relative else ()
        if drop_path_rate is None:
            drop_path_rate = arch.drop_path_rate
        for name, rate in (
            ('drop_rate', drop_rate),
            ('attn_drop_rate', attn_drop_rate),
            ('drop_path_rate', drop_path_rate),
        ):
            check_rate(name, rate)
        self.embed_dims = arch.embed_dims
        self.in_channels = check_int('in_channels', in_channels, 1)
        self.out_indices = check_indices('out_indices', out_indices, NUM_STAGES)
        self.frozen_stages = check_int('frozen_stages', frozen_stages, -1, NUM_STAGES)
        self.norm_eval = check_bool('norm_eval', norm_eval)
        check_bool('with_cp', with_cp)
        out_norm_indices = check_indices(
            'out_norm_indices', out_norm_indices, NUM_STAGES, may_be_empty=True
        )
        normed = set(out_norm_indices) & set(self.out_indices)

        drop_paths = _drop_path_schedule(drop_path_rate, arch.depths)
        self.stages = ModuleList()
        for i in range(self.out_indices[-1] + 1):
            channels = arch.embed_dims[i]
            blocks = []
            for block_drop_path in drop_paths[i]:
                attn = None
                if ATTENTION_STAGES[i]:
                    attn = GlobalAttention(
                        channels,
                        arch.num_heads[i],
                        bias_grid=reference_grid(img_size, i) if relative else None,
                        attn_drop_rate=attn_drop_rate,
                        drop_rate=drop_rate,
                        attn_kernel=attn_kernel,
                    )
                blocks.append(
                    Block(
                        channels,
                        arch.mlp_ratios[i],
                        arch.norm_eps,
                        drop_rate=drop_rate,
                        drop_path_rate=block_drop_path,
                        attn=attn,
                    )
                )
            patch_embed = downsample = None
            if i == 0:
                patch_embed = PatchEmbed(in_channels, channels)
            else:
                downsample = DeformableTokenMerging(arch.embed_dims[i - 1], channels)
            self.stages.append(
                Stage(
                    patch_embed,
                    downsample,
                    pos_embed=None if relative else AbsolutePosition(channels, i),
                    # The authors drop after every absolute embedding, but only once,
                    # after the patch embedding, in the relative archs.
                    drop_rate=drop_rate if i == 0 or not relative else 0.0,
                    blocks=blocks,
                    out_norm=(
                        nn.LayerNorm(channels, eps=arch.norm_eps)
                        if i in normed
                        else None
                    ),
                    with_cp=with_cp,
                )
            )
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            image: (B, in_channels, h, w), any size whose sides reach 32 px once
                padded to a multiple of 4.

        Returns:
            One contiguous (B, C_i, H_i, W_i) per entry of ``out_indices``, in the
            module's dtype (also under autocast).

        Raises:
            ValueError: The image is too small or has another number of channels.
            TypeError: The image does not hold floating point numbers.
        """
        self._check_image(image)
        dtype = self.stages[0].patch_embed.proj.weight.dtype
        x, outs = image.to(dtype), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(stage.emit(x).to(dtype))
        return tuple(outs)

    def train(self, mode: bool = True) -> 'LIT':
        """Set training mode, but for what is frozen; returns self."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        """Every loader passes here: take official weights too, refuse wrong ones."""
        prepare_state_dict(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _frozen_parts(self) -> Sequence[nn.Module]:
        if self.frozen_stages == 0:
            return [self.stages[0].patch_embed]
        return list(self.stages[: max(self.frozen_stages, 0)])

    def _check_image(self, image: Tensor):
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'image of shape {tuple(image.shape)}: LIT wants (batch, '
                f'{self.in_channels}, height, width)'
            )
        if not image.is_floating_point():
            raise TypeError(
                f'image of {image.dtype}: LIT wants normalised floating point pixels '
                '(in mmdet and mmseg the data_preprocessor makes them)'
            )
        height, width = image.shape[-2:]
        too_small = MIN_IMG_SIZE - PATCH_SIZE
        # Side by side rather than min(): torch.compile learns bounds from these.
        if height <= too_small or width <= too_small:
            raise ValueError(
                f'image of {height}x{width} px is too small: LIT needs sides of at '
                f'least {MIN_IMG_SIZE} px once padded to a multiple of {PATCH_SIZE}'
            )


def _drop_path_schedule(rate: float, depths: Sequence[int]) -> Sequence[list]:
    """Rates per stage and block, rising linearly over all blocks from 0 to rate."""
    rates = iter(torch.linspace(0, rate, sum(depths), device='cpu').tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]
