"""The checks of COCO data: each fault made on purpose, in otherwise sound data."""

import json
import re

import pytest

from support.tiny_data import (
    coco_config,
    coco_content,
    found,
    only,
    write_coco,
    write_image,
)

pytest.importorskip('mmdet', reason='the checks build the data sets of mmdet')


@pytest.fixture
def spoil(tmp_path):
    """Writes the data set with a change to its json; returns its config."""

    def write(change, **options):
        content = coco_content()
        change(content)
        write_coco(tmp_path, content)
        return coco_config(tmp_path, **options)

    return write


def first(content, **values):
    content['annotations'][0].update(values)


def test_sound_data(tmp_path):
    write_coco(tmp_path)
    assert found(coco_config(tmp_path)) == {}


# --- the json ---------------------------------------------------------------------


def test_no_json(tmp_path):
    assert only(coco_config(tmp_path), 'error', 'all.json does not exist') == []


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"images": [', 'all.json is not JSON: Expecting value: line 1'),
        ('\x00', 'is not JSON'),
        ('[]', "not in COCO format: it has no list 'images'"),
        ('{"images": [], "annotations": {}}', "no list 'annotations'"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
    ],
)
def test_no_coco(tmp_path, text, words):
    write_coco(tmp_path, text)
    only(coco_config(tmp_path), 'error', words)


def test_binary_json(tmp_path):
    write_coco(tmp_path)
    (tmp_path / 'all.json').write_bytes(b'\xff\xfe\x00')
    only(coco_config(tmp_path), 'error', 'is not JSON')


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [
        ('annotations', 'bbox', None),
        ('annotations', 'bbox', [1, 2, 3]),
        ('annotations', 'bbox', [1, 2, 3, float('nan')]),
        ('annotations', 'area', 'x'),
        ('annotations', 'image_id', [1]),
        ('images', 'height', 0),
        ('images', 'file_name', ''),
        ('categories', 'name', None),
    ],
)
def test_improper_entries(spoil, name, key, value):
    config = spoil(lambda content: content[name][0].update({key: value}))
    kinds = found(config)
    kind = ('error', f'entry of {name!r} without a proper {key!r}')
    assert str(value)[:4] in kinds[kind][0] and 'id' in kinds[kind][0]


def test_a_missing_key_and_a_strange_entry(spoil):
    def change(content):
        del content['annotations'][2]['area']
        content['annotations'].append(5)

    kinds = found(spoil(change))
    (example,) = kinds['error', "entry of 'annotations' without a proper 'area'"]
    assert example == "id 20 (number 2 in the list): 'area' is missing"
    assert kinds['error', "entry of 'annotations' that is no object"] == ['number 6']


def test_ids_that_are_not_unique(spoil):
    kinds = found(spoil(lambda content: first(content, id=31)))
    assert kinds['error', "id that is not unique in 'annotations'"] == ['id 31']
    # What mmdet says of it itself is kept.
    assert any('are not unique!' in text for _, text in kinds)


# --- annotations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('box', 'level', 'words'),
    [
        ([50, 5, 20, 10], 'error', 'leaves its image by more than 2 px'),
        ([-3, 5, 20, 10], 'error', 'leaves its image'),
        ([4, 45, 20, 10], 'error', 'leaves its image'),
        ([200, 5, 20, 10], 'error', 'leaves its image'),
        ([45, 5, 20, 10], 'warning', 'by a rounding'),
        ([4, 5, 0, 10], 'warning', 'without an area'),
        ([4, 5, 20, -1], 'warning', 'without an area'),
    ],
)
def test_boxes(spoil, box, level, words):
    (example,) = only(spoil(lambda content: first(content, bbox=box)), level, words)
    assert 'annotation 10 of 1.jpg' in example and str(box) in example
    assert '64x48' in example


def test_boxes_that_end_at_the_edge_are_sound(spoil):
    config = spoil(lambda content: first(content, bbox=[0, 0, 64.005, 48]))
    assert found(config) == {}


def test_every_area_zero_leaves_nothing(spoil):
    def change(content):
        for annotation in content['annotations']:
            annotation['area'] = 0

    kinds = found(spoil(change))
    assert (
        'error',
        'mmdet drops every annotation: none is left to learn from',
    ) in kinds


@pytest.mark.parametrize(
    ('key', 'words'), [('image_id', 'of an image'), ('category_id', 'of a category')]
)
def test_unknown_references(spoil, key, words):
    (example,) = only(spoil(lambda c: first(c, **{key: 99})), 'error', words)
    assert example == f'annotation 10: {key} 99'


