"""Flat configs: each gives what the config with its bases gives."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from mmlit.errors import UserError
from mmlit_tools.print_config import flatten, main
from support.config_helpers import CONFIGS
from support.running_tools import stopped

SHAPES = CONFIGS / 'detection' / 'mask-rcnn_lit-ti_fpn_shapes.py'


@pytest.mark.slow
@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*/*.py')), ids=lambda p: p.stem)
def test_every_config(tmp_path, path):
    config = Config.fromfile(path)
    flat = tmp_path / 'flat.py'
    flat.write_text(flatten(config))
    assert '_base_ =' not in flat.read_text()
    assert Config.fromfile(flat).to_dict() == config.to_dict()


def test_command(tmp_path, capsys):
    out = tmp_path / 'flat.py'
    options = ['--cfg-options', 'randomness.seed=7', 'model.backbone.frozen_stages=1']
    main([str(SHAPES), '--out', str(out), *options])
    said = capsys.readouterr().err
    assert 'Absolute paths in it: ' in said and f'shapes.out={CONFIGS.parent}' in said
    wanted = Config.fromfile(SHAPES)
    wanted.merge_from_dict({'randomness.seed': 7, 'model.backbone.frozen_stages': 1})
    # Anywhere else, it finds the same data.
    (tmp_path / 'elsewhere').mkdir()
    moved = Path(shutil.move(out, tmp_path / 'elsewhere'))
    assert Config.fromfile(moved).to_dict() == wanted.to_dict()
    small = tmp_path / 'small.py'
    small.write_text('_base_ = []\nx = 1\ny = dict(a=x)\n')
    main([str(small), '--cfg-options', 'y.a=2'])
    assert capsys.readouterr().out == 'x = 1\ny = dict(a=2)\n'


def test_what_cannot_be_written(tmp_path):
    for value, words in ((float('inf'), 'NameError'), (object(), 'SyntaxError')):
        with pytest.raises(UserError, match=f'has no flat form: {words}'):
            flatten(Config({'a': value}))
    mine = tmp_path / 'mine.py'
    mine.write_text('a = 1\n')
    assert '--force replaces it' in stopped(main, SHAPES, '--out', mine)
    assert mine.read_text() == 'a = 1\n'
