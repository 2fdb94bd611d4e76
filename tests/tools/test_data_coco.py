"""The checks of COCO data: each fault made on purpose, in otherwise sound data."""

import re

import pytest

from support.tiny_data import (
    CLASSES,
    HEIGHT,
    WIDTH,
    check,
    coco_config,
    coco_content,
    errors,
    found,
    only,
    write_coco,
    write_image,
)

pytest.importorskip('mmdet', reason='the checks build the datasets of mmdet')


@pytest.fixture
def spoil(tmp_path):
    """Write the dataset, changed by a function or its first annotation by a dict."""

    def write(change=None, **options):
        content = coco_content()
        if isinstance(change, dict):
            content['annotations'][0].update(change)
        elif change:
            change(content)
        write_coco(tmp_path, content)
        return coco_config(tmp_path, **options)

    return write


def test_sound_data(spoil, tmp_path):
    for values in (
        {},
        dict(bbox=[0, 0, 64.005, 48]),  # It ends at the edge.
        dict(segmentation=rle([100, 20, 48 * 64 - 120]), iscrowd=1),
    ):
        config = spoil(values)
        before = (tmp_path / 'all.json').read_text()
        assert found(config) == {}
        assert (tmp_path / 'all.json').read_text() == before


def rle(counts, height=HEIGHT, width=WIDTH):
    return dict(size=[height, width], counts=counts)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'all.json does not exist'),
        (b'{"images": [', 'all.json is not JSON: Expecting value: line 1'),
        (b'\xff\xfe\x00', 'is not JSON'),
        (b'[]', "not in COCO format: it has no list 'images'"),
        (b'{"images": [], "annotations": {}}', "no list 'annotations'"),
    ],
)
def test_no_coco(tmp_path, content, words):
    if content is not None:
        write_coco(tmp_path)
        (tmp_path / 'all.json').write_bytes(content)
    assert only(coco_config(tmp_path), 'error', words) == []


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [
        ('annotations', 'bbox', [1, 2, 3]),
        ('annotations', 'bbox', [1, 2, 3, float('nan')]),
        ('annotations', 'area', 'x'),
        ('annotations', 'image_id', [1]),
        ('images', 'height', 0),
        ('images', 'file_name', ''),
    ],
)
def test_improper_entries(spoil, name, key, value):
    config = spoil(lambda content: content[name][0].update({key: value}))
    (example,) = found(config)['error', f'entry of {name!r} without a proper {key!r}']
    assert str(value)[:4] in example and 'id' in example


def test_entries_that_cannot_be_used(spoil):
    def change(content):
        del content['annotations'][2]['area']
        content['annotations'].append(5)
        content['annotations'][0]['id'] = 31

    kinds = found(spoil(change))
    (example,) = kinds['error', "entry of 'annotations' without a proper 'area'"]
    assert example == "id 20 (number 2 in the list): 'area' is missing"
    assert kinds['error', "entry of 'annotations' that is no object"] == ['number 6']
    # Without the other two, mmdet's own error is said as well.
    kinds = found(spoil(dict(id=31)))
    assert kinds['error', "id that is not unique in 'annotations'"] == ['id 31']
    assert any('are not unique!' in text for _, text in kinds)


@pytest.mark.parametrize(
    ('box', 'level', 'words'),
    [
        ([50, 5, 20, 10], 'error', 'leaves its image by more than 2 px'),
        ([4, 45, 20, 10], 'error', 'leaves its image'),
        ([45, 5, 20, 10], 'warning', 'by a rounding'),
        ([4, 5, 0, 10], 'warning', 'without an area'),
        ([3, 4, 0.5, 9], 'warning', 'less than 1 px'),
    ],
)
def test_boxes(spoil, box, level, words):
    (example,) = only(spoil(dict(bbox=box)), level, words)
    assert 'annotation 10 of 1.jpg' in example and str(box) in example
    assert '64x48' in example


def test_nothing_is_left(spoil):
    def no_area(content):
        for annotation in content['annotations']:
            annotation['area'] = 0

    said = 'mmdet drops every annotation: none is left to learn from'
    assert ('error', said) in found(spoil(no_area))
    kinds = found(spoil(lambda content: content.update(images=[], annotations=[])))
    (text,) = (text for level, text in kinds if level == 'error')
    assert 'the split is empty' in text and 'all.json' in text
    kinds = found(spoil(metainfo=dict(classes=('cat', 'dog'))))
    texts = [text for level, text in kinds if level == 'error']
    assert any('circle' in text and 'cat' in text for text in texts)


def test_unknown_references(spoil):
    for key, words in (('image_id', 'of an image'), ('category_id', 'of a category')):
        (example,) = only(spoil({key: 99}), 'error', words)
        assert example == f'annotation 10: {key} 99'


