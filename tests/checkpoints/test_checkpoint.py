"""mmengine's own checkpoints load with `weights_only=True`; nothing else gets in."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmlit.checkpoints.allowlist import allow_mmengine_checkpoints
from support.comparison import equal
from support.this_stack import only_on

TOY = Path(__file__).parents[1] / 'support' / 'toy_training.py'
SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.zeros(0).__reduce__()[0]

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 6),
    reason='before torch 2.6 mmengine reads its checkpoints without restriction',
)


def toy(*arguments):
    command = [sys.executable, TOY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work directory of a training by mmengine's Runner."""
    work_dir = tmp_path_factory.mktemp('toy')
    result = toy('train', work_dir)
    assert result.returncode == 0, result.stderr
    return work_dir


@pytest.fixture
def allowed():
    before = torch.serialization.get_safe_globals()
    allow_mmengine_checkpoints()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def edit_pickle(source, target, edit):
    """Copies a checkpoint with its pickle passed through `edit`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith('/data.pkl'):
                data = edit(data)
            new.writestr(item, data)
    return target


def test_loads_only_after_the_call(trained):
    refused = toy('load', trained)
    assert refused.returncode != 0
    assert 'UnpicklingError' in refused.stderr
    loaded = toy('load', trained, '--allow')
    assert loaded.returncode == 0, loaded.stderr
    mean = torch.load(trained / 'epoch_2.pth', weights_only=False)
    mean = mean['message_hub']['log_scalars']['train/loss'].mean()
    assert loaded.stdout.split() == ['loaded', 'HistoryBuffer', str(mean), '4']


@only_on('openmmlab', 'onedl-mmengine falls back to an unrestricted read')
def test_resume_is_refused_before_the_call(trained, tmp_path):
    shutil.copy(trained / 'epoch_1.pth', tmp_path)
    refused = toy('resume', tmp_path)
    assert refused.returncode != 0
    assert 'UnpicklingError' in refused.stderr


def test_resume_continues_after_the_call(trained, tmp_path):
    shutil.copy(trained / 'epoch_1.pth', tmp_path)
    resumed = toy('resume', tmp_path, '--allow')
    assert resumed.returncode == 0, resumed.stderr
    # What onedl-mmengine logs before it reads a file once more, without restriction.
    assert 'Falling back' not in resumed.stdout + resumed.stderr
    # Two epochs of two iterations, the first epoch's curve out of the checkpoint.
    assert resumed.stdout.splitlines()[-1] == 'done 2 4 4 65536.0'
    assert 'Epoch(train) [2][2/2]' in resumed.stdout
    assert 'Epoch(train) [1]' not in resumed.stdout
    resumed, straight = (
        torch.load(d / 'epoch_2.pth', weights_only=False) for d in (tmp_path, trained)
    )
    for key, value in straight['state_dict'].items():
        assert torch.isfinite(value).all()
        assert resumed['state_dict'][key].shape == value.shape


@pytest.mark.parametrize('module', [b'numpy.core', b'numpy._core'])
def test_every_value_arrives_under_both_numpy_names(trained, tmp_path, allowed, module):
    """numpy 1 writes `numpy.core.multiarray`, numpy 2 `numpy._core.multiarray`."""

    def rename(data):
        data, count = re.subn(rb'numpy\._?core(?=\.multiarray\n)', module, data)
        assert count == 2  # _reconstruct and scalar
        return data

    source = trained / 'epoch_2.pth'
    file = edit_pickle(source, tmp_path / 'renamed.pth', rename)
    safe = torch.load(file, weights_only=True)
    assert equal(safe, torch.load(source, weights_only=False))
    # The training wrote what this module claims to serve.
    info = safe['message_hub']['runtime_info']
    assert type(info['best_score']) is np.float64
    assert info['val/curve'].dtype == np.float32
    assert safe['optimizer']['loss_scaler']['scale'] == 65536.0
    assert 'ema_state_dict' in safe
    curve = safe['message_hub']['log_scalars']['train/loss']
    assert type(curve) is HistoryBuffer
    assert curve.statistics('max', 4) == curve.data[0].max()
    anneal = safe['param_schedulers'][0]['anneal_func']
    assert anneal is OneCycleParamScheduler._annealing_cos
    # What was read can be written and read again.
    torch.save(safe, tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=True)
    assert equal(again, torch.load(source, weights_only=False))


def test_tensors_from_a_gpu(trained, tmp_path, allowed):
    """EMA weights are saved where they were: with the location `cuda:0`."""

    def move(data):
        cpu, gpu = (b'X' + bytes([len(x), 0, 0, 0]) + x for x in (b'cpu', b'cuda:0'))
        assert data.count(cpu) == 1
        return data.replace(cpu, gpu)

    source = trained / 'epoch_2.pth'
    file = edit_pickle(source, tmp_path / 'gpu.pth', move)
    safe = torch.load(file, map_location='cpu', weights_only=True)
    assert equal(safe, torch.load(source, weights_only=False))


NUMBERS = 'bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32'


@pytest.mark.parametrize('name', [*NUMBERS.split(), 'float64'])
def test_every_plain_number(tmp_path, allowed, name):
    values = np.array([[0, 1, 1], [1, 0, 1]], name)
    saved = [values, values.T, values[1, 2]]
    torch.save(saved, tmp_path / 'numbers.pth')
    assert equal(torch.load(tmp_path / 'numbers.pth', weights_only=True), saved)


WORKAROUND = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': (
        OneCycleParamScheduler
    ),
    'builtins.getattr': getattr,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    f'{RECONSTRUCT.__module__}._reconstruct': RECONSTRUCT,
    f'{SCALAR.__module__}.scalar': SCALAR,
}


@pytest.mark.parametrize('name', WORKAROUND)
def test_beside_the_usual_workaround(trained, tmp_path, allowed, name):
    """Users add the real objects to the list; torch then picks either, at random."""
    pairs = [x for x in torch.serialization.get_safe_globals() if type(x) is tuple]
    ours = {name: value for value, name in pairs}
    assert name in ours
    torch.serialization.clear_safe_globals()
    mixed = {**ours, name: WORKAROUND[name]}.items()
    torch.serialization.add_safe_globals([(value, key) for key, value in mixed])
    source = trained / 'epoch_2.pth'
    safe = torch.load(source, weights_only=True)
    curve = safe['message_hub']['log_scalars']['train/loss']
    assert [type(array) for array in curve.data] == [np.ndarray, np.ndarray]
    torch.save(safe, tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=False)
    assert equal(again, torch.load(source, weights_only=False))


def test_nothing_is_allowed_before_torch_2_6(monkeypatch, allowed):
    torch.serialization.clear_safe_globals()
    monkeypatch.setattr(torch, '__version__', '2.5.1+cu121')
    allow_mmengine_checkpoints()
    assert torch.serialization.get_safe_globals() == []
