"""Load and build configs; follow docs/custom_data.md and make its data."""

import ast
import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmengine.utils import import_modules_from_strings

from mmlit.archs import ARCHS
from support.official_files import save_as_the_authors

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ARCH_OF = {'ti': 'tiny', 's': 'small', 'm': 'medium', 'b': 'base'}
RELEASES = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_'
# Of mmdet 2 and mmseg 0: the newer ones pass over them without a word.
OLD_KEYS = {'optimizer', 'lr_config', 'runner', 'data', 'evaluation', 'total_epochs'}


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
        options = dict(num_classes=min(boxes.num_classes, 10), num_items=list(objects))
        options['with_mask'] = 'mask_head' in head
        return testing.demo_mm_inputs(2, [[3, 64, 64]] * 2, **options)
    sample = import_module('mmseg.structures').SegDataSample
    labels = torch.randint(0, cfg.model.decode_head.num_classes, (2, 1, 64, 64))
    shape = dict(img_shape=(64, 64), ori_shape=(64, 64))
    samples = [sample(metainfo=shape, gt_sem_seg=PixelData(data=x)) for x in labels]
    images = torch.randint(0, 256, (2, 3, 64, 64)).byte()
    return dict(inputs=list(images), data_samples=samples)


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
    gpus = 1 if 'shapes' in cfg else 8
    assert said['Batch Size'] == gpus * cfg.train_dataloader.batch_size
    data = cfg.train_dataloader.dataset.type.replace('Dataset', '').upper()
    assert said['Training Data'] == ('drawn shapes' if 'shapes' in cfg else data)


def loaders(cfg):
    return cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader


def only(pipeline, kind):
    (found,) = (t for t in pipeline if t.type == kind)
    return found


def check_published(kind, name, letter, sides):
    """Check what configs of both kinds share, on COCO and ADE20K; return the model.

    Args:
        sides: Of the grids that the position tables of stages 3 and 4 are for.
    """
    cfg, arch = load(kind, name), ARCHS[ARCH_OF[letter]]
    assert not OLD_KEYS & set(cfg)
    assert cfg.model.backbone.arch == ARCH_OF[letter]
    weights = dict(type='Pretrained', checkpoint=f'{RELEASES}{letter}.pth')
    assert cfg.model.backbone.init_cfg == weights
    assert cfg.optim_wrapper.get('clip_grad') is None
    # 8 GPUs x 2 images
    batch_size = cfg.train_dataloader.batch_size
    assert 8 * batch_size == cfg.auto_scale_lr.base_batch_size == 16
    assert not cfg.auto_scale_lr.enable
    model = build_without_data(cfg)
    check_metafile(model, cfg, kind, name)
    assert model.backbone.embed_dims == arch.embed_dims
    assert model.backbone.out_indices == (0, 1, 2, 3)
    if arch.pos_embed == 'relative':
        for stage, side in zip(model.backbone.stages[2:], sides):
            for block in stage.blocks:
                table = block.attn.position_bias.relative_position_bias_table
                assert tuple(table.shape[1:]) == (2 * side - 1,) * 2
    return model


def check_shapes(kind, name):
    """Check what both configs of the drawn shapes share; return the model."""
    cfg = load(kind, name)
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop'
    assert Path(cfg.data_root).is_absolute()
    assert Path(cfg.data_root).resolve() == CONFIGS.parent / 'data' / 'shapes'
    assert Path(cfg.shapes.out) == Path(cfg.data_root)
    assert cfg.model.backbone.init_cfg is None
    model = build_without_data(cfg)
    check_metafile(model, cfg, kind, name)
    # Slimmed are the neck and the heads, never the backbone.
    assert model.backbone.embed_dims == ARCHS['tiny'].embed_dims
    assert [len(stage.blocks) for stage in model.backbone.stages] == [3, 4, 6, 3]
    return model


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
    norms = [name for name, part in model.named_modules() if isinstance(part, kinds)]
    return {f'{name}.{kind}' for name in norms for kind in ('weight', 'bias')}


ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / 'docs' / 'custom_data.md'
#: What `tools/make_shapes.py` draws, under the names of the example.
PARTS = dict(circle='screw', triangle='nut', ring='washer')


