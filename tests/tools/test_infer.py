"""Predictions on images, folders and videos.

What the command writes is compared with what mmdet's and mmseg's own functions find.
"""

import copy
import json
import re
import signal
import time

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from pycocotools import mask as coco_mask

from mmlit.errors import UserError
from mmlit_tools.configs import import_scope
from mmlit_tools.infer import command
from mmlit_tools.infer.results import Results
from mmlit_tools.infer.sources import find_sources
from mmlit_tools.models import ModelError
from support.config_helpers import CONFIGS, build
from support.micro_models import FPN_SHAPES, MASK_RCNN_SHAPES, write_micro
from support.running_tools import start, stopped

INFER = CONFIGS.parent / 'tools' / 'infer.py'
# In the checkpoint of the detector, where they go before those of its config.
NAMES = ('apple', 'pear', 'plum')
FRAMES = 400
# A detector of random weights finds as much as it may, and covers the image with it.
FEW = {'model.test_cfg.rcnn.max_per_img': 4}


def picture(seed, width=96, height=64):
    """An image of coloured blocks, BGR."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


def write_video(path, frames):
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (96, 64))
    for seed in range(frames):
        film.write(picture(seed))
    film.release()


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    return [frame for _, frame in iter(capture.read, (False, None))]


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """Images, two of one name; broken ones; a text."""
    root = tmp_path_factory.mktemp('inputs')
    for number, name in enumerate(['a/1.jpg', 'b/1.jpg', 'b/two.PNG', '.hidden/3.jpg']):
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), picture(number, 120 - 12 * number, 80))
    (root / 'empty.png').touch()
    (root / 'b' / 'broken.jpg').write_bytes((root / 'a/1.jpg').read_bytes()[:300])
    (root / 'notes.txt').write_text('no image')
    # Resized to nothing, which OpenCV has an error of its own for.
    cv2.imwrite(str(root / 'narrow.png'), np.zeros((1, 3000, 3), np.uint8))
    return root


def save(folder, base, classes, **meta):
    """Write the config and the checkpoint of a small model; return their paths."""
    config = write_micro(folder / 'config.py', *base, classes=classes)
    torch.manual_seed(0)
    state = build(Config.fromfile(config)).state_dict()
    torch.save({'state_dict': state, 'meta': meta}, folder / 'weights.pth')
    return config, folder / 'weights.pth'


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    meta = dict(classes=NAMES)
    folder = tmp_path_factory.mktemp('detector')
    return save(folder, MASK_RCNN_SHAPES, 3, dataset_meta=meta)


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    """No names are in the checkpoint: those of the config."""
    return save(tmp_path_factory.mktemp('segmentor'), FPN_SHAPES, 4)


def options(model, out):
    config, weights = map(str, model)
    given = ['--config', config, '--checkpoint', weights, '--out-dir', str(out)]
    return [*given, '--device', 'cpu']


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def infer(capfd):
    """Run the command in this process: exit status, output and error output."""

    def infer(model, out, *arguments):
        with pytest.raises(SystemExit) as end:
            command.main([*options(model, out), *map(str, arguments)])
        return end.value.code, *capfd.readouterr()

    return infer


def check_objects(objects, wanted):
    assert len(objects) == len(wanted) > 0
    columns = (wanted.bboxes, wanted.scores, wanted.labels, wanted.masks)
    for entry, box, score, label, mask in zip(objects, *columns):
        assert (entry['label'], entry['class']) == (label, NAMES[label])
        assert entry['score'] == pytest.approx(score.item(), abs=1e-5)
        np.testing.assert_allclose(entry['box'], box, atol=1e-2)
        assert np.mean(coco_mask.decode(entry['mask']) != mask.numpy()) < 1e-3


def few(score):
    settings = [f'{key}={value}' for key, value in FEW.items()]
    return '--score-thr', score, '--cfg-options', *settings


@pytest.fixture
def find(detector):
    """Find objects as mmdet's own function does."""
    from mmdet.apis import inference_detector, init_detector

    config = Config.fromfile(detector[0])
    config.merge_from_dict(FEW)
    model = init_detector(config, str(detector[1]), device='cpu')
    return lambda image: inference_detector(model, image).pred_instances


def test_detection(tmp_path, inputs, detector, infer, find):
    """A folder, then some of its files."""
    out = tmp_path / 'out'
    status, output, errors = infer(detector, out, inputs, *few(0))
    assert status == 1 and '3 of 6 done' in output
    assert 'empty.png: is empty' in errors
    assert 'b/broken.jpg: is not an image, or a broken one' in errors
    assert re.search(r'narrow.png: could not be done: OpenCV[^\n]*\n', errors)
    assert '3 of 6 could not be done, or not wholly: ' in errors
    names = ('a/1.jpg', 'b/1.jpg', 'b/two.PNG')
    records = {name: out / 'predictions' / f'{name}.json' for name in names}
    pictures = {name: out / 'pictures' / name for name in names}
    written = {*records.values(), *pictures.values()}
    assert {out / name for name in files_in(out)} == written
    for name in names:
        record = json.loads(records[name].read_text())
        assert record['image'] == (inputs / name).as_posix()
        image = cv2.imread(str(inputs / name))
        assert (record['height'], record['width']) == image.shape[:2]
        check_objects(record['objects'], find(str(inputs / name)))
        drawn = cv2.imread(str(pictures[name]))
        assert drawn.shape == image.shape
        # Its colours are those of the image, and something was drawn over them.
        same, swapped = (
            np.abs(drawn.astype(int) - i).mean() for i in (image, image[..., ::-1])
        )
        assert 1 < same < swapped

    before = records['b/1.jpg'].read_text()
    objects = json.loads(records['a/1.jpg'].read_text())['objects']
    score = sorted(entry['score'] for entry in objects)[1]
    # Named after their places in the inputs' folder, as before; the others are as were.
    given = (inputs / 'a/1.jpg', inputs / 'b/two.PNG', inputs / 'a/1.jpg')
    status, output, _ = infer(detector, out, *given, *few(score))
    assert status == 0 and '2 of 2 done' in output
    again = json.loads(records['a/1.jpg'].read_text())['objects']
    assert again == [entry for entry in objects if entry['score'] >= score] != objects
    assert records['b/1.jpg'].read_text() == before