@pytest.mark.parametrize(
    ('mask', 'words'),
    [
        (None, 'no segmentation'),
        ([], 'no segmentation'),
        ([[]], r'\[0\] numbers'),
        ([[1, 1, 5, 5]], r'polygons of \[4\] numbers'),
        ([[1, 1, 5, 5, 7]], r'\[5\] numbers'),
        ([[1, 1, 5, 5, 5, 1], [1, 1, 5, 5, 5, 1, 7]], r'\[6, 7\] numbers'),
        ([1, 1, 5, 5, 5, 1], 'not a list of lists'),
        ([['a'] * 6], 'not a list of lists'),
        ('mask.png', "'mask.png'"),
        (dict(size=[48, 64]), "without 'counts'"),
        (dict(size=[64, 48], counts='abc'), 'RLE of size'),
        (dict(size=[48, 64], counts=[5, 5]), 'add up'),
    ],
)
def test_masks(spoil, mask, words):
    def change(content):
        first(content, segmentation=mask)

    (example,) = only(spoil(change), 'error', 'without a proper mask')
    assert 'annotation 10 of 1.jpg' in example
    assert re.search(words, example)
    # A detector of boxes does not read them.
    assert found(spoil(change, masks=False)) == {}


def test_proper_rle(spoil):
    mask = dict(size=[48, 64], counts=[100, 20, 48 * 64 - 120])
    assert found(spoil(lambda c: first(c, segmentation=mask, iscrowd=1))) == {}


# --- classes ----------------------------------------------------------------------


def test_a_category_that_is_not_a_class(spoil):
    config = spoil(lambda content: None, metainfo=dict(classes=('circle', 'triangle')))
    (example,) = only(config, 'warning', 'leaves out')
    assert example == 'ring: 2 annotations are not used'


def test_no_category_is_a_class(spoil):
    config = spoil(lambda content: None, metainfo=dict(classes=('cat', 'dog')))
    kinds = found(config)
    assert any(
        level == 'error' and 'circle' in text and 'cat' in text for level, text in kinds
    )


def test_a_missing_category_shifts_the_rest(spoil):
    def change(content):
        del content['categories'][0]
        content['annotations'] = [
            a for a in content['annotations'] if a['category_id'] != 7
        ]

    kinds = found(spoil(change))
    ((_, examples),) = (pair for pair in kinds.items() if pair[0][0] == 'error')
    assert examples == ['triangle counts as circle', 'ring counts as triangle']
    assert kinds['warning', 'class that is not in the json'] == ['circle']


def test_mmdet_does_shift_them(spoil):
    """Why that is an error: mmdet's labels are what the check says."""
    from mmdet.registry import DATASETS

    config = spoil(lambda content: content['categories'].reverse())
    part = dict(config.train_dataloader.dataset, pipeline=[])
    labels = {
        (instance['bbox_label'])
        for instance in DATASETS.build(part).get_data_info(0)['instances']
    }
    # Image 1 holds triangle and ring, which now count as triangle and circle.
    assert labels == {1, 0}
    ((_, examples),) = found(config).items()
    assert examples == ['ring counts as circle', 'circle counts as ring']


def test_the_last_class_may_be_missing(spoil):
    metainfo = dict(classes=('circle', 'triangle', 'ring', 'star'))
    assert only(
        *(spoil(lambda content: None, metainfo=metainfo), 'warning', 'not in the json')
    ) == ['star']


@pytest.mark.parametrize('at', [0, 2])
def test_a_misspelt_class(spoil, at):
    classes = ['circle', 'triangle', 'ring']
    right, classes[at] = classes[at], 'rnig'
    kinds = found(spoil(lambda content: None, metainfo=dict(classes=classes)))
    said = (
        f'the json has {right}, which metainfo lacks, and metainfo has rnig, which the '
        'json lacks: a misspelt name?'
    )
    assert ('error', said) in kinds
    lost = [f'{right}: 2 annotations are not used']
    assert lost in kinds.values() and ['rnig'] in kinds.values()


def test_many_misspelt_classes_are_counted(spoil):
    def change(content):
        content['categories'] += [dict(id=i, name=f'name {i}') for i in range(20, 27)]

    metainfo = dict(classes=('circle', 'triangle', 'rnig'))
    kinds = found(spoil(change, metainfo=metainfo))
    (text,) = (text for level, text in kinds if level == 'error')
    listed = ', '.join(['ring', *(f'name {i}' for i in range(20, 24))])
    assert text.startswith(f'the json has {listed} and 3 more, which metainfo lacks')


