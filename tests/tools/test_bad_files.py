"""Odd and broken image files: what `--check-data` says, and what pipelines do."""

import json

import pytest

from support.bad_files import (
    BROKEN,
    HEIGHT,
    ODD,
    SIZES,
    WIDTH,
    coco_of,
    encoded,
    of_sizes,
)

from support.bad_files import turned, write, write_files, write_pairs  # isort: skip
from support.tiny_data import coco_config, found, masks_config, only, write_mask  # isort: skip

pytest.importorskip('mmdet', reason='the checks build the data sets of mmdet')
pytest.importorskip('mmseg', reason='the checks build the data sets of mmseg')
SCALE = (1333, 800)


def resizing(config, scale=SCALE):
    """The config with resizing in its pipeline."""
    step = dict(type='Resize', scale=scale, keep_ratio=True)
    config.train_dataloader.dataset.pipeline.append(step)
    return config


# --- odd files are sound ----------------------------------------------------------


def test_odd_files_are_sound_in_detection(tmp_path):
    write_files(tmp_path, ODD)
    assert {level for level, _ in found(resizing(coco_config(tmp_path)))} <= {'warning'}
    warnings = [text for _, text in found(resizing(coco_config(tmp_path)))]
    assert warnings == ['class without an annotation']


def test_odd_files_are_sound_in_segmentation(tmp_path):
    write_pairs(tmp_path, ODD)
    assert found(resizing(masks_config(tmp_path))) == {}


# --- broken ones are refused by name ----------------------------------------------


def test_broken_files_in_detection(tmp_path):
    write_files(tmp_path, {**BROKEN, 'sound': encoded()})
    config = coco_config(tmp_path, metainfo=dict(classes=('circle',)))
    kinds = {text: names for (level, text), names in every(config) if level == 'error'}
    ((text, examples),) = kinds.items()
    assert 'cannot be read' in text
    said = dict(example.split('.jpg: ', 1) for example in examples)
    assert set(said) == set(BROKEN)
    assert said['empty'] == 'the file is empty, 0 bytes'
    assert 'cannot identify' in said['no-image']
    assert said['half-png'] == 'image file is truncated'
    for name in ('half', 'cut-off', 'float-tiff'):
        assert 'LoadImageFromFile of the pipeline cannot decode it' in said[name], name


def test_broken_files_in_segmentation(tmp_path):
    write_pairs(tmp_path, {**BROKEN, 'sound': encoded()})
    ((kind, examples),) = every(masks_config(tmp_path))
    assert kind == ('error', 'image cannot be read')
    names = {next(name for name in BROKEN if f'/{name}.jpg' in e) for e in examples}
    assert names == set(BROKEN) and len(examples) == len(BROKEN)


def every(config):
    """The kinds of findings with all of their examples."""
    from mmlit_tools.configs import import_scope
    from mmlit_tools.data.check import check_data

    import_scope(config)
    (findings,) = check_data(config, shown=100)
    return [
        (('error' if kind.is_error else 'warning', kind.text), kind.examples)
        for kind in findings.kinds
    ]


def test_the_quick_check_reads_headers_alone(tmp_path):
    from mmlit_tools.configs import import_scope
    from mmlit_tools.data.check import check_data

    write_files(tmp_path, {'half': BROKEN['half'], 'empty': b''})
    config = coco_config(tmp_path)
    import_scope(config)
    for quick, broken in ((True, 1), (False, 2)):
        (findings,) = check_data(config, quick=quick)
        (kind,) = findings.errors
        assert kind.count == broken


