"""Follow docs/custom_data.md: its files as they stand, its commands, its log.

Without a GPU nothing here trains in float16 or on several GPUs: AmpOptimWrapper and
dist_train.sh are resolved, and `--amp` trains in bfloat16.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS

from support import config_helpers
from support.archs import RELATIVE
from support.config_helpers import blocks, commands, make_workplace, recipe

from support.config_helpers import section, settings  # isort: skip
from support.running_tools import metrics

pytest.importorskip('mmdet', reason='a recipe is for mmdet')
pytest.importorskip('mmseg', reason='a recipe is for mmseg')
RECIPES = ('Detection', 'Segmentation')
MORE = blocks(section('More that can be set'), 'python')
SMALL = dict(
    # Few proposals: without an accelerator bfloat16 is worked out in software.
    Detection='train_cfg.max_epochs=1 model.train_cfg.rcnn.sampler.num=16 '
    'model.test_cfg.rpn.max_per_img=20 model.test_cfg.rcnn.max_per_img=5 '
    "train_dataloader.dataset.pipeline.2.scale='(96,96)' "
    "val_dataloader.dataset.pipeline.1.scale='(96,96)' "
    "test_dataloader.dataset.pipeline.1.scale='(96,96)'",
    Segmentation='train_cfg.max_iters=2 train_cfg.val_interval=2 '
    "default_hooks.checkpoint.interval=2 model.data_preprocessor.size='(64,64)' "
    "train_dataloader.dataset.pipeline.3.crop_size='(64,64)' "
    "val_dataloader.dataset.pipeline.1.scale='(128,96)' "
    "test_dataloader.dataset.pipeline.1.scale='(128,96)'",
)
CLASS_LAYERS = dict(
    Detection=('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits'),
    Segmentation=('decode_head.conv_seg',),
)


# --- the recipe, followed ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('title', RECIPES)
def test_the_commands_with_two_iterations(tmp_path, title):
    name = make_workplace(tmp_path, title)
    base = tmp_path / settings(recipe(title)[2])['_base_'].replace('..', '.', 1)
    start = config_helpers.make_checkpoint(tmp_path / 'base.pth', base)
    options = ['load_from=base.pth', SMALL[title]]
    for split in ('train', 'val', 'test'):
        options += [f'{split}_dataloader.num_workers=0']
        options += [f'{split}_dataloader.persistent_workers=False']
    check, draw, train, resume, several, test = commands(title)

    assert follow(check, tmp_path).count('nothing found') == 2
    follow(draw, tmp_path)
    work_dir = tmp_path / 'work_dirs' / Path(name).stem
    drawn = sorted((work_dir / 'labels').iterdir())
    assert [path.name for path in drawn] == [f'000{i}_00000{i}.png' for i in '1234']
    assert all(cv2.imread(str(path)).std() > 1 for path in drawn)

    output = follow(train, tmp_path, *options)
    last = work_dir / ('epoch_1.pth' if title == 'Detection' else 'iter_2.pth')
    check_what_the_log_says(output, title)
    if not torch.cuda.is_available():
        assert ('bfloat16 autocast' in output) == ('--amp' in train)
    check_fine_tuned(torch.load(last, weights_only=False), start, title)
    assert Config.fromfile(work_dir / f'{work_dir.name}.py').model.backbone.with_cp
    assert re.search(r'iter: 2\b', follow(resume, tmp_path, *options))

    # Needs several GPUs: its options are those that train.py took above.
    _, script, config, gpus, *flags = several.split()
    assert (config_helpers.ROOT / script).is_file() and config == name and gpus == '4'
    assert set(flags) <= set(train.split())

    follow(test, tmp_path, *options)
    key = dict(Detection='coco/segm_mAP', Segmentation='mIoU')[title]
    assert 0 <= metrics(work_dir, newest=1)[key] <= 100
    if title == 'Detection':
        assert len(list(work_dir.glob('*/drawn/*'))) == 2
    else:
        assert len(list((work_dir / 'drawn').rglob('*.png'))) == 2
        maps = [cv2.imread(str(p), -1) for p in (work_dir / 'masks').iterdir()]
        assert len(maps) == 2 and all(1 <= m.min() <= m.max() <= 3 for m in maps)
    for path in tmp_path.rglob('*.pth'):  # 2 GB in all
        path.unlink()


def follow(command, folder, *options):
    """Run a line of the document in a checkout; return what it prints."""
    line = ' '.join([command, '--cfg-options' if options else '', *options])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    pipes.update(cwd=folder, env=dict(os.environ, PATH=path), timeout=900)
    done = subprocess.run(['bash', '-c', line], **pipes)
    assert done.returncode == 0, f'{line}\n{done.stdout[-5000:]}'
    return done.stdout


def check_what_the_log_says(output, title):
    first, rate = blocks(section('What the log says'), 'text')
    head, segmentation, detection = first.splitlines()
    quoted = detection if title == 'Detection' else segmentation
    assert head in output and quoted in output and rate.strip() in output
    skipped = re.findall(r'size mismatch for (?:roi_head\.)?([\w.]+):', output)
    layers, kinds = CLASS_LAYERS[title], ('weight', 'bias')
    assert set(skipped) == {f'{layer}.{kind}' for layer in layers for kind in kinds}
    assert 'missing keys' not in output and 'unexpected key' not in output


def check_fine_tuned(checkpoint, start, title):
    """Check that all but stage 1 and the class layers moved on from the start."""
    assert checkpoint['meta']['iter'] == 2
    losses = checkpoint['message_hub']['log_scalars']['train/loss'].data[0]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    moved = []
    for key, value in checkpoint['state_dict'].items():
        if any(layer in key for layer in CLASS_LAYERS[title]):
            assert value.shape != start[key].shape
        elif key.startswith('backbone.stages.0.'):
            assert torch.equal(value, start[key]), key
        elif key.endswith(('weight', 'bias')):
            # AdamW goes about one learning rate a step, 1e-7 here; weights are 0.01.
            assert (value - start[key]).abs().max() < 1e-5, key
            if key.startswith('backbone.'):
                moved.append(not torch.equal(value, start[key]))
    assert sum(moved) > 0.8 * len(moved) > 0


# --- other ways -------------------------------------------------------------------


@pytest.mark.parametrize(('number', 'kind'), [(0, 'RetinaNet'), (1, 'MaskRCNN')])
def test_boxes_without_outlines_learn(tmp_path, monkeypatch, number, kind):
    from mmengine.runner import Runner

    name = make_workplace(tmp_path, 'Detection')
    _, _, text, ways = recipe('Detection')
    text = config_helpers.replace(text, ways[number]).replace('segm_mAP', 'bbox_mAP')
    assert text.count(', with_mask=True') == 2
    (tmp_path / name).write_text(text.replace(', with_mask=True', ''))
    config_helpers.drop_outlines(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = config_helpers.shrink(Config.fromfile(name), RELATIVE)
    model = config_helpers.build(config)
    assert type(model).__name__ == kind and not model.with_mask
    loader = dict(config.train_dataloader, num_workers=0, persistent_workers=False)
    batch = next(iter(Runner.build_dataloader(loader)))
    losses = model.train()(**model.data_preprocessor(batch, True), mode='loss')
    assert math.isfinite(model.parse_losses(losses)[0])
    assert config.val_evaluator.metric == 'bbox' == config.test_evaluator.metric


@pytest.mark.parametrize('title', RECIPES)
def test_more_that_can_be_set(tmp_path, title):
    name = make_workplace(tmp_path, title)
    config = with_more(tmp_path / name, ''.join(MORE[1:]))
    model = config_helpers.build_without_data(config).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 3 and not any(norm.training for norm in norms)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rate = config.optim_wrapper.optimizer.lr
    assert math.isclose(max(group['lr'] for group in groups), rate)
    assert {round(math.log(g['lr'] / rate, 0.9)) for g in groups} >= {0, 1, 2, 3}
    wrapper = with_more(tmp_path / name, MORE[0]).optim_wrapper
    assert OPTIM_WRAPPERS.get(wrapper.type).__name__ == 'AmpOptimWrapper'
    assert wrapper.optimizer.type == 'AdamW' and wrapper.loss_scale == 'dynamic'


def with_more(config, snippet):
    """Return a config with a snippet in a file that inherits it."""
    more = config.with_name('more.py')
    more.write_text(f'_base_ = {config.name!r}\n{snippet}')
    return Config.fromfile(more)
