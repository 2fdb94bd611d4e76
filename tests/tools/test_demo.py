"""The main job: its bookkeeping, which tools it calls when, and its pictures."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmlit.errors import UserError
from mmlit_tools.demo import command as demo
from mmlit_tools.demo import detection, pictures, records, segmentation
from support.running_tools import stopped

BOX_AP, MASK_AP = demo.DETECTION.keys.values()


def test_history_joins_a_stopped_and_a_resumed_run(tmp_path):
    def write(name, *lines):
        path = tmp_path / name / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(lines))

    def loss(step, epoch, loss):
        return json.dumps({'loss': loss, 'epoch': epoch, 'iter': step, 'step': step})

    aps = json.dumps({BOX_AP: 0.1, MASK_AP: 0.2, 'step': 1})
    learnt = [loss(10, 1, 9.0), loss(20, 1, 9.0), aps, loss(35, 2, 99.0)]
    write('20200101_000000', *learnt, '{"loss": 1.0, "ep')
    resumed = [loss(35, 2, 5.0), loss(45, 2, 5.0), '{"time": 1.0, "step": 2}']
    write('20200101_010000', *resumed)
    history = records.read_history(tmp_path, demo.DETECTION.figures)
    # 45 iterations in under two epochs: an epoch has 23, as far as the log can tell.
    assert history.loss == [(10 / 23, 9), (20 / 23, 9), (35 / 23, 5), (45 / 23, 5)]
    expected = {'box AP': [(1, 0.1), (2, 0.0)], 'mask AP': [(1, 0.2), (2, 0.0)]}
    assert history.figures == expected


def test_metrics_are_those_of_the_latest_test_run(tmp_path):
    with pytest.raises(UserError, match='holds no metrics'):
        records.read_metrics(tmp_path)
    for name, value in (('20200101_000000', 0.1), ('20200101_000001', 0.3)):
        (tmp_path / name).mkdir()
        metrics = {BOX_AP: value}
        (tmp_path / name / f'{name}.json').write_text(json.dumps(metrics))
        (tmp_path / name / 'zzz.json').write_text('{}')
    assert records.read_metrics(tmp_path) == {BOX_AP: 0.3}


def leave_checkpoint(work_dir, epoch, config='same'):
    records.note_config(work_dir, config)
    path = work_dir / f'epoch_{epoch}.pth'
    path.touch()
    (work_dir / 'last_checkpoint').write_text(f'/where/it/was/once/{path.name}')
    return path


def test_plan_starts_resumes_and_ends(tmp_path):
    assert records.plan_training(tmp_path / 'none', 'same', 3) == ('start', None)
    path = leave_checkpoint(tmp_path, 2)
    for config, epochs, plan in (
        ('same', 3, ('resume', path)),
        ('same', 2, ('finished', path)),
        ('same', 1, ('changed', None)),
        ('other', 3, ('changed', None)),
    ):
        assert records.plan_training(tmp_path, config, epochs) == plan
    # A later file that is not noted was cut short; a noted one may have been removed.
    (tmp_path / 'epoch_3.pth').touch()
    assert records.plan_training(tmp_path, 'same', 3) == ('resume', path)
    path.unlink()
    assert records.plan_training(tmp_path, 'same', 3) == ('start', None)


def test_only_the_demo_s_own_folder_is_emptied(tmp_path):
    (tmp_path / 'thesis.txt').touch()
    with pytest.raises(UserError, match='the demo did not write'):
        records.remove_run(tmp_path)
    records.note_config(tmp_path, 'any')
    records.remove_run(tmp_path)
    assert not tmp_path.exists()
    records.remove_run(tmp_path)


def test_device_is_a_gpu_only_with_ops_for_it(monkeypatch):
    ops = pytest.importorskip('mmcv.ops')
    monkeypatch.setattr(demo.torch.cuda, 'get_device_name', lambda _: 'Fast One')
    for gpu, version, words, environment in (
        (False, '12.6', 'the CPU, with', {}),
        (True, 'not available', 'built without CUDA', {'CUDA_VISIBLE_DEVICES': ''}),
        (True, '12.6', 'the GPU Fast One', {}),
    ):
        monkeypatch.setattr(ops, 'get_compiling_cuda_version', lambda v=version: v)
        monkeypatch.setattr(demo.torch.cuda, 'is_available', lambda there=gpu: there)
        sentence, given = demo.choose_device()
        assert words in sentence and given == environment


def write_results(shapes, path):
    """Results in the form of `test.py --out`: the truth, each object found twice, the
    second time with a low score."""
    coco = COCO(str(shapes / 'annotations' / 'val.json'))
    results = []
    for image_id, image in coco.imgs.items():
        items = coco.imgToAnns[image_id]
        x, y, width, height = np.array([item['bbox'] for item in items]).T
        scores = np.linspace(0.9, 0.6, len(items))
        masks = [np.asfortranarray(coco.annToMask(item)) for item in items * 2]
        found = {
            'bboxes': np.tile(np.stack([x, y, x + width, y + height], 1), (2, 1)),
            'labels': np.tile([item['category_id'] - 1 for item in items], 2),
            'scores': np.concatenate([scores, scores - 0.55]),
            'masks': [coco_mask.encode(mask) for mask in masks],
        }
        file = str(shapes / 'val' / image['file_name'])
        results.append(dict(img_id=image_id, img_path=file, pred_instances=found))
    path.write_bytes(pickle.dumps(results))


def write_label_maps(shapes, folder):
    """Label maps in the form of `test.py --out`: the truth."""
    shutil.copytree(shapes / 'masks' / 'val', folder, dirs_exist_ok=True)


@pytest.fixture
def calls(shapes, tmp_path, monkeypatch):
    """Stands in for the two tools: leaves the files that they leave, learns nothing."""
    made = []

    def run(command, environment):
        command = [str(part) for part in command]
        made.append(command)
        work_dir = Path(command[command.index('--work-dir') + 1])
        if command[0] == 'tools/train.py':
            epochs = 1 if 'train_cfg.max_epochs=1' in command else 4
            path = work_dir / f'epoch_{epochs}.pth'
            path.touch()
            (work_dir / 'last_checkpoint').write_text(str(path))
        else:
            assert Path(command[2]).is_file()
            out = Path(command[command.index('--out') + 1])
            write = write_results if out.suffix == '.pkl' else write_label_maps
            write(shapes, out)
            metrics = {BOX_AP: 0.5, MASK_AP: 0.45, 'coco/ring_precision': 0.4}
            (work_dir / 'now').mkdir(parents=True)
            (work_dir / 'now' / 'now.json').write_text(
                json.dumps({**metrics, 'mIoU': 65.0})
            )

    monkeypatch.setattr(demo, '_run_tool', run)
    monkeypatch.setattr(demo, 'choose_device', lambda: ('a device', {}))
    monkeypatch.setattr(demo.signal, 'signal', lambda *_: None)
    return made


@pytest.fixture
def arguments(shapes, tmp_path):
    config = tmp_path / 'config.py'
    parameters = json.loads((shapes / 'shapes.json').read_text())
    parameters['out'] = str(shapes)
    del parameters['drawing_version']
    config.write_text(
        f'shapes = {parameters}\ntrain_cfg = dict(max_epochs=4, val_interval=2)\n'
        "default_scope = 'mmdet'\n"
    )
    return [str(config), '--out', str(tmp_path / 'work')]


@pytest.fixture
def spoil(arguments):
    """Change a text in the config."""

    def change(old, new):
        config = Path(arguments[0])
        config.write_text(config.read_text().replace(old, new))

    return change


def test_demo_trains_once_evaluates_and_draws(calls, arguments, tmp_path, capsys):
    demo.main(arguments)
    work = tmp_path / 'work'
    assert tools(calls) == ['train', 'test']
    assert '--check-data' in calls[0]
    assert not {'--resume', '--cfg-options'} & set(calls[0])
    assert calls[1][2] == str(work / 'epoch_4.pth')
    said = capsys.readouterr().out
    assert demo.DETECTION.duration != demo.SEGMENTATION.duration
    for expected in (
        *(f'Training: 4 epochs ({demo.DETECTION.duration})', 'a device'),
        *('predictions.png', 'curves.png', 'box AP 0.500', 'AP of ring: 0.400'),
    ):
        assert expected in said
    for name in ('predictions.png', 'curves.png'):
        assert cv2.imread(str(work / name)).std() > 10


def tools(calls):
    return [Path(command[0]).stem for command in calls]


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the pictures, which take most of the time."""
    monkeypatch.setattr(demo, 'draw_comparisons', lambda *_: None)
    monkeypatch.setattr(demo, 'draw_history', lambda *_: None)