def test_the_loader_of_the_pipeline_is_what_reads(tmp_path):
    """Pillow reads what OpenCV does not; and only 'color' turns a photo upright."""
    write_files(tmp_path, {'float-tiff': BROKEN['float-tiff'], 'sideways': turned(6)})
    steps = [dict(type='LoadImageFromFile', imdecode_backend='pillow')]
    config = coco_config(tmp_path, masks=False, pipeline=steps)
    assert all(level == 'warning' for level, _ in found(config))
    steps = [dict(type='LoadImageFromFile', color_type='unchanged')]
    write_files(tmp_path, {'sideways': turned(6)})
    kinds = found(coco_config(tmp_path, masks=False, pipeline=steps))
    (examples,) = (names for (level, _), names in kinds.items() if level == 'error')
    assert examples == [
        f'sideways.jpg: {HEIGHT}x{WIDTH} px, in the json {WIDTH}x{HEIGHT} '
        '(its EXIF data turn it)'
    ]


def test_a_misspelt_argument_of_the_loader(tmp_path):
    write_files(tmp_path, {'sound': encoded()})
    steps = [dict(type='LoadImageFromFile', colour_type='unchanged')]
    only(coco_config(tmp_path, pipeline=steps), 'error', 'built', 'colour_type')


# --- photos that EXIF turns -------------------------------------------------------


def test_a_json_that_has_photos_as_they_lie(tmp_path):
    write_files(tmp_path, {'photo': turned(8)}, {'photo': (HEIGHT, WIDTH)})
    config = coco_config(tmp_path, metainfo=dict(classes=('circle',)))
    kinds = found(config)
    said = f'photo.jpg: {WIDTH}x{HEIGHT} px, in the json {HEIGHT}x{WIDTH}'
    (examples,) = (names for (level, _), names in kinds.items() if level == 'error')
    assert examples == [f'{said} (its EXIF data turn it)']


@pytest.mark.parametrize('orientation', [2, 3, 4])
def test_a_turn_that_the_size_does_not_tell(tmp_path, orientation):
    files = {'photo': turned(orientation), 'upright': turned(1)}
    write_files(tmp_path / 'det', files)
    write_pairs(tmp_path / 'seg', files)
    for config in (coco_config(tmp_path / 'det'), masks_config(tmp_path / 'seg')):
        kinds = found(config)
        (names,) = (names for (_, text), names in kinds.items() if 'EXIF' in text)
        assert len(names) == 1 and names[0].endswith('photo.jpg')
        assert all(level == 'warning' for level, _ in kinds)


# --- sizes ------------------------------------------------------------------------


def test_lines_are_resized_to_nothing(tmp_path):
    write_files(tmp_path, of_sizes(SIZES), SIZES)
    config = coco_config(tmp_path, filter_cfg=None)
    assert all(level == 'warning' for level, _ in found(config))
    kinds = found(resizing(config))
    (examples,) = (names for (level, _), names in kinds.items() if level == 'error')
    assert examples == [
        f'line.jpg: 1x5000 px become 0x1333 px at scale {SCALE}',
        f'lying-line.jpg: 5000x1 px become 1333x0 px at scale {SCALE}',
    ]
    # mmdet's filter drops them before the pipeline.
    config = resizing(coco_config(tmp_path))
    assert not any('no pixel' in text for _, text in found(config))


def test_lines_in_segmentation(tmp_path):
    """mmseg takes a mask of one row for a row of masks."""
    write_pairs(tmp_path, of_sizes(SIZES), SIZES)
    kinds = dict(every(masks_config(tmp_path)))
    examples = kinds['error', 'mask with a side of 1 px (mmseg cannot load it)']
    names = sorted(e.split('/')[-1].split('.')[0] for e in examples)
    assert names == ['line', 'lying-line', 'one-pixel']
    assert len(kinds) == 1
    # At half the scale of the pipeline, as it may choose, a strip is none any more.
    config = masks_config(tmp_path)
    step = dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.1, 2.0))
    config.train_dataloader.dataset.pipeline.append(dict(step, keep_ratio=True))
    (text,) = (text for level, text in dict(every(config)) if 'no pixel' in text)
    (first, second) = dict(every(config))['error', text]
    assert 'lying-strip' in first and 'become 204x0 px at scale (204, 51)' in first
    assert 'strip' in second


