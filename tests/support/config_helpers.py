"""Load and build configs, and check what detection and segmentation share."""

from importlib import import_module
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmengine.utils import import_modules_from_strings

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ARCH_OF = {'ti': 'tiny', 's': 'small', 'm': 'medium', 'b': 'base'}
RELEASES = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_'
DATA = {'CocoDataset': 'COCO', 'ADE20KDataset': 'ADE20K'}
# Of mmdet 2 and mmseg 0: the newer ones pass over them without a word.
OLD_KEYS = set(
    'optimizer optimizer_config lr_config runner data evaluation checkpoint_config '
    'log_config total_epochs'.split()
)


def load(kind, name):
    """Return a config of `configs/<kind>`."""
    return Config.fromfile(CONFIGS / kind / name)


def build(cfg):
    """Build the model from the registry of the config's scope."""
    scope = cfg.default_scope
    import_module(f'{scope}.utils').register_all_modules()
    init_default_scope(scope)
    import_modules_from_strings(**cfg.custom_imports)
    # Configs name weights by URL: nothing here may reach for the network.
    cfg.model.backbone.init_cfg = None
    return import_module(f'{scope}.registry').MODELS.build(cfg.model)


def build_without_data(cfg):
    """Build the model on the meta device: any size, in no time and no memory."""
    with torch.device('meta'):
        return build(cfg)


def shrink(cfg, arch):
    """Give a config's model another arch, and its neck or heads the channels of it."""
    cfg.model.backbone.arch = arch
    holder = cfg.model.get('neck') or cfg.model.decode_head
    holder.in_channels = list(arch['embed_dims'])
    if 'auxiliary_head' in cfg.model:
        cfg.model.auxiliary_head.in_channels = arch['embed_dims'][2]
    return cfg


def noise(cfg, objects=(3, 2)):
    """Return two noisy 64x64 training images with these numbers of objects."""
    if cfg.default_scope == 'mmdet':
        testing = import_module('mmdet.testing')
        head = cfg.model.get('roi_head') or cfg.model
        # Of a cascade, the first head stands for all.
        boxes = head.bbox_head[0] if 'stage_loss_weights' in head else head.bbox_head
        return testing.demo_mm_inputs(
            2,
            [[3, 64, 64]] * 2,
            num_items=list(objects),
            num_classes=min(boxes.num_classes, 10),
            with_mask='mask_head' in head,
        )
    sample = import_module('mmseg.structures').SegDataSample
    labels = torch.randint(0, cfg.model.decode_head.num_classes, (2, 1, 64, 64))
    shape = dict(img_shape=(64, 64), ori_shape=(64, 64))
    return dict(
        inputs=list(torch.randint(0, 256, (2, 3, 64, 64)).byte()),
        data_samples=[
            sample(metainfo=shape, gt_sem_seg=PixelData(data=label)) for label in labels
        ],
    )


def train_on(model, data, wrapped=None):
    """Compute a loss and its gradients, through the wrapper if there is one."""
    data = model.data_preprocessor(data, True)
    loss, _ = model.parse_losses((wrapped or model)(**data, mode='loss'))
    loss.backward()
    return loss


def check_metafile(model, cfg, kind, name):
    """Compare a config with its metafile: size, data, length, batch."""
    metafile = yaml.safe_load((CONFIGS / kind / 'metafile.yml').read_text())
    (entry,) = (m for m in metafile['Models'] if m['Config'].endswith(f'/{name}'))
    collections = {c['Name']: c['Metadata'] for c in metafile['Collections']}
    said = {**collections[entry['In Collection']], **entry['Metadata']}
    assert said['Parameters'] == sum(p.numel() for p in model.parameters())
    assert said.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert said.get('Iterations') == cfg.train_cfg.get('max_iters')
    drawn = 'shapes' in cfg
    gpus = 1 if drawn else 8
    assert said['Batch Size'] == gpus * cfg.train_dataloader.batch_size
    data = DATA.get(cfg.train_dataloader.dataset.type)
    assert said['Training Data'] == ('drawn shapes' if drawn else data)


def without_decay(model, cfg):
    """Return the names of parameters without weight decay, and all learning rates."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper.optimizer) is torch.optim.AdamW
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared, rates = set(), set(), set()
    for group in wrapper.optimizer.param_groups:
        chosen = spared if group['weight_decay'] == 0 else decayed
        chosen.update(names[id(p)] for p in group['params'])
        rates.add(group['lr'])
        assert group['weight_decay'] in (0, cfg.optim_wrapper.optimizer.weight_decay)
    assert decayed | spared == set(names.values()) and not decayed & spared
    return spared, rates


def norms_of(model, kinds=(torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)):
    """Return the names of the parameters of all norms in a model."""
    return {
        f'{name}.{kind}'
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for kind in ('weight', 'bias')
    }


def check_tables(backbone, arch, sides):
    """Check that the position tables of stages 3 and 4 are for grids of these sides."""
    tables = 0
    for stage, side in zip(backbone.stages[2:], sides):
        for block in stage.blocks:
            if arch.pos_embed == 'relative':
                table = block.attn.position_bias.relative_position_bias_table
                assert table.shape[1:] == (2 * side - 1,) * 2
                tables += 1
    assert tables == (sum(arch.depths[2:]) if arch.pos_embed == 'relative' else 0)
