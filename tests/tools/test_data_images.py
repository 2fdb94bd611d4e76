"""Odd and broken image files: what the checks of data say of them."""

import pytest

from support.bad_files import (
    BROKEN,
    HEIGHT,
    ODD,
    SIZES,
    WIDTH,
    encoded,
    of_sizes,
    turned,
    write,
    write_files,
    write_pairs,
)
from support.tiny_data import check, coco_config, errors, found, masks_config, only

pytest.importorskip('mmdet', reason='the checks build the datasets of mmdet')
pytest.importorskip('mmseg', reason='the checks build the datasets of mmseg')
SCALE = (1333, 800)
CIRCLE = dict(classes=('circle',))


def resizing(config, scale=SCALE):
    """Return the config with resizing in its pipeline."""
    step = dict(type='Resize', scale=scale, keep_ratio=True)
    config.train_dataloader.dataset.pipeline.append(step)
    return config


def stem(example):
    return example.split('/')[-1].split('.')[0]


def test_odd_files_are_sound(tmp_path):
    write_files(tmp_path / 'det', ODD)
    assert found(resizing(coco_config(tmp_path / 'det', metainfo=CIRCLE))).keys() <= {
        ('warning', "category of the json that metainfo['classes'] leaves out")
    }
    write_pairs(tmp_path / 'seg', ODD)
    assert found(resizing(masks_config(tmp_path / 'seg'))) == {}


def test_broken_files_in_detection(tmp_path):
    write_files(tmp_path, {**BROKEN, 'sound': encoded()})
    examples = errors(coco_config(tmp_path, metainfo=CIRCLE), shown=100)
    said = dict(example.split('.jpg: ', 1) for example in examples)
    assert set(said) == set(BROKEN)
    assert said['empty'] == 'the file is empty, 0 bytes'
    assert 'cannot identify' in said['no-image']
    assert said['half-png'] == 'image file is truncated'
    for name in ('half', 'cut-off', 'float-tiff'):
        assert 'LoadImageFromFile of the pipeline cannot decode it' in said[name], name


def test_broken_files_in_segmentation(tmp_path):
    write_pairs(tmp_path, {**BROKEN, 'sound': encoded()})
    kinds = found(masks_config(tmp_path), shown=100)
    examples = kinds.pop(('error', 'image cannot be read'))
    assert not kinds and set(map(stem, examples)) == set(BROKEN)
    write_pairs(tmp_path, dict.fromkeys(BROKEN, encoded()))
    names = ('empty', 'half', 'no-image')
    half = encoded('L', 'PNG')[:1000]  # Of noise, or there is nothing to cut off.
    for name, content in zip(names, (b'', half, b'no mask')):
        write(tmp_path / 'masks' / f'{name}.png', content)
    examples = only(masks_config(tmp_path), 'error', 'mask cannot be read')
    assert tuple(map(stem, examples)) == names


def test_the_quick_check_reads_headers_alone(tmp_path):
    write_files(tmp_path, {'half': BROKEN['half'], 'empty': b''})
    for quick, broken in ((True, 1), (False, 2)):
        assert len(errors(coco_config(tmp_path), quick=quick)) == broken


def test_the_loader_of_the_pipeline_is_what_reads(tmp_path):
    """Pillow reads what OpenCV does not; and only 'color' turns a photo upright."""

    def config(**options):
        steps = [dict(type='LoadImageFromFile', **options)]
        return coco_config(tmp_path, masks=False, pipeline=steps)

    write_files(tmp_path, {'float-tiff': BROKEN['float-tiff'], 'sideways': turned(6)})
    assert not check(config(imdecode_backend='pillow')).errors
    write_files(tmp_path, {'sideways': turned(6)})
    said = f'{HEIGHT}x{WIDTH} px, in the json {WIDTH}x{HEIGHT} (its EXIF data turn it)'
    assert errors(config(color_type='unchanged')) == [f'sideways.jpg: {said}']
    only(config(colour_type='unchanged'), 'error', 'built', 'colour_type')
    # A json that has a photo as it lies.
    write_files(tmp_path, {'photo': turned(8)}, {'photo': (HEIGHT, WIDTH)})
    said = f'{WIDTH}x{HEIGHT} px, in the json {HEIGHT}x{WIDTH} (its EXIF data turn it)'
    assert errors(coco_config(tmp_path, metainfo=CIRCLE)) == [f'photo.jpg: {said}']


@pytest.mark.parametrize('orientation', [2, 3, 4])
def test_a_turn_that_the_size_does_not_tell(tmp_path, orientation):
    files = {'photo': turned(orientation), 'upright': turned(1)}
    write_files(tmp_path / 'det', files)
    write_pairs(tmp_path / 'seg', files)
    for config in (coco_config(tmp_path / 'det'), masks_config(tmp_path / 'seg')):
        kinds = found(config)
        (names,) = (names for (_, text), names in kinds.items() if 'EXIF' in text)
        assert list(map(stem, names)) == ['photo']
        assert all(level == 'warning' for level, _ in kinds)


def test_lines_are_resized_to_nothing(tmp_path):
    write_files(tmp_path, of_sizes(SIZES), SIZES)
    config = coco_config(tmp_path, filter_cfg=None)
    assert not check(config).errors
    assert errors(resizing(config)) == [
        f'line.jpg: 1x5000 px become 0x1333 px at scale {SCALE}',
        f'lying-line.jpg: 5000x1 px become 1333x0 px at scale {SCALE}',
    ]
    # mmdet's filter drops them before the pipeline.
    config = resizing(coco_config(tmp_path))
    assert not any('no pixel' in text for _, text in found(config))
