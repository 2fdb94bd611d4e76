"""PipelineGuard names the images that a pipeline fails on, and leaves them out."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader

from mmlit.engine.pipeline_guard import MAX_CONSECUTIVE, PipelineGuard
from mmlit.errors import BrokenSampleError
from mmlit_tools.cli import command
from mmlit_tools.configs import guard_pipelines, import_scope
from support import bad_files
from support.bad_files import BROKEN, ODD, encoded
from support.tiny_data import coco_config, masks_config, write_mask

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def said(monkeypatch):
    """What the guard logs."""
    lines = []

    def log(text, logger, level):
        assert (logger, level) == ('current', logging.WARNING)
        lines.append(text)

    monkeypatch.setattr('mmlit.engine.pipeline_guard.print_log', log)
    return lines


class Numbers(BaseDataset):
    """Ten images; what their pipeline makes of them is their number."""

    def load_data_list(self):
        return [dict(img_path=f'images/{i}.jpg', number=i) for i in range(10)]


def numbers(broken, **options):
    def step(results):
        if results['number'] in broken:
            raise KeyError('lost')
        return results

    guard = PipelineGuard([step], **options)
    return Numbers(pipeline=[guard], test_mode=not options['skip'])


def test_another_image_takes_its_place(said):
    dataset = numbers({3, 7}, skip=True)
    drawn = [dataset[i]['number'] for i in range(10)]
    assert all(number == i for i, number in enumerate(drawn) if i not in (3, 7))
    assert not {3, 7} & set(drawn)
    assert said[0] == "Left out of training: images/3.jpg fails: KeyError: 'lost'"
    assert any('images/7.jpg' in line for line in said)


def test_a_pipeline_that_fails_on_everything_ends_the_training(said):
    message = f'{MAX_CONSECUTIVE} images in a row fail.*lost'
    with pytest.raises(BrokenSampleError, match=message):
        numbers(set(range(10)), skip=True)[0]
    assert len(said) == MAX_CONSECUTIVE - 1
    # One that works in between starts the count again.
    few = numbers({3}, skip=True)
    for _ in range(3 * MAX_CONSECUTIVE):
        few.pipeline(dict(number=3, img_path='x'))
        few.pipeline(dict(number=4))


@pytest.mark.parametrize('workers', [0, 1])
def test_without_skip_it_ends_the_run_with_one_line_of_the_command(said, workers):
    """Without the traceback that torch puts in front of a worker's."""

    @command('train.py')
    def main(arguments):
        list(DataLoader(numbers({3}, skip=False), num_workers=workers))

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == "train.py: images/3.jpg fails: KeyError: 'lost'"
    assert not said


def test_a_sound_pipeline_runs_as_without_the_guard(said):
    steps = [dict(type='RandomFlip', prob=0.5)]
    results = dict(img=np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    drawn = []
    for pipeline in (Compose(steps), PipelineGuard(steps)):
        np.random.seed(3)
        drawn.append([pipeline(dict(results))['img'].tolist() for _ in range(20)])
    assert drawn[0] == drawn[1]
    assert len({str(image) for image in drawn[0]}) > 1
    assert PipelineGuard([lambda results: None])({}) is None
    assert not said
    with pytest.raises(TypeError, match="skip='no' must be True or False"):
        PipelineGuard([], skip='no')
    with pytest.raises(ValueError, match='num_classes=0 must be'):
        PipelineGuard([], num_classes=0)


def config_pipeline(path, split='train'):
    """The pipeline of a config of ours, as tools/train.py guards it."""
    config = Config.fromfile(ROOT / 'configs' / path)
    import_scope(config)
    guard_pipelines(config)
    guard_pipelines(config)  # of a dumped config, again
    init_default_scope(config.default_scope)
    (step,) = config[f'{split}_dataloader'].dataset.pipeline
    assert step.type == 'PipelineGuard' and step.skip is (split == 'train')
    return Compose([step])


DETECTION = 'detection/mask-rcnn_lit-ti_fpn_1x_coco.py'
SEGMENTATION = 'segmentation/lit-s_fpn_fpnhead_8xb2-80k_ade20k-512x512.py'


def samples(config, pipeline, names):
    """{name: what the pipeline makes of this image}."""
    part = dict(config.train_dataloader.dataset, pipeline=[])
    with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
        dataset = registry.build(dict(part, filter_cfg=None))
    entries = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert len(entries) == len(names)
    return {Path(e['img_path']).stem: pipeline(e) for e in entries}


@pytest.mark.parametrize('split', ['train', 'val'])
def test_files_in_detection(tmp_path, said, split):
    pytest.importorskip('mmdet', reason='the pipelines are those of mmdet')
    # What is resized to nothing is broken, too.
    sizes = {'one-pixel': (1, 1), 'strip': (3, 2000), 'line': (1, 5000)}
    broken = {*BROKEN, 'line'} if split == 'train' else set()
    files = {**ODD, **bad_files.of_sizes(sizes), **BROKEN}
    if split == 'val':
        files = {name: files[name] for name in (*ODD, 'one-pixel')}
    usual = (bad_files.WIDTH, bad_files.HEIGHT)
    sides = {name: sizes.get(name, usual) for name in files}
    bad_files.write_files(tmp_path, files, sides)
    pipeline = config_pipeline(DETECTION, split)
    found = samples(coco_config(tmp_path), pipeline, files)
    assert {name for name, sample in found.items() if sample is None} == broken
    for name in ODD:
        assert found[name]['inputs'].shape == (3, 800, 1067), name
        assert found[name]['inputs'].dtype == torch.uint8
        assert len(found[name]['data_samples'].gt_instances) == 1
    assert found['one-pixel']['inputs'].shape == (3, 800, 800)
    for name in broken:
        assert any(f'images/{name}.jpg fails' in line for line in said), name
    if split == 'train':
        assert found['strip']['inputs'].shape == (3, 1333, 2)


def test_files_in_segmentation(tmp_path, said):
    pytest.importorskip('mmseg', reason='the pipelines are those of mmseg')
    files = {**ODD, **BROKEN, **dict.fromkeys(('small-mask', 'ids', 'torn'), encoded())}
    bad_files.write_pairs(tmp_path, files)
    # So small that no random crop hides it.
    write_mask(tmp_path / 'masks' / 'small-mask.png', (1, 2), width=2)
    write_mask(tmp_path / 'masks' / 'ids.png', (1, 2, 200))
    bad_files.write(tmp_path / 'masks' / 'torn.png', encoded('L', 'PNG')[:900])
    pipeline = config_pipeline(SEGMENTATION)
    found = samples(masks_config(tmp_path), pipeline, files)
    lost = {name for name, sample in found.items() if sample is None}
    assert lost == {*BROKEN, 'small-mask', 'ids', 'torn'}
    for name in ODD:
        image, sample = found[name]['inputs'], found[name]['data_samples']
        assert image.shape[1:] == sample.gt_sem_seg.shape, name
    for name in lost:
        assert any(f'images/{name}.jpg with the mask' in line for line in said), name
    text = '\n'.join(said)
    assert 'small-mask.png fails: ValueError: the mask is of another size' in text
    assert 'ids.png fails: ValueError: the mask has ids beyond the 150 classes' in text
