"""Pictures of a config's training data: labels are in them, and where they belong."""

import numpy as np
import pytest
from PIL import Image

from mmlit_tools.data.draw import main
from support.tiny_data import coco_config, masks_config, write_coco, write_masks

pytest.importorskip('mmdet', reason='draws with the visualizers of mmdet')
pytest.importorskip('mmseg', reason='draws with the visualizers of mmseg')


def draw(config, folder, number, step=None, **visualizer):
    if step:
        config.train_dataloader.dataset.pipeline.append(dict(type=step))
        config.visualizer = visualizer
    path = folder.parent / 'config.py'
    path.parent.mkdir(exist_ok=True)
    config.dump(path)
    main([str(path), str(folder), '--number', str(number)])
    paths = sorted(folder.iterdir())
    return [path.name for path in paths], np.asarray(Image.open(paths[0])).astype(int)


def test_boxes_and_outlines(tmp_path, capsys):
    write_coco(tmp_path)
    step = dict(step='PackDetInputs', type='DetLocalVisualizer')
    names, picture = draw(coco_config(tmp_path), tmp_path / 'out', number=2, **step)
    assert names == ['0001_1.png', '0002_2.png']
    assert f'2 pictures are in {tmp_path / "out"}' in capsys.readouterr().out
    # The image is all of one grey; its objects lie in the upper left.
    assert picture.shape == (48, 64, 3)
    assert picture[:20, :30].std() > 10 * picture[30:, 40:].std()


def test_masks(tmp_path):
    write_masks(tmp_path, ids=[1] * 32 + [0] * 32)
    config = masks_config(tmp_path)
    palette = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    config.train_dataloader.dataset.metainfo.palette = palette
    step = dict(step='PackSegInputs', type='SegLocalVisualizer', alpha=0.5)
    names, picture = draw(config, tmp_path / 'new' / 'out', number=9, **step)
    assert names == ['0001_a.png', '0002_b.png']
    red, green, blue = picture[5, 5]  # far from the name of the class
    assert red > 100 > 20 > max(green, blue)
    assert picture[5, 60].max() < 20


def test_nothing_to_draw(tmp_path):
    with pytest.raises(SystemExit, match='no visualizer to draw with'):
        draw(coco_config(tmp_path), tmp_path / 'out', number=1)
    assert not (tmp_path / 'out').exists()