def section(title):
    """Return the text of a `## title` of the document."""
    whole = DOCUMENT.read_text()
    return re.search(rf'^## {title}$(.*?)(?=^## |\Z)', whole, re.M | re.S)[1]


def blocks(text, language):
    """Return the fenced blocks of a language, without their fences."""
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def recipe(title):
    """Return a recipe's steps, its file's name and text, and what comes after."""
    steps, rest = [], blocks(section(title), 'python')
    while not rest[0].startswith('# my_configs/'):
        steps.append(rest.pop(0))
    return steps, rest[0].splitlines()[0][2:], rest[0], rest[1:]


def commands(title):
    """Return the lines of the section's bash blocks."""
    return ''.join(blocks(section(title), 'bash')).splitlines()


def settings(text, names=None):
    """Return the variables that Python text assigns, given those before it."""
    names = {} if names is None else names
    exec(text, names)
    return {(n := node.targets[0].id): names[n] for node in ast.parse(text).body}


def merge(old, new):
    """Put `new` over `old`: dicts key by key, everything else whole."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def replace(text, snippet):
    """Replace assignments of the text by the snippet's of the same names."""
    lines = text.splitlines()
    fresh = {n.targets[0].id: ast.unparse(n) for n in ast.parse(snippet).body}
    for node in reversed(ast.parse(text).body):
        if node.targets[0].id in fresh:
            lines[node.lineno - 1 : node.end_lineno] = [fresh.pop(node.targets[0].id)]
    assert not fresh, f'not in the file: {list(fresh)}'
    return '\n'.join(lines) + '\n'


def make_workplace(folder, title):
    """Make a checkout with the document's config, whose path it returns, and data."""
    from mmlit_tools.shapes.dataset import ensure_shapes

    _, name, text, _ = recipe(title)
    for part in ('configs', 'tools'):
        (folder / part).symlink_to(ROOT / part)
    (folder / name).parent.mkdir()
    (folder / name).write_text(text)
    drawn = ensure_shapes(folder / 'drawn', train=4, val=2, size=96, progress=False)
    parts, field = folder / 'data' / 'parts', folder / 'data' / 'field'
    for split in ('train', 'val'):
        if title == 'Detection':
            parts.mkdir(parents=True, exist_ok=True)
            (drawn / split).rename(parts / split)
            content = json.loads((drawn / 'annotations' / f'{split}.json').read_text())
            for category in content['categories']:
                category['name'] = PARTS[category['name']]
            (parts / f'{split}.json').write_text(json.dumps(content))
        else:
            for ours, kind in ((split, 'images'), (f'masks/{split}', 'masks')):
                (field / kind).mkdir(parents=True, exist_ok=True)
                (drawn / ours).rename(field / kind / split)
    shutil.rmtree(drawn)
    return name


def make_checkpoint(path, base):
    """Save the base config's model in the authors' format; return its weights."""
    torch.manual_seed(1)
    model = build(Config.fromfile(base))
    # Norms start at 1 and 0: from there nobody could tell where they came from.
    weights = model.state_dict()
    for key, value in weights.items():
        if value.is_floating_point() and 'running_var' not in key:
            value += 0.01 * torch.randn_like(value)
    meta = dict(mmdet_version='2.11.0', epoch=12, iter=88_000)
    save_as_the_authors(model, path, meta, biases='zeros')
    return {key: value.clone() for key, value in weights.items()}


def drop_outlines(folder):
    """Remove the outlines from the json files of the detection recipe."""
    for path in (folder / 'data' / 'parts').glob('*.json'):
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            del annotation['segmentation']
        path.write_text(json.dumps(content))