@pytest.mark.usefixtures('undrawn')
def test_demo_of_segmentation(calls, arguments, spoil, tmp_path, capsys):
    spoil('mmdet', 'mmseg')
    demo.main(arguments)
    assert tools(calls) == ['train', 'test']
    assert '--check-data' in calls[0]
    assert calls[1][-2:] == ['--out', str(tmp_path / 'work' / 'label_maps')]
    said = capsys.readouterr().out
    assert 'mIoU 0.650: the goal of 0.60 is reached' in said
    assert f'Training: 4 epochs ({demo.SEGMENTATION.duration})' in said
    said = stopped(demo.main, *arguments, '--goal', '0.66')
    assert said == 'demo.py: mIoU 0.650: below the goal of 0.66'


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ('mmdet', 'mmpose', 'config.py is no config for the demo'),
        ('shapes =', 'sets =', 'config.py is no config for the demo'),
        ("'seed': 1", "'seed': 3", 'seed=1, but wanted is seed=3'),
    ],
)
def test_configs_that_are_refused(calls, arguments, spoil, old, new, words):
    spoil(old, new)
    assert words in stopped(demo.main, *arguments)
    assert not calls


@pytest.mark.usefixtures('undrawn')
def test_a_finished_demo_is_evaluated_again_and_fresh_trains(
    calls, arguments, tmp_path
):
    for _ in range(2):
        demo.main(arguments)
    assert tools(calls[2:]) == ['test']
    (tmp_path / 'work' / 'mark').touch()
    demo.main([*arguments, '--fresh'])
    assert not (tmp_path / 'work' / 'mark').exists()
    assert tools(calls[3:]) == ['train', 'test']