def check_classes(record, out, wanted):
    wanted = wanted.pred_sem_seg.data[0].numpy()
    found = cv2.imread(str(out / record['label_map']), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, wanted)
    names = ('background', 'circle', 'triangle', 'ring')
    counts = list(zip(*np.unique(wanted, return_counts=True)))
    assert len(counts) > 1
    classes = [(c['label'], c['class'], c['pixels']) for c in record['classes']]
    assert classes == [(label, names[label], count) for label, count in counts]
    assert sum(c['share'] for c in record['classes']) == pytest.approx(1)


def test_segmentation(tmp_path, inputs, segmentor, infer):
    apis = pytest.importorskip('mmseg.apis', reason='the config is for mmseg')
    out = tmp_path / 'out'
    status, _, _ = infer(segmentor, out, inputs / 'a')
    assert status == 0
    model = apis.init_model(*map(str, segmentor), device='cpu')
    record = json.loads((out / 'predictions/1.jpg.json').read_text())
    check_classes(record, out, apis.inference_model(model, str(inputs / 'a/1.jpg')))
    assert cv2.imread(str(out / 'pictures/1.jpg')).shape == (80, 120, 3)


@pytest.mark.slow
def test_a_video_that_is_interrupted(tmp_path, inputs, segmentor):
    apis = pytest.importorskip('mmseg.apis', reason='the config is for mmseg')
    film, out = tmp_path / 'long.avi', tmp_path / 'out'
    write_video(film, FRAMES)
    given = (inputs / 'a/1.jpg', film, *options(segmentor, out))
    process = start(INFER, *given, cwd=tmp_path)
    deadline = time.monotonic() + 600
    while not list(out.glob('label_maps/**/long.avi/000002.png')):
        assert process.poll() is None, process.communicate()[0][-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 130, output[-5000:]
    assert '1 of 2 done' in output and 'interrupted' in output
    (lines,) = out.glob('predictions/**/long.avi.jsonl')
    lines = lines.read_text().splitlines()
    assert 3 <= len(lines) < FRAMES
    (drawn,) = out.glob('pictures/**/long.avi.mp4')
    assert len(frames_of(drawn)) == len(lines)
    assert not [name for name in files_in(out) if '.part' in name]
    model = apis.init_model(*map(str, segmentor), device='cpu')
    wanted = apis.inference_model(model, frames_of(film)[0])
    check_classes(json.loads(lines[0]), out, wanted)


def test_weights_of_another_model(tmp_path, inputs, detector):
    from mmlit_tools.infer.detection import Detector

    config = Config.fromfile(detector[0])
    import_scope(config)
    other = copy.deepcopy(config)
    other.model.roi_head.bbox_head.num_classes = 4
    with pytest.raises(ModelError, match=r'size mismatch for roi_head\.bbox_head'):
        Detector(other, str(detector[1]), 'cpu', 0.3)
    # Of a backbone alone, as a classifier is.
    path = tmp_path / 'part.pth'
    state = torch.load(detector[1], weights_only=True)['state_dict']
    part = {k: v for k, v in state.items() if k.startswith('backbone.')}
    torch.save({'state_dict': part}, path)
    with pytest.raises(ModelError, match=r'lacks the weights .*neck\.lateral_convs'):
        Detector(config, str(path), 'cpu', 0.3)
    given = options((detector[0], path), tmp_path / 'out')
    said = stopped(command.main, inputs / 'a/1.jpg', *given)
    assert said.startswith(f'infer.py: --config {detector[0]}, --checkpoint ')
    # Nameless weights, and a config that names too many classes.
    torch.save({'state_dict': state}, path)
    config.test_dataloader.dataset.pop('metainfo')
    with pytest.raises(ModelError, match='has 3 classes, and there are 80 names'):
        Detector(config, str(path), 'cpu', 0.3)


def copy_image(inputs, folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((inputs / 'a/1.jpg').read_bytes())


@pytest.mark.parametrize(
    ('given', 'out', 'words'),
    [
        (['missing.jpg'], 'out', 'missing.jpg does not exist'),
        (['a', 'empty'], 'out', 'there is no image in'),
        (['a'], 't', 'holds something other than results'),
        (['a'], 'a', 'lies in --out-dir'),
        (['out/pictures/1.jpg'], 'out', 'lies in --out-dir'),
        (['t'], 'out', '2 of the inputs would be drawn to'),
    ],
)
def test_inputs_that_cannot_be(tmp_path, inputs, given, out, words):
    names = ('a/1.jpg', 'out/pictures/1.jpg', 't/1.tif', 't/1.tif.png')
    copy_image(inputs, tmp_path, *names)
    for folder in ('empty', 'out/predictions'):
        (tmp_path / folder).mkdir()
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=words):
        sources = find_sources([tmp_path / name for name in given], tmp_path / out)
        Results(tmp_path / out, sources)
    assert files_in(tmp_path) == before


def test_results_in_the_folder_of_the_images(tmp_path, inputs):
    """Of a second run they are no inputs."""
    copy_image(inputs, tmp_path, '1.jpg', 'out/pictures/1.jpg')
    (source,) = find_sources([tmp_path], tmp_path / 'out')
    assert (source.path, source.name) == (tmp_path / '1.jpg', '1.jpg')
