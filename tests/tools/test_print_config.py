"""Flat configs: each gives what the config with its bases gives."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from support.config_helpers import CONFIGS
from support.running_tools import run, start
from support.tiny_data import TOOLS

PRINT = TOOLS / 'print_config.py'
SHAPES = CONFIGS / 'detection' / 'mask-rcnn_lit-ti_fpn_shapes.py'


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*/*.py')), ids=lambda p: p.stem)
def test_every_config(tmp_path, path):
    from mmlit_tools.print_config import flatten

    config = Config.fromfile(path)
    flat = tmp_path / 'flat.py'
    flat.write_text(flatten(config))
    assert '_base_ =' not in flat.read_text()
    assert Config.fromfile(flat).to_dict() == config.to_dict()


def test_command(tmp_path):
    out = tmp_path / 'flat.py'
    options = ('--cfg-options', 'randomness.seed=7', 'model.backbone.frozen_stages=1')
    said = run(PRINT, SHAPES, '--out', out, *options, cwd=tmp_path)
    assert 'Absolute paths in it: ' in said and f'shapes.out={CONFIGS.parent}' in said
    wanted = Config.fromfile(SHAPES)
    wanted.merge_from_dict({'randomness.seed': 7, 'model.backbone.frozen_stages': 1})
    # Anywhere else, it finds the same data.
    (tmp_path / 'elsewhere').mkdir()
    moved = Path(shutil.move(out, tmp_path / 'elsewhere'))
    assert Config.fromfile(moved).to_dict() == wanted.to_dict()
    printed = run(PRINT, SHAPES, *options, cwd=tmp_path)
    assert moved.read_text() in printed


def test_what_cannot_be_written(tmp_path):
    from mmlit_tools.print_config import flatten

    for value, words in ((float('inf'), 'NameError'), (object(), 'SyntaxError')):
        with pytest.raises(SystemExit, match=f'cannot be written flat: {words}'):
            flatten(Config({'a': value}))
    mine = tmp_path / 'mine.py'
    mine.write_text('a = 1\n')
    process = start(PRINT, SHAPES, '--out', mine, cwd=tmp_path)
    assert '--force replaces a file' in process.communicate(timeout=900)[0]
    assert process.returncode == 1
    assert mine.read_text() == 'a = 1\n'
