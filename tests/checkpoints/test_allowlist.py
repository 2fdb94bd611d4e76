"""mmengine's own checkpoints and the authors' load with `weights_only=True`."""

import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmlit import read_checkpoint
from mmlit.checkpoints import allowlist
from mmlit.checkpoints.allowlist import allow_mmengine_checkpoints
from support.attacks import Call, nothing_allowed
from support.comparison import equal
from support.toy_training import train

since_2_6 = pytest.mark.skipif(
    not allowlist.TORCH_TAKES_LISTS,
    reason='before torch 2.6 mmengine reads its checkpoints without restriction',
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work directory of a training by mmengine's Runner."""
    work_dir = tmp_path_factory.mktemp('toy')
    train(work_dir)
    return work_dir


@pytest.fixture
def cleared():
    """torch's list is empty."""
    with nothing_allowed():
        yield


@pytest.fixture
def allowed(cleared):
    """Only what mmlit adds is on torch's list; twice, as a second import would."""
    allow_mmengine_checkpoints()
    allow_mmengine_checkpoints()


@since_2_6
def test_resuming_continues(trained, tmp_path, allowed, capfd):
    shutil.copy(trained / 'epoch_1.pth', tmp_path)
    resumed = train(tmp_path, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    # Two epochs of two iterations, the first epoch's curve out of the checkpoint.
    assert (resumed.epoch, resumed.iter) == (2, 4)
    assert len(resumed.message_hub.get_scalar('train/loss').data[0]) == 4
    assert resumed.optim_wrapper.loss_scaler.get_scale() == 65536.0
    said = ''.join(capfd.readouterr())
    assert 'Epoch(train) [2][2/2]' in said and 'Epoch(train) [1]' not in said
    # What onedl-mmengine logs before it reads a file once more, without restriction.
    assert 'Falling back' not in said


@since_2_6
@pytest.mark.parametrize('module', [b'numpy.core', b'numpy._core'])
def test_every_value_arrives_under_both_numpy_names(trained, tmp_path, allowed, module):
    """numpy 1 writes `numpy.core.multiarray`, numpy 2 `numpy._core.multiarray`."""
    source, file = trained / 'epoch_2.pth', tmp_path / 'renamed.pth'
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, 'w') as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith('data.pkl'):
                name = rb'numpy\._?core(?=\.multiarray\n)'
                data, count = re.subn(name, module, data)
                assert count == 2  # _reconstruct and scalar
            new.writestr(item, data)
    safe = torch.load(file, weights_only=True)
    assert equal(safe, torch.load(source, weights_only=False))
    # The training wrote what this module claims to serve.
    info = safe['message_hub']['runtime_info']
    assert type(info['best_score']) is np.float64
    assert info['val/curve'].dtype == np.float32
    assert {'ema_state_dict', 'loss_scaler'} <= {*safe, *safe['optimizer']}
    curve = safe['message_hub']['log_scalars']['train/loss']
    assert curve.statistics('max', 4) == curve.data[0].max()
    anneal = safe['param_schedulers'][0]['anneal_func']
    assert anneal is OneCycleParamScheduler._annealing_cos
    # What was read can be written and read again.
    torch.save(safe, tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=True)
    assert equal(again, torch.load(source, weights_only=False))


@since_2_6
@pytest.mark.parametrize('code', allowlist.DTYPE_CODES)
def test_every_plain_number(tmp_path, allowed, code):
    values = np.array([[0, 1, 1], [1, 0, 1]], code)
    saved = [values, values.T, values[1, 2], values.dtype]
    torch.save(saved, tmp_path / 'numbers.pth')
    assert equal(torch.load(tmp_path / 'numbers.pth', weights_only=True), saved)


@since_2_6
def test_a_file_cannot_change_shared_objects(tmp_path, allowed, monkeypatch):
    """Neither the registry of statistics nor numpy's dtypes."""
    registry = dict(HistoryBuffer([1], [1])._statistics_methods)
    with monkeypatch.context() as patch:
        swapped = {'mean': HistoryBuffer.max}
        patch.setattr(HistoryBuffer, '_statistics_methods', swapped)
        torch.save(HistoryBuffer([1, 3], [1, 1]), tmp_path / 'swapped.pth')
    buffer = torch.load(tmp_path / 'swapped.pth', weights_only=True)
    assert HistoryBuffer._statistics_methods == registry
    assert buffer.statistics('mean') == 2

    state = (3, '>', None, ('x',), {'x': (np.dtype('f8'), 0)}, 8, 1, 63)
    by_code = Call(np.dtype, 'f8', False, True, state=state)
    for call in (by_code, Call(type(np.dtype('f8')), state=state)):
        torch.save(call, tmp_path / 'dtype.pth')
        dtype = torch.load(tmp_path / 'dtype.pth', weights_only=True)
        assert dtype is np.dtype('f8') and dtype.isnative
        assert dtype.names is None and not dtype.hasobject


def test_the_own_unpickler_reads_what_mmengine_writes(trained, monkeypatch, cleared):
    monkeypatch.setattr(allowlist, 'TORCH_TAKES_LISTS', False)
    allow_mmengine_checkpoints()
    assert torch.serialization.get_safe_globals() == []
    source = trained / 'epoch_2.pth'
    assert equal(read_checkpoint(source), torch.load(source, weights_only=False))