@pytest.mark.parametrize(
    ('mask', 'words'),
    [
        (None, 'no segmentation'),
        ([[1, 1, 5, 5]], r'polygons of \[4\] numbers'),
        ([[1, 1, 5, 5, 5, 1], [1, 1, 5, 5, 5, 1, 7]], r'\[6, 7\] numbers'),
        ([1, 1, 5, 5, 5, 1], 'not a list of lists'),
        ([[0, 0, float('nan'), 0, 5, 5]], 'not a list of lists of numbers'),
        ('mask.png', "'mask.png'"),
        # pycocotools would take all memory for the way to these.
        ([[0, 0, 1e9, 0, 5, 5]], r'x=1e\+09, far outside of the width 64'),
        ([[0, 0, 9, 0, 5, -1e6]], r'y=-1e\+06, far outside of the height 48'),
        # It would fill these in with what lay in the memory.
        (dict(size=[48, 64]), "without 'counts'"),
        (rle('abc', 64, 48), 'RLE of size'),
        (rle([5, 5]), 'add up'),
        (rle('abc'), 'add up'),
        (rle('\u00e9'), 'add up'),
        (rle('o' * 30), 'add up'),
        (rle([-5, HEIGHT * WIDTH + 5]), 'add up'),
        (rle([0.5, HEIGHT * WIDTH - 0.5]), 'whole'),
    ],
)
def test_masks(spoil, mask, words):
    change = dict(segmentation=mask)
    (example,) = only(spoil(change), 'error', 'without a proper mask')
    assert 'annotation 10 of 1.jpg' in example
    assert re.search(words, example)
    # A detector of boxes does not read them.
    assert found(spoil(change, masks=False)) == {}


def test_what_lacks_instances(spoil):
    def add_star(content):
        content['categories'].append(dict(id=5, name='star'))

    def empty_first(content):
        del content['annotations'][:2]

    star = (*CLASSES, 'star')
    for change, classes, words, example in (
        (None, CLASSES[:2], 'leaves out', 'ring: 2 annotations are not used'),
        (None, star, 'not in the json', 'star'),
        (add_star, star, 'class without an annotation', 'star'),
        (empty_first, CLASSES, 'image without an annotation', '1.jpg'),
    ):
        config = spoil(change, metainfo=dict(classes=classes))
        assert only(config, 'warning', words) == [example]


def test_categories_that_shift_the_labels(spoil):
    def drop_first(content):
        del content['categories'][0]
        kept = [a for a in content['annotations'] if a['category_id'] != 7]
        content['annotations'] = kept

    config = spoil(drop_first)
    assert errors(config) == ['triangle counts as circle', 'ring counts as triangle']
    assert found(config)['warning', 'class that is not in the json'] == ['circle']
    config = spoil(lambda content: content['categories'].reverse())
    assert errors(config) == ['ring counts as circle', 'circle counts as ring']
    config = spoil(lambda c: c['categories'].append(dict(id=1, name='ring')))
    assert errors(config) == ['ring counts as label 3']


def test_misspelt_classes(spoil):
    kinds = found(spoil(metainfo=dict(classes=('circle', 'triangle', 'rnig'))))
    said = 'the json has ring, which metainfo lacks, and metainfo has rnig, which the '
    assert ('error', f'{said}json lacks: a misspelt name?') in kinds
    assert ['ring: 2 annotations are not used'] in kinds.values()
    assert ['rnig'] in kinds.values()


def test_nothing_left_by_the_filter_and_no_folder(spoil):
    config = spoil(filter_cfg=dict(filter_empty_gt=True, min_size=49))
    left = ('filter_empty_gt=True alone leaves 3', 'min_size=49 alone leaves 0')
    only(config, 'error', 'filter_cfg leaves none of the 3 images', *left)
    # mmdet filters no data for testing.
    config.train_dataloader.dataset.test_mode = True
    assert found(config) == {}
    config = spoil(data_prefix=dict(img='photos/'))
    only(config, 'error', 'image folder', 'photos', 'data_prefix.img')
    # Segmentation's `img_path`: mmdet asks for `img`.
    kinds = found(spoil(data_prefix=dict(img_path='images/')))
    assert ('error', 'image folder None does not exist (data_prefix.img)') in kinds


def test_whole_paths_in_the_json(spoil, tmp_path):
    def change(content):
        for image in content['images']:
            image['file_name'] = str(tmp_path / 'images' / image['file_name'])

    files = dict(ann_file=str(tmp_path / 'all.json'), data_prefix=dict(img=''))
    config = spoil(change, data_root=None, **files)
    assert found(config) == {}
    missing = tmp_path / 'images' / '1.jpg'
    missing.unlink()
    assert only(config, 'error', 'image does not exist') == [str(missing)]


def test_files_that_are_missing_broken_or_of_another_size(spoil, tmp_path):
    config = spoil()
    images = tmp_path / 'images'
    (images / '1.jpg').unlink()
    (images / '2.jpg').write_bytes(b'no jpeg')
    write_image(images / '3.jpg', 48, 64)
    missing, broken, resized = sorted(
        (examples, text) for (_, text), examples in found(config).items()
    )
    assert missing[0] == ['1.jpg'] and 'does not exist in' in missing[1]
    assert broken[0][0].startswith('2.jpg') and 'cannot be read' in broken[1]
    assert resized[0] == ['3.jpg: 48x64 px, in the json 64x48']
    for name in ('2.jpg', '3.jpg'):
        (images / name).unlink()
    title, kind, *names, rest = check(config, workers=2, shown=2).lines()
    assert title.startswith('training data (CocoDataset): 3 images, 6 annotations: 1 ')
    assert kind.startswith('  error: image does not exist') and kind.endswith('(3)')
    assert [name.strip() for name in names] == ['1.jpg', '2.jpg']
    assert rest.strip() == '... and 1 more'
