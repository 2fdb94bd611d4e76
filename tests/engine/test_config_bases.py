"""`mmlit::` config bases: read after `import mmlit`, built, and trained from."""

import re
from pathlib import Path

import mmengine.registry
import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

import mmlit
from mmlit.engine.config_bases import host_scope
from mmlit_tools.shapes.dataset import ensure_shapes
from support.running_tools import run

ROOT = Path(__file__).resolve().parents[2]
RETINANET = 'detection/retinanet_lit-s_fpn_1x_coco.py'
SHAPES = 'segmentation/lit-ti_fpn_fpnhead_shapes.py'


@pytest.mark.parametrize('name', [RETINANET, SHAPES])
def test_a_base_is_the_config_of_that_name(tmp_path, name):
    file = tmp_path / 'mine.py'
    file.write_text(f"_base_ = 'mmlit::{name}'\nmodel = dict(backbone=dict(a=1))\n")
    mine, theirs = Config.fromfile(file), Config.fromfile(ROOT / 'configs' / name)
    assert mine.model.backbone.pop('a') == 1
    assert mine.model.backbone == theirs.model.backbone
    assert mine.keys() == theirs.keys()
    # From here, and not from where another mmlit is installed.
    if 'shapes' in theirs:
        assert Path(mine.data_root).resolve() == Path(theirs.data_root).resolve()


def test_mmengine_s_hub_finds_configs_and_the_authors_weights():
    config = get_config(f'mmlit::{RETINANET}', pretrained=True)
    assert config.model_path.endswith('/v2.0/retina_lit_s.pth')


def test_the_host_scope_decides():
    """Names that mmdet and mmseg share are those of the scope around `mmlit`."""
    pytest.importorskip('mmdet.models')
    pytest.importorskip('mmseg.models')
    models = mmengine.registry.MODELS
    for scope in ('mmdet', 'mmseg'):
        inside = models.switch_scope_and_registry('mmlit')
        with DefaultScope.overwrite_default_scope(scope), inside as registry:
            assert registry.scope == 'mmlit' and host_scope() == scope
            assert registry.get('FPN').__module__.startswith(f'{scope}.')
            assert registry.get('LIT') is mmlit.LIT
            assert registry.get('NoSuchModel') is None


@pytest.mark.slow
def test_a_stock_tool_with_mmlit_imported_by_an_earlier_base(tmp_path):
    """What the documentation says to write for tools that do not import mmlit."""
    mmseg = pytest.importorskip('mmseg')
    data = tmp_path / 'shapes'
    ensure_shapes(out=str(data), train=4, val=2, size=64, seed=0)
    loaders = '\n'.join(
        f'{split}_dataloader = dict(dataset=dict(data_root={str(data)!r}))'
        for split in ('train', 'val', 'test')
    )
    (tmp_path / 'import_mmlit.py').write_text("__import__('mmlit')\n")
    mine = tmp_path / 'mine.py'
    mine.write_text(
        f"_base_ = ['import_mmlit.py', 'mmlit::{SHAPES}']\n{loaders}\n"
        'train_cfg = dict(max_epochs=1)\n'
    )
    tool = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    output = run(tool, mine, '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert 'Epoch(train) [1][1/1]' in output
    # The scope is known: no registry was missed and replaced by a guess.
    assert 'Failed to search registry' not in output
    assert 'is not installed' not in output
    assert re.search(r'Epoch\(val\) \[1\].* mIoU: \d', output)
