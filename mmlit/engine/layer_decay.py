"""Layer-wise learning-rate decay: the earlier a layer, the slower it learns.

For fine-tuning: early layers hold what pretraining taught them, and keep it longer
with a smaller learning rate.
"""

from typing import Dict, List, NamedTuple, Optional, Union

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn

from ..models.lit import LIT

#: What mmengine's constructor reads of `paramwise_cfg`; all of it stays in force.
DEFAULT_KEYS = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)
#: What mmdet's and mmseg's constructors of the same purpose want besides.
FOREIGN_KEYS = {
    'num_layers': 'the layers are counted in the model',
    'decay_type': 'the decay is always by layer',
}


class Layer(NamedTuple):
    """A layer of a LIT.

    Args:
        lit: Name of the LIT in the model; empty where it is the model itself.
        index: 0 for the patch embedding, k for the k-th block.
        above: Number of layers from this one to the head: 1 for the last block.
    """

    lit: str
    index: int
    above: int


class Group(NamedTuple):
    """Parameters of one layer (``None``: outside of LIT) with the same settings."""

    layer: Optional[Layer]
    settings: dict
    params: List[Tensor]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LITLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scales the learning rate of each layer of LIT by its depth.

    A LIT of n blocks has the layers 0..n: the patch embedding with the position
    embedding of stage 1 is layer 0, each block is one, counted through all stages
    that are built. A token merging and the position embedding behind it belong to
    the first block after them, an output norm to the last block of its stage. Layer k
    learns at ``decay_rate ** (n + 1 - k)`` times the rate that it would have had; all
    that is outside of LIT (neck, heads) learns at the full rate.

    LITs are found wherever they are in the model, also several. A parameter that is
    used in several places counts where the model holds it first.

    At start-up a table of the parameter groups is logged: one group for all
    parameters of a layer that have the same settings.

    A config that had ``optim_wrapper.paramwise_cfg`` before gains two lines::

        optim_wrapper = dict(
            constructor='LITLayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
            paramwise_cfg=dict(
                decay_rate=0.9,
                # Everything that mmengine knows goes on top of the decay.
                dcn_offset_lr_mult=0.01,
                custom_keys={
                    'norm': dict(decay_mult=0.0),
                    'relative_position_bias_table': dict(decay_mult=0.0),
                },
            ),
        )

    Mind schedulers with an absolute end (``eta_min`` above 0): it is the same for all
    layers, and lies above the rate of early layers where it is not small.

    Args:
        optim_wrapper_cfg: ``optim_wrapper`` of the config. Its ``optimizer`` must
            name an ``lr``.
        paramwise_cfg: ``decay_rate`` (0 < rate <= 1, needed) and any of the options of
            mmengine's ``DefaultOptimWrapperConstructor``. ``num_layers`` and
            ``decay_type`` of mmdet's and mmseg's constructors are refused: the model
            says the one, and there is no choice in the other.

    Raises:
        ValueError, TypeError: An option is missing, unknown or out of range; on the
            call, the model holds no LIT.
    """

    def _validate_cfg(self):
        """Refuse what would otherwise be ignored, or fail in mid-construction."""
        super()._validate_cfg()
        for key in self.paramwise_cfg:
            if key in FOREIGN_KEYS:
                raise ValueError(
                    f'paramwise_cfg.{key}: leave it out, {FOREIGN_KEYS[key]}'
                )
            if key != 'decay_rate' and key not in DEFAULT_KEYS:
                raise ValueError(
                    f'paramwise_cfg.{key} is unknown; known are decay_rate, '
                    + ', '.join(DEFAULT_KEYS)
                )
        if 'decay_rate' not in self.paramwise_cfg:
            raise ValueError(
                f'{type(self).__name__} needs paramwise_cfg.decay_rate: the factor '
                'from one layer to the one before it, for example 0.9'
            )
        rate = self.paramwise_cfg['decay_rate']
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            raise TypeError(f'paramwise_cfg.decay_rate={rate!r} must be a number')
        if not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg.decay_rate={rate!r} must lie in (0, 1]')
        if self.base_lr is None:
            raise ValueError(
                'optim_wrapper.optimizer.lr is missing: layer-wise decay scales it'
            )

    def add_params(
        self,
        params: List[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: Optional[Union[int, float]] = None,
    ) -> None:
        """Append the parameter groups of ``module`` to ``params``.

        mmengine calls this with the model, and its own rules call it again for each
        module inside, with a ``prefix``.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        layers = find_layers(module)
        if not layers:
            raise ValueError(
                f'{type(module).__name__} holds no LIT, whose layers '
                f"{type(self).__name__} scales: take mmengine's "
                'DefaultOptimWrapperConstructor (without decay_rate)'
            )
        plain: List[dict] = []
        super().add_params(plain, module)
        groups = self._group(plain, layers)
        params.extend(dict(g.settings, params=g.params) for g in groups)
        print_log(self._table(groups, module), logger='current')

    def _group(self, plain: List[dict], layers: Dict[int, Layer]) -> List[Group]:
        """Scale and unite the groups of one parameter each that mmengine makes."""
        groups, seen = {}, set()
        for single in plain:
            (param,) = single['params']
            if id(param) in seen:
                continue
            seen.add(id(param))
            layer = layers.get(id(param))
            settings = {key: single[key] for key in single if key != 'params'}
            settings['lr'] = settings.get('lr', self.base_lr) * self._scale(layer)
            kind = (layer, tuple(sorted((k, repr(v)) for k, v in settings.items())))
            groups.setdefault(kind, Group(layer, settings, [])).params.append(param)
        return list(groups.values())

    def _scale(self, layer: Optional[Layer]) -> float:
        return 1.0 if layer is None else self.paramwise_cfg['decay_rate'] ** layer.above

    def _table(self, groups: List[Group], model: nn.Module) -> str:
        """One line per group, under a line of headings."""
        names = {id(param): name for name, param in model.named_parameters()}
        several = len({g.layer.lit for g in groups if g.layer is not None}) > 1
        rows = [('layer', 'scale', 'lr', 'decay', 'tensors', 'parameters', 'such as')]
        for layer, settings, params in groups:
            where = 'other' if layer is None else str(layer.index)
            if layer is not None and several:
                where = f'{layer.lit} {where}'
            decay = settings.get('weight_decay', self.base_wd)
            rows.append(
                (
                    where,
                    f'{self._scale(layer):.4g}',
                    f'{settings["lr"]:.4g}',
                    '-' if decay is None else f'{decay:.4g}',
                    str(len(params)),
                    f'{sum(param.numel() for param in params):,}',
                    names[id(params[0])],
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            '  '.join(cell.rjust(width) for cell, width in zip(row[:-1], widths))
            + f'  {row[-1]}'
            for row in rows
        ]
        rate = self.paramwise_cfg['decay_rate']
        title = (
            f'{len(groups)} parameter groups, decay_rate {rate} included (which '
            'paramwise_options above is not):'
        )
        return '\n'.join([title, *lines])


def find_layers(model: nn.Module) -> Dict[int, Layer]:
    """The layer of each parameter of each LIT in a model, by ``id`` of the parameter.

    A parameter that several places share is in the first of them.
    """
    layers: Dict[int, Layer] = {}
    for name, lit in model.named_modules():
        if not isinstance(lit, LIT):
            continue
        last = sum(len(stage.blocks) for stage in lit.stages)
        blocks_before = 0
        for i, stage in enumerate(lit.stages):
            entry = 0 if i == 0 else blocks_before + 1
            parts = [
                (entry, stage.patch_embed),
                (entry, stage.downsample),
                (entry, stage.pos_embed),
            ]
            parts += enumerate(stage.blocks, start=blocks_before + 1)
            blocks_before += len(stage.blocks)
            parts.append((blocks_before, stage.out_norm))
            for index, part in parts:
                for param in [] if part is None else part.parameters():
                    layers.setdefault(id(param), Layer(name, index, last + 1 - index))
    return layers
