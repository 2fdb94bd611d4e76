"""The checks of segmentation data: each fault made on purpose, in sound data."""

import pytest
from PIL import Image

from support.tiny_data import (
    CLASSES,
    check,
    found,
    masks_config,
    only,
    write_image,
    write_mask,
    write_masks,
)

pytest.importorskip('mmseg', reason='the checks build the datasets of mmseg')
BEYOND = 'ids beyond the 3 classes'
IGNORED = 'mask in which every pixel is ignored'


def test_folders_that_are_missing(tmp_path):
    write_masks(tmp_path)
    config = masks_config(tmp_path, data_root=None, data_prefix=dict(img_path='images'))
    assert {text for level, text in found(config) if level == 'error'} == {
        'image folder images does not exist',
        'data_prefix.seg_map_path of the dataset is missing',
    }
    for folder in ('images', 'masks'):
        (tmp_path / folder).rename(tmp_path / 'moved')
        said = f'{folder[:-1]} folder', f'{folder} does not exist'
        only(masks_config(tmp_path), 'error', *said)
        (tmp_path / 'moved').rename(tmp_path / folder)


def test_which_images(tmp_path):
    write_masks(tmp_path)
    config = masks_config(tmp_path, img_suffix='.png')
    only(config, 'error', 'split is empty', "img_suffix='.png'", 'there are *.jpg')
    split = tmp_path / 'split.txt'
    config = masks_config(tmp_path, ann_file='split.txt')
    only(config, 'error', 'split.txt', 'does not exist')
    split.touch()
    only(config, 'error', 'split is empty', 'split.txt lists no image')
    # Masks of images that are not on the list are no fault.
    split.write_text('a\n')
    assert found(config) == {}
    split.write_text('a\nc\n')
    (example,) = only(config, 'error', 'image does not exist')
    assert 'c.jpg' in example


def test_an_image_without_a_mask_and_the_reverse(tmp_path):
    write_masks(tmp_path)
    (tmp_path / 'masks' / 'b.png').rename(tmp_path / 'masks' / 'c.png')
    kinds = found(masks_config(tmp_path))
    assert kinds == found(masks_config(tmp_path, indices=1))  # The whole split.
    (example,) = kinds['error', 'mask does not exist']
    assert 'b.png' in example and 'b.jpg' in example
    (example,) = kinds['warning', 'mask without an image (it is not used)']
    assert example.endswith('c.png')
    assert len(kinds) == 2


def test_masks_of_other_forms(tmp_path):
    write_masks(tmp_path)
    path = tmp_path / 'masks' / 'b.png'
    config = masks_config(tmp_path)
    # A palette is no fault: the mask holds its indices.
    mask = Image.open(path).convert('L')
    mask.putpalette([9, 8, 7] * 256)
    mask.save(path)
    assert found(config) == {}
    for mode in ('RGB', 'RGBA', 'LA', 'I;16'):
        write_image(path, mode=mode)
        (example,) = only(config, 'error', 'not single-channel 8-bit')
        assert 'b.png' in example
    write_mask(path, (1, 2, 3), width=63)
    (example,) = only(config, 'error', 'differ in size')
    assert example.endswith('b.png: 63x48 px, its image 64x48 px')


def test_ids_beyond_the_classes(tmp_path):
    write_masks(tmp_path, ids=(0, 1, 2, 3, 255))
    (line,) = check(masks_config(tmp_path)).lines()
    assert line == 'training data (BaseSegDataset): 2 images: nothing found'
    write_mask(tmp_path / 'masks' / 'b.png', [1, 2, 3, 4, 4, 9, 1, 1])
    (example,) = only(masks_config(tmp_path), 'error', BEYOND, '1..3, 0 and 255')
    assert example.endswith(f'b.png: id 4 ({16 * 48} px), id 9 ({8 * 48} px)')
    write_mask(tmp_path / 'masks' / 'b.png', range(1, 20))
    (example,) = only(masks_config(tmp_path), 'error', BEYOND)
    assert example.count('px)') == 5 and example.endswith('and 11 more ids')
    write_masks(tmp_path, ids=(0, 1, 2, 255))
    config = masks_config(tmp_path, reduce_zero_label=False)
    assert found(config) == {}
    write_mask(tmp_path / 'masks' / 'b.png', (0, 1, 2, 3))
    (example,) = only(config, 'error', BEYOND, '0..2, 255 is ignored')
    assert 'id 3' in example


def test_a_class_and_a_mask_without_pixels(tmp_path):
    write_masks(tmp_path, ids=(1, 2))
    only(masks_config(tmp_path, metainfo=None), 'error', "metainfo['classes']")
    write_mask(tmp_path / 'masks' / 'b.png', (0, 255))
    kinds = found(masks_config(tmp_path))
    assert kinds['warning', 'class without a pixel in any mask'] == [CLASSES[2]]
    (example,) = kinds['warning', IGNORED]
    assert example.endswith('b.png')
    assert len(kinds) == 2
    write_masks(tmp_path, ids=(0, 255))
    kinds = found(masks_config(tmp_path))
    level, text = next(kind for kind in kinds if kind[0] == 'error')
    said = 'every pixel of every mask is ignored'
    assert said in text and 'reduce_zero_label' in text
    assert len(kinds) == 2 and len(kinds['warning', IGNORED]) == 2
