"""Sharded training by the real script: checkpoints whole or not at all, resumed."""

import pytest

from mmlit import read_checkpoint
from support.running_tools import ROOT, finish, launch, write_tiny

FSDP = ROOT / 'configs/detection/mask-rcnn_lit-b_fpn_fsdp_1x_coco.py'


@pytest.fixture
def config(tmp_path):
    """The demo's small network and data, sharded as the config for COCO says."""
    pytest.importorskip('mmdet', reason='trains a detector of mmdet')
    path = write_tiny(tmp_path)
    own = FSDP.read_text().partition('\n_base_ = ')[2].partition('\n')[2]
    assert 'FlexibleRunner' in own and 'LITFSDPStrategy' in own
    path.write_text(path.read_text() + own)
    return path


def train(config, epochs, **popen):
    options = ('--resume', '--cfg-options', f'train_cfg.max_epochs={epochs}')
    return launch('dist_train.sh', config, 2, *options, cwd=config.parent, **popen)


def test_train_stop_and_resume(config):
    folder = config.parent / 'work_dirs' / 'config'
    finish(train(config, 1))
    assert [path.name for path in folder.glob('*.pth')] == ['epoch_1.pth']
    # What a kill in a write leaves.
    (folder / '.epoch_2.pth.part').write_bytes(b'half')
    output = finish(train(config, 2))
    assert 'resumed epoch: 1, iter: 2' in output
    # The first epoch's went once the second's was there.
    assert sorted(path.name for path in folder.glob('*epoch*')) == ['epoch_2.pth']
    checkpoint = read_checkpoint(folder / 'epoch_2.pth')
    assert checkpoint['meta']['epoch'] == 2 and checkpoint['meta']['iter'] == 4
    assert len(checkpoint['resumption']['random_states']) == 2
    assert 'backbone.stages.3.blocks.0.norm1.weight' in checkpoint['state_dict']