@pytest.mark.usefixtures('undrawn')
def test_demo_resumes_where_it_stopped(calls, arguments, tmp_path):
    work = tmp_path / 'work'
    wanted = records.fingerprint(Config.fromfile(arguments[0]), 4, demo.ASSETS)
    checkpoint = leave_checkpoint(work, 2, wanted)
    demo.main(arguments)
    assert calls[0][calls[0].index('--resume') + 1] == str(checkpoint)

    shutil.rmtree(work)
    leave_checkpoint(work, 2, 'another config')
    demo.main(arguments)
    assert '--resume' not in calls[2]
    assert not (work / 'epoch_2.pth').exists()


@pytest.mark.usefixtures('undrawn')
def test_another_number_of_epochs_and_another_goal(calls, arguments, capsys):
    said = stopped(demo.main, *arguments, '--epochs', '1', '--goal', '0.48')
    assert calls[0][-2:] == ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    assert calls[1][2].endswith('epoch_1.pth')
    assert 'mask AP 0.450: below the goal of 0.48' in said
    for wrong, words in (('--epochs=0', 'at least 1, got 0'), ('--goal=40', 'got 40')):
        with pytest.raises(SystemExit):
            demo.main([wrong])
        assert words in capsys.readouterr().err


def test_a_failing_tool_ends_the_demo_with_its_name(arguments, monkeypatch):
    monkeypatch.setattr(demo, 'choose_device', lambda: ('a device', {}))
    monkeypatch.setattr(demo.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(demo.sys, 'executable', shutil.which('false'))
    assert 'tools/train.py ended with status 1' in stopped(demo.main, *arguments)


def test_truth_and_certain_predictions_are_read(shapes, tmp_path):
    write_results(shapes, tmp_path / 'results.pkl')
    read = detection.read(shapes, tmp_path / 'results.pkl', 3)
    assert len(read) == 3
    for comparison, number in zip(read, (1, 10, 20)):
        image = cv2.imread(str(shapes / 'val' / f'{number:06d}.jpg'))
        assert (comparison.image == image[..., ::-1]).all()
        truth, found = comparison.truth, comparison.found
        assert len(truth.boxes) > 0
        for name in ('boxes', 'labels', 'masks'):
            assert (getattr(truth, name) == getattr(found, name)).all()
        assert truth.scores is None
        assert (found.scores >= 0.5).all()


def test_label_maps_are_read(shapes, tmp_path):
    write_label_maps(shapes, tmp_path / 'maps')
    wrong = tmp_path / 'maps' / '000010.png'
    cv2.imwrite(str(wrong), np.full((96, 96), 2, np.uint8))
    read = segmentation.read(shapes, tmp_path / 'maps', 3)
    assert len(read) == 3
    for comparison, number in zip(read, (1, 10, 20)):
        image = cv2.imread(str(shapes / 'val' / f'{number:06d}.jpg'))
        assert (comparison.image == image[..., ::-1]).all()
        truth, found = comparison.truth.labels, comparison.found.labels
        assert set(np.unique(truth)) <= {0, 1, 2, 3} and truth.any()
        assert (found == (2 if number == 10 else truth)).all()
    wrong.unlink()
    with pytest.raises(OSError, match='could not read the image .*000010.png'):
        segmentation.read(shapes, tmp_path / 'maps', 3)


BLACK = np.zeros((80, 80, 3), np.uint8)


def near(image, colour, tolerance=12):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (5, 3, 1)])
    return (np.abs(image.astype(int) - wanted).max(axis=2) <= tolerance).sum()


def test_picture_shows_truth_left_and_prediction_right(tmp_path):
    mask = np.zeros((1, 80, 80), bool)
    mask[0, 20:60, 30:70] = True
    box = np.array([[30, 20, 70, 60]])
    nothing = detection.Instances(np.zeros((0, 4)), np.zeros(0, int), mask[:0])
    truth = detection.Instances(box, np.array([1]), mask)
    found = detection.Instances(box, np.array([2]), mask, np.array([0.75]))
    pairs = [pictures.Comparison(BLACK, truth, found)] * 2
    pairs.append(pictures.Comparison(BLACK, nothing, nothing))
    path = tmp_path / 'new' / 'predictions.png'
    pictures.draw_comparisons(pairs, 'a title', path)
    drawn = cv2.imread(str(path))
    assert drawn.shape == (round((2 * 3.25 + 0.9) * 110), 13 * 110, 3)
    upper, lower = np.array_split(drawn, 2)
    square, triangle = pictures.COLOURS[1:3]
    for index, column in enumerate(np.array_split(upper, 4, axis=1)):
        left = index % 2 == 0
        assert (near(column, square) > 300) == left
        assert (near(column, triangle) > 300) == (not left)
    assert near(lower, square) == near(lower, triangle) == 0
