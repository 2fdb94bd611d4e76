"""OffsetVisualizationHook: what it logs, and that training does not notice it."""

import importlib.util
import json
import random
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, TRANSFORMS, VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization.vis_backend import BaseVisBackend

from mmlit import OffsetVisualizationHook
from mmlit.visualization.offsets import offset_statistics
from mmlit.visualization.probe import probe
from support import looking_helpers, running_tools
from support.looking_helpers import ARCH, open_image, small_lit, write_noise
from support.running_tools import run

STAGES = (1, 2, 3)


@DATASETS.register_module()
class NoiseDataset(BaseDataset):
    """Four pictures of noise."""

    def load_data_list(self):
        root = Path(self.data_root)
        paths = [write_noise(root / f'{i}.png', seed=i) for i in range(4)]
        return [dict(img_path=str(path)) for path in paths]


@TRANSFORMS.register_module()
class PackNoise:
    """Draws random numbers too, as augmentation does."""

    def __call__(self, results):
        image = torch.from_numpy(results['img'].transpose(2, 0, 1).copy())
        return dict(inputs=image, shift=np.random.rand())


@VISBACKENDS.register_module()
class RecordingBackend(BaseVisBackend):
    """Keeps all that it is given."""

    kept = []

    def __init__(self, save_dir=None):
        super().__init__(save_dir)

    _init_env = experiment = add_config = lambda self, *_, **__: None

    def add_image(self, name, image, step=0, **_):
        self.kept.append((name, image, step))

    def add_scalars(self, scalars, step=0, file_path=None, **_):
        self.kept += [(name, value, step) for name, value in scalars.items()]


class NoiseModel(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.data_preprocessor = looking_helpers.preprocessor()
        self.backbone = backbone

    def forward(self, inputs, shift, data_samples=None, mode='loss'):
        levels = self.backbone(inputs + shift.view(-1, 1, 1, 1).float())
        if mode == 'predict':
            return list(levels)
        return dict(loss=sum(level.square().mean() for level in levels))


LOCAL = (dict(type='LocalVisBackend'), dict(type='RecordingBackend'))


def runner(
    folder, *hooks, backbone=None, validated=True, by_epoch=True, backends=LOCAL
):
    steps = looking_helpers.PIPELINE
    pipeline = [step for step in steps if step['type'] != 'LoadAnnotations']
    pipeline.append(dict(type='PackNoise'))
    noise = dict(type='NoiseDataset', data_root=str(folder / 'data'), pipeline=pipeline)
    sampler = dict(type='DefaultSampler', shuffle=True)
    data = dict(batch_size=2, dataset=noise, sampler=sampler)
    data['collate_fn'] = dict(type='default_collate')
    validation = {}
    if validated:
        # As tools/train.py wraps the pipelines of a config.
        guarded = [dict(type='PipelineGuard', transforms=pipeline)]
        loader = dict(data, dataset=dict(noise, pipeline=guarded))
        validation = dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=[])
    length = dict(max_epochs=4, val_interval=9) if by_epoch else dict(max_iters=4)
    return Runner(
        model=NoiseModel(small_lit() if backbone is None else backbone),
        work_dir=str(folder / 'work'),
        train_dataloader=data,
        train_cfg=dict(by_epoch=by_epoch, **length),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        custom_hooks=list(hooks),
        default_hooks=dict(checkpoint=None),
        # mmengine writes the folder into it.
        visualizer=dict(type='Visualizer', vis_backends=deepcopy(list(backends))),
        randomness=dict(seed=3),
        log_level='ERROR',
        experiment_name=f'{folder.parent.name}-{folder.name}',
        **validation,
    )


def trained(folder, *hooks, **options):
    RecordingBackend.kept.clear()
    training = runner(folder, *hooks, **options)
    training.train()
    return training, (torch.rand(3).tolist(), np.random.rand(), random.random())


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """The same training without the hook, and with it and all backends."""
    folder, backends = tmp_path_factory.mktemp('training'), [*LOCAL]
    if importlib.util.find_spec('tensorboard'):
        backends.append(dict(type='TensorboardVisBackend'))
    plain = trained(folder / 'plain')
    hook = dict(type='OffsetVisualizationHook', interval=2)
    shown = trained(folder / 'shown', hook, backends=backends)
    kept = [one for one in RecordingBackend.kept if one[0].startswith('offsets')]
    return plain, shown, kept


def scalars(folder):
    lines = (folder / 'scalars.json').read_text().splitlines()
    return [json.loads(line) for line in lines if 'offsets/' in line]


