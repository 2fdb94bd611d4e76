"""Predictions on images, folders and videos, by the real command.

What it writes is compared with what mmdet's and mmseg's own functions find.
"""

import copy
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from pycocotools import mask as coco_mask

from support.config_helpers import CONFIGS, build
from support.official_models import save_as_the_authors
from support.running_tools import start
from support.tiny_data import TOOLS

INFER = TOOLS / 'infer.py'
DETECTION = CONFIGS / 'detection' / 'mask-rcnn_lit-ti_fpn_shapes.py'
SEGMENTATION = CONFIGS / 'segmentation' / 'lit-ti_fpn_fpnhead_shapes.py'
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
    assert film.isOpened()
    for seed in range(frames):
        film.write(picture(seed))
    film.release()


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """Images, two of one name; broken ones; a text; a video that is cut off."""
    root = tmp_path_factory.mktemp('inputs')
    for number, name in enumerate(['a/1.jpg', 'b/1.jpg', 'b/two.PNG', '.hidden/3.jpg']):
        (root / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(root / name), picture(number, 300 - 30 * number, 200))
    (root / 'empty.png').touch()
    (root / 'b' / 'broken.jpg').write_bytes((root / 'a/1.jpg').read_bytes()[:300])
    (root / 'notes.txt').write_text('no image')
    write_video(root / 'whole.avi', 12)
    content = (root / 'whole.avi').read_bytes()
    (root / 'cut.avi').write_bytes(content[: len(content) * 4 // 5])
    write_video(root / 'long.avi', FRAMES)
    return root


def save(config, path, **meta):
    torch.manual_seed(0)
    model = build(Config.fromfile(config))
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp('detector') / 'weights.pth'
    return save(DETECTION, path, dataset_meta=dict(classes=NAMES))


def start_infer(cwd, *arguments):
    return start(INFER, *arguments, '--device', 'cpu', cwd=cwd)


def output_of(process, status):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output[-5000:]
    return output


def run_in_terminal(cwd, *arguments):
    """(exit status, what a terminal gets to see, without its control sequences)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(INFER), *map(str, arguments), '--device', 'cpu'],
        cwd=cwd,
        env={**os.environ, 'TERM': 'xterm'},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b''
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # How Linux says that the other end was closed.
        pass
    os.close(ours)
    plain = re.sub(r'\x1b\[[?0-9;]*[a-zA-Z]', '', seen.decode(errors='replace'))
    return process.wait(timeout=60), plain


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}


def test_detection(tmp_path, inputs, detector):
    """A folder, then, in place of some of that, two files and a video."""
    from mmdet.apis import inference_detector, init_detector

    out = tmp_path / 'out'
    given = ('--config', DETECTION, '--checkpoint', detector, '--out-dir', out)
    given += ('--cfg-options', *(f'{key}={value}' for key, value in FEW.items()))
    output = output_of(start_infer(tmp_path, inputs, *given, '--score-thr', 0), 1)
    assert 'empty.png: is empty' in output
    assert 'b/broken.jpg: is no image, or a broken one' in output
    assert '2 of 5 could not be done, or not wholly: ' in output
    names = ('a/1.jpg', 'b/1.jpg', 'b/two.PNG')
    assert files_in(out) == {
        *(f'pictures/{name}' for name in names),
        *(f'predictions/{name}.json' for name in names),
    }
    config = Config.fromfile(DETECTION)
    config.merge_from_dict(FEW)
    model = init_detector(config, str(detector), device='cpu')
    for name in names:
        record = json.loads((out / 'predictions' / f'{name}.json').read_text())
        assert record['image'] == (inputs / name).as_posix()
        image = cv2.imread(str(inputs / name))
        assert (record['height'], record['width']) == image.shape[:2]
        wanted = inference_detector(model, str(inputs / name)).pred_instances
        check_objects(record['objects'], wanted)
        drawn = cv2.imread(str(out / 'pictures' / name))
        assert drawn.shape == image.shape
        # Its colours are those of the image, and something was drawn over them.
        changes = [
            np.abs(drawn.astype(int) - i).mean() for i in (image, image[..., ::-1])
        ]
        assert 1 < changes[0] < changes[1]

    before = (out / 'predictions/b/1.jpg.json').read_text()
    objects = json.loads((out / 'predictions/a/1.jpg.json').read_text())['objects']
    score = sorted(entry['score'] for entry in objects)[1]
    some = (inputs / 'a/1.jpg', inputs / 'cut.avi', inputs / 'a/1.jpg')
    output = output_of(start_infer(tmp_path, *some, *given, '--score-thr', score), 1)
    assert '1 of 2 done' in output, output[-600:]
    assert 'cut.avi: ends after' in output, output[-600:]
    # Named after their places in the inputs' folder, as before; the others are as were.
    again = json.loads((out / 'predictions/a/1.jpg.json').read_text())['objects']
    assert again == [entry for entry in objects if entry['score'] >= score] != objects
    assert (out / 'predictions/b/1.jpg.json').read_text() == before
    frames = list(frames_of(inputs / 'cut.avi'))
    lines = (out / 'predictions/cut.avi.jsonl').read_text().splitlines()
    records = list(map(json.loads, lines))
    assert [record['frame'] for record in records] == list(range(len(frames)))
    assert 0 < len(frames) < 12
    # It shows what the image does.
    first = inference_detector(model, frames[0]).pred_instances
    check_objects(records[0]['objects'], first[first.scores >= score])
    shapes = [frame.shape for frame in frames_of(out / 'pictures/cut.avi.mp4')]
    assert shapes == [(64, 96, 3)] * len(frames)


def check_objects(objects, wanted):
    assert len(objects) == len(wanted) > 0
    for entry, box, score, label, mask in zip(
        objects, wanted.bboxes, wanted.scores, wanted.labels, wanted.masks
    ):
        assert (entry['label'], entry['class']) == (label, NAMES[label])
        assert entry['score'] == pytest.approx(score.item(), abs=1e-5)
        np.testing.assert_allclose(entry['box'], box, atol=1e-2)
        assert np.mean(coco_mask.decode(entry['mask']) != mask.numpy()) < 1e-3


def test_segmentation_until_it_is_interrupted(tmp_path, inputs):
    pytest.importorskip('mmseg', reason='the config is for mmseg')
    from mmseg.apis import inference_model, init_model

    # Without names in it: those of the config.
    weights = save(SEGMENTATION, tmp_path / 'weights.pth')
    out = tmp_path / 'out'
    process = start_infer(
        *(tmp_path, inputs / 'a', inputs / 'long.avi', '--config', SEGMENTATION),
        *('--checkpoint', weights, '--out-dir', out),
    )
    wait_for(out / 'label_maps/long.avi/000002.png', process)
    process.send_signal(signal.SIGINT)
    output = output_of(process, 130)
    assert '1 of 2 done' in output and 'interrupted' in output

    model = init_model(str(SEGMENTATION), str(weights), device='cpu')
    record = json.loads((out / 'predictions/a/1.jpg.json').read_text())
    check_classes(record, out, inference_model(model, str(inputs / 'a/1.jpg')))
    assert cv2.imread(str(out / 'pictures/a/1.jpg')).shape == (200, 300, 3)
    lines = (out / 'predictions/long.avi.jsonl').read_text().splitlines()
    assert 3 <= len(lines) < FRAMES
    assert len(list(frames_of(out / 'pictures/long.avi.mp4'))) == len(lines)
    assert not [name for name in files_in(out) if '.part' in name]
    first = next(frames_of(inputs / 'long.avi'))
    check_classes(json.loads(lines[0]), out, inference_model(model, first))


def wait_for(path, process):
    deadline = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def check_classes(record, out, wanted):
    wanted = wanted.pred_sem_seg.data[0].numpy()
    found = cv2.imread(str(out / record['label_map']), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, wanted)
    labels, counts = np.unique(wanted, return_counts=True)
    assert len(labels) > 1
    names = ('background', 'circle', 'triangle', 'ring')
    assert [(c['label'], c['class'], c['pixels']) for c in record['classes']] == [
        (label, names[label], count) for label, count in zip(labels, counts)
    ]
    assert sum(c['share'] for c in record['classes']) == pytest.approx(1)


def test_a_file_of_the_authors(tmp_path):
    from mmlit_tools.configs import import_scope
    from mmlit_tools.infer.detection import Detector

    config = Config.fromfile(DETECTION)
    # The demo's output norms are none of the authors'.
    config.model.backbone.out_norm_indices = None
    import_scope(config)
    model = build(copy.deepcopy(config))
    path = tmp_path / 'mask_rcnn.pth'
    save_as_the_authors(model, path, dict(CLASSES=NAMES), biases='zeros')
    loaded = Detector(config, str(path), 'cpu', 0.3).model
    assert loaded.dataset_meta['classes'] == NAMES
    wanted = model.state_dict()
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, wanted[key], msg=key)


def test_a_config_that_fails_on_every_image(tmp_path, inputs, detector):
    """On a terminal, whose bar goes to the end all the same."""
    images = (inputs / 'a/1.jpg', inputs / 'b/1.jpg')
    status, seen = run_in_terminal(
        *(tmp_path, *images, '--config', DETECTION, '--checkpoint', detector),
        *('--out-dir', 'out', '--cfg-options'),
        'model.data_preprocessor.pad_size_divisor=1',
        'test_dataloader.dataset.pipeline.1.scale=(20,20)',
    )
    assert status == 1, seen[-3000:]
    for image in images:
        assert re.search(rf'{image}: could not be done: image of .* is too small', seen)
    assert '0 of 2 done' in seen and '2 of 2 could not be done' in seen
    assert 'failed on all of them in the same way' in seen
    assert re.findall(r'\b(\d/2)\b', seen)[0] == '0/2'
    assert re.findall(r'\b(\d/2)\b', seen)[-1] == '2/2'
    assert files_in(tmp_path / 'out') == set()


def test_a_narrow_image_does_not_end_the_others(tmp_path, inputs, detector, capfd):
    """It is resized to nothing, which OpenCV has an error of its own for."""
    narrow = tmp_path / 'narrow.png'
    cv2.imwrite(str(narrow), np.zeros((1, 3000, 3), np.uint8))
    words = [
        *('infer.py', str(narrow), str(inputs / 'a/1.jpg'), '--config', str(DETECTION)),
        *('--checkpoint', str(detector), '--out-dir', str(tmp_path / 'out')),
        *('--device', 'cpu'),
    ]
    from mmlit_tools.infer import command as infer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', words)
        with pytest.raises(SystemExit) as stop:
            infer.main()
    seen = capfd.readouterr()
    assert stop.value.code == 1 and '1 of 2 done' in seen.out
    assert re.search(rf'{narrow}: could not be done: OpenCV[^\n]*\n', seen.err)


# --- what is refused ----------------------------------------------------------------


def test_weights_of_another_model(tmp_path, detector):
    from mmlit_tools.configs import import_scope
    from mmlit_tools.infer.detection import Detector
    from mmlit_tools.infer.model import ModelError

    config = Config.fromfile(DETECTION)
    import_scope(config)
    other = Config.fromfile(DETECTION)
    other.model.roi_head.bbox_head.num_classes = 4
    with pytest.raises(ModelError, match=r'size mismatch for roi_head\.bbox_head'):
        Detector(other, str(detector), 'cpu', 0.3)
    # Of a backbone alone, as a classifier is.
    state = torch.load(detector, weights_only=True)['state_dict']
    part = {k: v for k, v in state.items() if k.startswith('backbone.')}
    torch.save({'state_dict': part}, tmp_path / 'part.pth')
    with pytest.raises(ModelError, match=r'weights are missing, neck\.lateral_convs'):
        Detector(config, str(tmp_path / 'part.pth'), 'cpu', 0.3)
    # Nameless weights, and a config that names too many classes.
    torch.save({'state_dict': state}, tmp_path / 'nameless.pth')
    config.test_dataloader.dataset.pop('metainfo')
    with pytest.raises(ModelError, match='has 3 classes, and there are 80 names'):
        Detector(config, str(tmp_path / 'nameless.pth'), 'cpu', 0.3)


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
def test_inputs_that_cannot_be(tmp_path, inputs, capsys, given, out, words):
    from mmlit_tools.infer.results import Results
    from mmlit_tools.infer.sources import find_sources

    image = (inputs / 'a/1.jpg').read_bytes()
    for name in ('a/1.jpg', 'out/pictures/1.jpg', 't/1.tif', 't/1.tif.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    for folder in ('empty', 'out/predictions'):
        (tmp_path / folder).mkdir()
    before = files_in(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        sources = find_sources([tmp_path / name for name in given], tmp_path / out)
        Results(tmp_path / out, sources)
    assert words in str(stopped.value)
    assert files_in(tmp_path) == before


def test_results_in_the_folder_of_the_images(tmp_path, inputs):
    """Of a second run they are no inputs."""
    from mmlit_tools.infer.sources import find_sources

    image = (inputs / 'a/1.jpg').read_bytes()
    for name in ('1.jpg', 'out/pictures/1.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    (source,) = find_sources([tmp_path], tmp_path / 'out')
    assert (source.path, source.name) == (Path(tmp_path / '1.jpg'), '1.jpg')
