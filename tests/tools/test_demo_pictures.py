"""The demo's pictures: what is read for them, and what is seen in them."""

import cv2
import numpy as np
import pytest

from mmlit_tools.demo import detection, pictures, records, segmentation
from support.demo_helpers import write_label_maps, write_results


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


def test_curves_are_drawn_with_much_little_and_no_history(tmp_path):
    losses = [(i / 10, 2 - i / 100) for i in range(1, 100)]
    aps = [(e, e / 20) for e in range(1, 10)]
    little = records.History([(0.5, 2.0)], {'one': [(1, 0.0)], 'other': [(1, 0.1)]})
    much = records.History(losses, {'one': aps, 'other': aps})
    inks = []
    for history in (records.History(), little, much):
        path = tmp_path / f'{len(inks)}.png'
        pictures.draw_history(history, 'an axis', 0.4, 'a title', path)
        drawn = cv2.imread(str(path))
        assert drawn.shape == (495, 1320, 3)
        inks.append(near(drawn, pictures.COLOURS[5]) + near(drawn, pictures.COLOURS[6]))
    assert inks[0] < inks[1] < inks[2]


def test_label_maps_are_drawn_but_for_the_background(tmp_path):
    truth, found = np.zeros((2, 80, 80), int)
    truth[20:60, 30:70], found[20:60, 30:70] = 2, 3
    pair = pictures.Comparison(BLACK, *map(segmentation.LabelMap, (truth, found)))
    pictures.draw_comparisons([pair], 'a title', tmp_path / 'drawn.png')
    drawn = cv2.imread(str(tmp_path / 'drawn.png'))
    left, right, *_ = np.array_split(drawn, 4, axis=1)
    triangle, ring = pictures.COLOURS[1:3]
    assert near(left, triangle) > 300 and near(left, ring) == 0
    assert near(right, ring) > 300 and near(right, triangle) == 0
    # Tinted inside, black outside: the background has no colour of its own.
    assert near(left, '#000000', tolerance=2) > 0.3 * left.shape[0] * left.shape[1]