def test_training_goes_on_as_if_the_hook_were_not_there(pair):
    (plain, plain_draws), (shown, shown_draws), _ = pair
    weights = plain.model.state_dict(), shown.model.state_dict()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any('running_mean' in key for key in weights[0])
    assert plain_draws == shown_draws
    plain, modules = (list(one.model.modules()) for one in (plain, shown))
    assert [m.training for m in modules] == [m.training for m in plain]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_every_second_epoch_is_logged(pair):
    _, (training, _), kept = pair
    assert len(kept) == 2 * len(STAGES) * 4
    images = {(name, step): v for name, v, step in kept if isinstance(v, np.ndarray)}
    assert set(images) == {(f'offsets_stage_{k}', e) for k in STAGES for e in (2, 4)}
    for k in STAGES:
        first, last = (images[f'offsets_stage_{k}', epoch] for epoch in (2, 4))
        assert first.dtype == np.uint8 and first.shape == last.shape
        assert (first != last).any()
    (folder,) = Path(training.work_dir).glob('*/vis_data')
    for (name, step), image in images.items():
        local = cv2.imread(str(folder / 'vis_image' / f'{name}_{step}.png'))
        assert (local[..., ::-1] == image).all()
    # The figures are those of the first validation image, in the network as it was.
    figures = {name: value for name, value, step in kept if step == 4}
    first = open_image(Path(training.work_dir).parent / 'data' / '0.png')
    lit = training.model.backbone
    for merging in probe(lit, first.inputs, attention=False).token_mergings:
        for key, value in offset_statistics(merging, first).items():
            assert figures.pop(f'offsets/stage_{merging.stage}/{key}') == value
            assert value > 0
    assert all(isinstance(value, np.ndarray) for value in figures.values())
    assert [line['step'] for line in scalars(folder)] == [2, 4]


def test_tensorboard_gets_them(pair):
    accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator',
        reason='no tensorboard (`make setup` installs it)',
    )
    _, (training, _), kept = pair
    (folder,) = Path(training.work_dir).glob('*/vis_data')
    events = accumulator.EventAccumulator(str(folder)).Reload()
    for name, value, step in kept:
        if isinstance(value, np.ndarray):
            images = {image.step: image for image in events.Images(name)}
            encoded = np.frombuffer(images[step].encoded_image_string, 'u1')
            assert (cv2.imdecode(encoded, 1)[..., ::-1] == value).all()
        else:
            found = {one.step: one.value for one in events.Scalars(name)}
            assert found[step] == pytest.approx(value)


def test_iterations_can_be_counted(tmp_path):
    picture = write_noise(tmp_path / 'mine.png', seed=9)
    hook = OffsetVisualizationHook(interval=3, by_epoch=False, image=str(picture))
    trained(tmp_path, hook, by_epoch=False)
    steps = {(name, step) for name, _, step in RecordingBackend.kept}
    steps = {(name, step) for name, step in steps if 'offsets_' in name}
    assert steps == {(f'offsets_stage_{k}', 3) for k in STAGES}
    assert (hook._image.picture == open_image(picture).picture).all()


@pytest.mark.slow
def test_a_detector_trained_by_the_real_tool(tmp_path):
    pytest.importorskip('mmdet', reason='trains a detector of mmdet')
    neck = dict(in_channels=list(ARCH['embed_dims']))
    config = running_tools.write_config(
        tmp_path,
        shapes=dict(train=2, val=1, size=64, seed=0),
        model=dict(backbone=dict(arch=dict(ARCH, _delete_=True)), neck=neck),
        train_cfg=dict(max_epochs=1, val_interval=5),
        custom_hooks=[dict(type='OffsetVisualizationHook')],
    )
    run(running_tools.TRAIN, config, '--work-dir', 'work', cwd=tmp_path)
    folder = next((tmp_path / 'work').glob('*/vis_data'))
    pictures = {path.name for path in (folder / 'vis_image').iterdir()}
    assert pictures == {f'offsets_stage_{k}_1.png' for k in STAGES}
    (figures,) = scalars(folder)
    assert figures.pop('step') == 1
    assert {name.split('/')[1] for name in figures} == {f'stage_{k}' for k in STAGES}
    assert all(figures[f'offsets/stage_{k}/max_displacement'] > 0 for k in STAGES)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(interval=0), ValueError, 'interval=0 must be at least 1'),
        (dict(by_epoch='no'), TypeError, "by_epoch='no' must be True or False"),
        (dict(image=3), TypeError, 'image=3 must be the path'),
        (dict(image='no.png'), ValueError, "image='no.png' is not an existing file"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        OffsetVisualizationHook(**arguments)


class FullyShardedDataParallel(torch.nn.Sequential):
    """As FSDP's are called, around the blocks."""


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(backbone=torch.nn.Linear(1, 1)), 'NoiseModel must contain exactly one'),
        (dict(backbone=FullyShardedDataParallel(small_lit())), 'FSDP; draw the check'),
        (dict(backbone=small_lit(out_indices=(0,))), 'has no token merging'),
        (dict(by_epoch=False), 'set by_epoch=False'),
        (dict(validated=False), 'no validation or test dataset'),
    ],
)
def test_refused_before_the_first_iteration(tmp_path, options, message):
    training = runner(tmp_path, OffsetVisualizationHook(), **options)
    with pytest.raises(ValueError, match=message):
        training.train()
    assert training.iter == 0
