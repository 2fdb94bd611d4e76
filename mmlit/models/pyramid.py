"""Build, freeze and run a pyramid of four stages."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.utils.checkpoint
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..archs import NUM_STAGES, PATCH_SIZE, Arch
from ..arguments import check_bool, check_indices, check_int
from .blocks import Block
from .downsample import DeformableTokenMerging, PatchEmbed

MIN_IMG_SIZE = PATCH_SIZE * 2 ** (NUM_STAGES - 1)  # one token left in the last stage


class Stage(BaseModule):
    """One level of the pyramid: patch embedding or token merging, then blocks.

    The output norm lives here, but only the stage's output goes through it: the next
    stage reads the tokens as they are.

    Args:
        blocks: The blocks.
        patch_embed: Makes tokens of the image; in stage 0 only.
        downsample: Merges the tokens of the stage before; in later stages only.
        pos_embed: Absolute embedding, or ``None``.
        drop_rate: Dropout after the position embedding.
        out_norm: LayerNorm of the output, or ``None``.
        with_cp: Recompute each block in the backward pass instead of storing it.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        patch_embed: Optional[PatchEmbed] = None,
        downsample: Optional[DeformableTokenMerging] = None,
        pos_embed: Optional[nn.Module] = None,
        drop_rate: float = 0.0,
        out_norm: Optional[nn.LayerNorm] = None,
        with_cp: bool = False,
    ):
        super().__init__()
        # Saved optimizers know parameters by this order.
        self.patch_embed = patch_embed
        self.downsample = downsample
        self.pos_embed = pos_embed
        self.drop = nn.Dropout(drop_rate)
        self.blocks = ModuleList(blocks)
        self.out_norm = out_norm
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Image or previous tokens -> this stage's tokens (B, H, W, C)."""
        x = self.patch_embed(x) if self.downsample is None else self.downsample(x)
        if self.pos_embed is not None:
            x = self.pos_embed(x)
        x = self.drop(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Pyramid(BaseModule):
    """Four stages with feature maps at strides 4, 8, 16 and 32.

    A network derives from it, defines ``_build_stage`` and calls ``_build_stages`` at
    the end of its constructor. The arguments are those of :class:`mmlit.LIT`.
    """

    def __init__(
        self,
        arch: Arch,
        in_channels: int,
        out_indices: Sequence[int],
        out_norm_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: Sequence[Dict],
    ):
        super().__init__(init_cfg)
        self.arch = arch
        self.embed_dims = arch.embed_dims
        self.in_channels = check_int('in_channels', in_channels, 1)
        self.out_indices = check_indices('out_indices', out_indices, NUM_STAGES)
        self.out_norm_indices = check_indices(
            'out_norm_indices', out_norm_indices, NUM_STAGES, may_be_empty=True
        )
        self.frozen_stages = check_int('frozen_stages', frozen_stages, -1, NUM_STAGES)
        self.norm_eval = check_bool('norm_eval', norm_eval)
        self.with_cp = check_bool('with_cp', with_cp)

    def _build_stages(self, drop_path_rate: float) -> None:
        """Build the stages up to the last output, and freeze what is to be frozen.

        Args:
            drop_path_rate: Rate of the last block; it rises linearly from 0.
        """
        depths = self.arch.depths
        rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        self.stages = ModuleList()
        for i in range(self.out_indices[-1] + 1):
            first = sum(depths[:i])
            self.stages.append(self._build_stage(i, rates[first : first + depths[i]]))
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def _build_stage(self, i: int, drop_path_rates: List[float]) -> Stage:
        """Build stage i; there is a drop path rate for each of its blocks."""
        raise NotImplementedError

    def _build_embed(self, i: int) -> Dict[str, nn.Module]:
        """Build what makes the tokens of stage i, by its name there."""
        channels = self.embed_dims[i]
        if i == 0:
            return dict(patch_embed=PatchEmbed(self.in_channels, channels))
        return dict(downsample=DeformableTokenMerging(self.embed_dims[i - 1], channels))

    def _build_out_norm(self, i: int) -> Optional[nn.LayerNorm]:
        if i not in self.out_indices or i not in self.out_norm_indices:
            return None
        return nn.LayerNorm(self.embed_dims[i], eps=self.arch.norm_eps)

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
        x, levels = image.to(dtype), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                level = x if stage.out_norm is None else stage.out_norm(x)
                levels.append(level.permute(0, 3, 1, 2).contiguous().to(dtype))
        return tuple(levels)

    def train(self, mode: bool = True) -> 'Pyramid':
        """Set training mode, but for what is frozen; returns self."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen_parts(self) -> Sequence[nn.Module]:
        if self.frozen_stages == 0:
            return [self.stages[0].patch_embed]
        return list(self.stages[: max(self.frozen_stages, 0)])

    def _check_image(self, image: Tensor) -> None:
        name = type(self).__name__
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'image of shape {tuple(image.shape)}: {name} wants (batch, '
                f'{self.in_channels}, height, width)'
            )
        if not image.is_floating_point():
            raise TypeError(
                f'image of {image.dtype}: {name} wants normalised floating point '
                'pixels (in mmdet and mmseg the data_preprocessor makes them)'
            )
        height, width = image.shape[-2:]
        too_small = MIN_IMG_SIZE - PATCH_SIZE
        # Side by side rather than min(): torch.compile learns bounds from these.
        if height <= too_small or width <= too_small:
            raise ValueError(
                f'image of {height}x{width} px is too small: {name} needs sides of at '
                f'least {MIN_IMG_SIZE} px once padded to a multiple of {PATCH_SIZE}'
            )