# --- annotations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('mask', 'words'),
    [
        (dict(size=[HEIGHT, WIDTH], counts='abc'), 'add up'),
        (dict(size=[HEIGHT, WIDTH], counts='0'), 'add up'),
        (dict(size=[HEIGHT, WIDTH], counts='\u00e9'), 'add up'),
        (dict(size=[HEIGHT, WIDTH], counts='o' * 30), 'add up'),
        (dict(size=[HEIGHT, WIDTH], counts=[-5, HEIGHT * WIDTH + 5]), 'add up'),
        (dict(size=[HEIGHT, WIDTH], counts=[0.5, HEIGHT * WIDTH - 0.5]), 'whole'),
        ([[0, 0, 1e9, 0, 5, 5]], 'x=1e+09, far outside of the width 64'),
        ([[0, 0, 9, 0, 5, -1e6]], 'y=-1e+06, far outside of the height 48'),
        ([[0, 0, float('nan'), 0, 5, 5]], 'not a list of lists of numbers'),
    ],
)
def test_masks_that_pycocotools_would_trip_over(tmp_path, mask, words):
    """It fills in what lay in the memory, or takes all there is."""
    write_files(tmp_path, {'sound': encoded()})
    content = coco_of({'sound': (WIDTH, HEIGHT)}, segmentation=mask)
    (tmp_path / 'all.json').write_text(json.dumps(content))
    config = coco_config(tmp_path, metainfo=dict(classes=('circle',)))
    kinds = found(config)
    (examples,) = (names for (level, _), names in kinds.items() if level == 'error')
    assert 'annotation 1 of sound.jpg' in examples[0] and words in examples[0]


def test_packed_masks_are_sound(tmp_path):
    import numpy as np
    from pycocotools.mask import encode

    write_files(tmp_path, {'sound': encoded()})
    config = coco_config(tmp_path)
    random = np.random.RandomState(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        pixels = np.asfortranarray(random.rand(HEIGHT, WIDTH) < share, dtype=np.uint8)
        mask = dict(size=[HEIGHT, WIDTH], counts=encode(pixels)['counts'].decode())
        content = coco_of({'sound': (WIDTH, HEIGHT)}, segmentation=mask)
        (tmp_path / 'all.json').write_text(json.dumps(content))
        assert all(level == 'warning' for level, _ in found(config)), mask
        # One character less, or another one, does not pass.
        mask['counts'] = mask['counts'][:-1]
        content['annotations'][0]['segmentation'] = mask
        (tmp_path / 'all.json').write_text(json.dumps(content))
        assert any(level == 'error' for level, _ in found(config)), mask


def test_boxes_of_less_than_a_pixel(tmp_path):
    """mmdet drops them, which is no fault, but worth a word."""
    write_files(tmp_path, {'sound': encoded()})
    content = coco_of({'sound': (WIDTH, HEIGHT)})
    content['annotations'].append(
        dict(content['annotations'][0], id=2, bbox=[3, 4, 0.5, 9])
    )
    (tmp_path / 'all.json').write_text(json.dumps(content))
    config = coco_config(tmp_path, metainfo=dict(classes=('circle',)))
    kinds = found(config)
    (examples,) = (e for (_, text), e in kinds.items() if 'less than 1 px' in text)
    assert examples[0].startswith('annotation 2 of sound.jpg')


def test_masks_that_are_broken(tmp_path):
    files = {name: encoded() for name in ('empty', 'half', 'text', 'sound')}
    write_pairs(tmp_path, files)
    masks = tmp_path / 'masks'
    # Noise, or there is nothing to cut off.
    write_mask(masks / 'half.png', range(64))
    half = encoded('L', 'PNG')[:1000]
    for name, content in (('empty', b''), ('half', half), ('text', b'no mask')):
        write(masks / f'{name}.png', content)
    (examples,) = (names for (level, _), names in every(masks_config(tmp_path)))
    assert [e.split('/')[-1].split('.')[0] for e in examples] == [
        'empty',
        'half',
        'text',
    ]
