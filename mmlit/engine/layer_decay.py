"""Build optimizers whose learning rate decays layer by layer towards the input."""

from typing import Dict, List, NamedTuple, Optional, Union

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models.lit import LIT

#: Options of `paramwise_cfg` besides `decay_rate`: those of mmengine's constructor.
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


class Layer(NamedTuple):
    """A layer of a LIT."""

    lit: str  # name of the LIT in the model
    index: int  # 0 for the patch embedding, k for the k-th block
    above: int  # number of layers from this one to the head: 1 for the last block


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LITLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scale the learning rate of each layer of LIT by its depth, for fine-tuning.

    A LIT of n blocks has the layers 0 to n: layer 0 is the patch embedding with the
    position embedding of stage 1, layer k the k-th block, counted through all stages
    that are built. A token merging and the position embedding behind it belong to the
    next block, an output norm to the last block of its stage. The learning rate of
    layer k is multiplied by ``decay_rate ** (n + 1 - k)``; that of everything outside
    LIT (neck, heads) stays. LITs are found wherever they are in the model, also
    several. A shared parameter belongs to its first place.

    A table of the parameter groups is logged: one group for all parameters of a layer
    that have the same settings. In a config that has ``paramwise_cfg`` already, this
    needs two more lines::

        optim_wrapper = dict(
            constructor='LITLayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
            paramwise_cfg=dict(
                decay_rate=0.9,
                # mmengine's options apply on top of the decay.
                dcn_offset_lr_mult=0.01,
                custom_keys={
                    'norm': dict(decay_mult=0.0),
                    'relative_position_bias_table': dict(decay_mult=0.0),
                },
            ),
        )

    Mind schedulers with an absolute end (``eta_min`` above 0): it is the same for all
    layers, and may exceed the rate of early layers.

    Args:
        optim_wrapper_cfg: ``optim_wrapper`` of the config. Its ``optimizer`` must
            have an ``lr``.
        paramwise_cfg: ``decay_rate`` (required, 0 < rate <= 1) and any option of
            mmengine's ``DefaultOptimWrapperConstructor``. ``num_layers`` and
            ``decay_type`` of mmdet's and mmseg's constructors are refused.

    Raises:
        ValueError, TypeError: An option is missing, unknown or out of range; on the
            call, the model has no LIT.
    """

    def _validate_cfg(self):
        """Refuse options that would be ignored, or fail later."""
        super()._validate_cfg()
        for key in self.paramwise_cfg:
            if key != 'decay_rate' and key not in DEFAULT_KEYS:
                raise ValueError(
                    f'paramwise_cfg.{key} is unknown; supported are decay_rate and '
                    f'{", ".join(DEFAULT_KEYS)} (layers are counted in the model)'
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
        """Append the parameter groups of ``module`` to ``params``."""
        if prefix:  # mmengine's own method calls this for each module inside.
            super().add_params(params, module, prefix, is_dcn_module)
            return
        layers = find_layers(module)
        if not layers:
            raise ValueError(
                f'{type(module).__name__} has no LIT whose layers could be scaled: use '
                "mmengine's DefaultOptimWrapperConstructor (without decay_rate)"
            )
        single: List[dict] = []
        super().add_params(single, module)
        groups = self._merge(single, layers)
        params.extend(groups.values())
        print_log(self._table(groups, module), logger='current')

    def _merge(self, single: List[dict], layers: Dict[int, Layer]) -> Dict[tuple, dict]:
        """Scale and merge mmengine's groups of one parameter, by layer and settings."""
        groups, seen = {}, set()
        for group in single:
            (param,) = group['params']
            if id(param) in seen:
                continue
            seen.add(id(param))
            layer = layers.get(id(param))
            settings = {key: group[key] for key in group if key != 'params'}
            settings['lr'] = settings.get('lr', self.base_lr) * self._scale(layer)
            kind = (layer, tuple(sorted((k, repr(v)) for k, v in settings.items())))
            groups.setdefault(kind, dict(settings, params=[]))['params'].append(param)
        return groups

    def _scale(self, layer: Optional[Layer]) -> float:
        return 1.0 if layer is None else self.paramwise_cfg['decay_rate'] ** layer.above

    def _table(self, groups: Dict[tuple, dict], model: nn.Module) -> str:
        """Return one line per group, under a line of headings."""
        names = {id(param): name for name, param in model.named_parameters()}
        lines = [
            f'{len(groups)} parameter groups, decay_rate '
            f'{self.paramwise_cfg["decay_rate"]} included (which paramwise_options '
            'above is not):',
            ' layer      scale         lr      decay tensors  parameters  such as',
        ]
        for (layer, _), group in groups.items():
            decay, params = group.get('weight_decay', self.base_wd), group['params']
            lines.append(
                f'{"other" if layer is None else layer.index:>6} '
                f'{self._scale(layer):10.4g} {group["lr"]:10.4g} '
                f'{"-" if decay is None else format(decay, ".4g"):>10} '
                f'{len(params):7} {sum(param.numel() for param in params):11,}  '
                + names[id(params[0])]
            )
        return '\n'.join(lines)


def find_layers(model: nn.Module) -> Dict[int, Layer]:
    """Return the layer of each parameter of each LIT, by ``id`` of the parameter."""
    layers: Dict[int, Layer] = {}
    for name, lit in model.named_modules():
        if not isinstance(lit, LIT):
            continue
        last = sum(len(stage.blocks) for stage in lit.stages)
        before = 0
        for i, stage in enumerate(lit.stages):
            entry = before + 1 if i else 0
            parts = [(entry, stage.patch_embed), (entry, stage.downsample)]
            parts += [(entry, stage.pos_embed), *enumerate(stage.blocks, before + 1)]
            before += len(stage.blocks)
            parts.append((before, stage.out_norm))
            for index, part in parts:
                for param in [] if part is None else part.parameters():
                    # In its first place, where it is shared.
                    layers.setdefault(id(param), Layer(name, index, last + 1 - index))
    return layers