def test_a_class_without_an_annotation(spoil):
    def change(content):
        content['categories'].append(dict(id=5, name='star'))

    metainfo = dict(classes=('circle', 'triangle', 'ring', 'star'))
    assert only(
        *(spoil(change, metainfo=metainfo), 'warning', 'class without an annotation')
    ) == ['star']


def test_two_categories_of_one_name(spoil):
    config = spoil(lambda c: c['categories'].append(dict(id=1, name='ring')))
    kinds = found(config)
    (examples,) = (e for (level, _), e in kinds.items() if level == 'error')
    assert examples == ['ring counts as label 3']


# --- images -----------------------------------------------------------------------


def test_no_images(spoil):
    def change(content):
        content['images'], content['annotations'] = [], []

    kinds = found(spoil(change))
    (text,) = (text for level, text in kinds if level == 'error')
    assert 'the split is empty' in text and 'all.json' in text


def test_an_image_without_an_annotation(spoil):
    def change(content):
        del content['annotations'][:2]

    assert only(spoil(change), 'warning', 'image without an annotation') == ['1.jpg']


def test_nothing_left_by_the_filter(spoil):
    config = spoil(
        lambda content: None, filter_cfg=dict(filter_empty_gt=True, min_size=49)
    )
    only(
        *(config, 'error', 'filter_cfg leaves none of the 3 images'),
        *('filter_empty_gt=True alone leaves 3', 'min_size=49 alone leaves 0'),
    )
    # mmdet filters no data for testing.
    config.train_dataloader.dataset.test_mode = True
    assert found(config) == {}


def test_no_folder(spoil):
    config = spoil(lambda content: None, data_prefix=dict(img='photos/'))
    only(config, 'error', 'image folder', 'photos', 'data_prefix.img')


def test_whole_paths_in_the_json(spoil, tmp_path):
    def change(content):
        for image in content['images']:
            image['file_name'] = str(tmp_path / 'images' / image['file_name'])

    files = dict(ann_file=str(tmp_path / 'all.json'), data_prefix=dict(img=''))
    config = spoil(change, data_root=None, **files)
    assert found(config) == {}
    (tmp_path / 'images' / '1.jpg').unlink()
    (tmp_path / 'images' / '2.jpg').write_bytes(b'no jpeg')
    kinds = found(config)
    missing = str(tmp_path / 'images' / '1.jpg')
    assert kinds.pop(('error', 'image does not exist')) == [missing]
    assert list(kinds) == [('error', 'image cannot be read')]


def test_a_prefix_of_another_kind_of_data_set(spoil):
    """Segmentation's `img_path`: mmdet asks for `img`."""
    kinds = found(spoil(lambda content: None, data_prefix=dict(img_path='images/')))
    assert ('error', 'image folder None does not exist (data_prefix.img)') in kinds


def test_files_that_are_missing_broken_or_of_another_size(spoil, tmp_path):
    config = spoil(lambda content: None)
    images = tmp_path / 'images'
    (images / '1.jpg').unlink()
    (images / '2.jpg').write_bytes(b'no jpeg')
    write_image(images / '3.jpg', 48, 64)
    kinds = {text: examples for (level, text), examples in found(config).items()}
    assert len(kinds) == 3
    by_image = {examples[0][:5]: (text, examples) for text, examples in kinds.items()}
    assert 'does not exist in' in by_image['1.jpg'][0]
    assert 'cannot be read' in by_image['2.jpg'][0]
    assert by_image['3.jpg'][1] == ['3.jpg: 48x64 px, in the json 64x48']


def test_a_photo_that_lies_on_its_side_counts_as_mmdet_loads_it(spoil, tmp_path):
    from mmcv import imread
    from PIL import Image

    config = spoil(lambda content: None)
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / 'images' / '3.jpg'
    write_image(path, 48, 64, exif=exif)
    assert imread(str(path)).shape[:2] == (48, 64)
    assert found(config) == {}


def test_many_of_a_kind_are_counted(spoil, tmp_path):
    from mmlit_tools.data.check import check_data

    config = spoil(lambda content: None)
    for image in (tmp_path / 'images').iterdir():
        image.unlink()
    (findings,) = check_data(config, workers=2, shown=2)
    title, kind, *names, rest = findings.lines()
    assert title.startswith('training data (CocoDataset): 3 images, 6 annotations: 1 ')
    assert kind.startswith('  error: image does not exist') and kind.endswith('(3)')
    assert [name.strip() for name in names] == ['1.jpg', '2.jpg']
    assert rest.strip() == '... and 1 more'


def test_the_json_is_not_changed(spoil, tmp_path):
    config = spoil(lambda content: None)
    found(config)
    assert json.loads((tmp_path / 'all.json').read_text()) == coco_content()
