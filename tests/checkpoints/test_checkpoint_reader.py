"""Checkpoints are read without running anything of them.

Every test of what is read or refused runs twice: by torch's own safe reading, and by
the unpickler that stands in for it before torch 2.6.
"""

import argparse
import builtins
import errno
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmlit import read_checkpoint
from mmlit.checkpoints import reader as checkpoint_reader
from mmlit.checkpoints.strict_pickle import LITERALS
from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError

HAS_SAFE_GLOBALS = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6)


@pytest.fixture(params=['torch', 'own'])
def way(request, monkeypatch):
    """Read by torch's safe reading, or by the unpickler for older torch."""
    if request.param == 'torch' and not HAS_SAFE_GLOBALS:
        pytest.skip('torch has no named safe globals before 2.6')
    by_torch = request.param == 'torch'
    monkeypatch.setattr(checkpoint_reader, '_SINCE_TORCH_2_6', by_torch)
    return request.param


@pytest.fixture
def no_yacs(monkeypatch):
    """Make `import yacs` fail, installed or not."""
    for name in ('yacs', 'yacs.config'):
        monkeypatch.setitem(sys.modules, name, None)


class Call:
    """Pickles as the call `function(*arguments)`, with an optional state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.reduced


def save_classifier(path, monkeypatch):
    """A file as the authors' classification code writes it: flags beside weights."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    with monkeypatch.context() as patch:
        yacs = types.ModuleType('yacs.config')
        yacs.CfgNode = CfgNode
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', yacs)
        config = CfgNode(MODEL=CfgNode(TYPE='lit'), OUTPUT='')
        config.__dict__.update(__immutable__=True, __deprecated_keys__={'old'})
        args = argparse.Namespace(model='lit_ti', betas=(0.9, 0.999))
        weights = {'patch_embed.proj.weight': torch.ones(2, 3)}
        torch.save({'model': weights, 'config': config, 'args': args}, path)
    return path


def test_flags_beside_the_weights_arrive_as_data(tmp_path, way, no_yacs, monkeypatch):
    path = save_classifier(tmp_path / 'lit_s.pth', monkeypatch)
    found = read_checkpoint(path)
    assert found['config'] == {'MODEL': {'TYPE': 'lit'}, 'OUTPUT': ''}
    assert type(found['config']) is OrderedDict
    assert found['args'].model == 'lit_ti' and found['args'].betas == (0.9, 0.999)
    assert type(found['args']).__module__ == 'mmlit.checkpoints.strict_pickle'
    assert repr(found['args']).startswith("SavedNamespace(model='lit_ti'")
    assert torch.equal(found['model']['patch_embed.proj.weight'], torch.ones(2, 3))
    # Saved again it depends on nothing of ours, and loads again.
    torch.save(found, tmp_path / 'again.pth')
    assert b'mmlit' not in (tmp_path / 'again.pth').read_bytes()
    assert read_checkpoint(tmp_path / 'again.pth')['args'].model == 'lit_ti'


@pytest.mark.parametrize('family', ['absolute', 'relative'])
def test_the_authors_classifiers_arrive_as_data(golden_root, family, way, no_yacs):
    found = read_checkpoint(golden_root / f'{family}_micro_imagenet.pth')
    for name, value in found.items():
        assert type(value).__module__.partition('.')[0] in (
            'builtins',
            'collections',
            'mmlit',
        ), name
    assert len(found['model']) > 50
    assert all(type(value) is torch.Tensor for value in found['model'].values())


def test_mmengines_own_checkpoints_are_read(tmp_path, way):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    state = nn.Linear(2, 2).state_dict()
    saved = {'state_dict': state, 'message_hub': {'loss': buffer, 'n': np.float64(3)}}
    torch.save(saved, tmp_path / 'epoch_1.pth')
    found = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert found['message_hub']['loss'].mean() == 1.5
    assert found['message_hub']['n'] == 3
    assert torch.equal(found['state_dict']['weight'], state['weight'])


def attacks(marker):
    touch = f'touch {marker}'
    run = Call(os.system, touch)
    reach = Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__globals__')
    smuggler = argparse.Namespace(innocent=1)
    smuggler.payload = run
    slots = argparse.Namespace()
    config = OrderedDict(a=1)
    config.payload = run
    return {
        'os.system': run,
        'eval': Call(eval, f'open({str(marker)!r}, "w")'),
        'exec': Call(exec, f'open({str(marker)!r}, "w")'),
        'import': Call(builtins.__import__, 'this'),
        'subprocess': Call(subprocess.call, ['touch', str(marker)]),
        'getattr chain': Call(getattr, reach, 'get'),
        'getattr of a class': Call(getattr, HistoryBuffer, 'update'),
        'nested pickle': Call(pickle.loads, pickle.dumps(run)),
        'smuggling Namespace': smuggler,
        'call of Namespace': Call(argparse.Namespace, 1),
        'class in Namespace': Call(argparse.Namespace, state={'__class__': 1}),
        'slots of Namespace': Call(argparse.Namespace, state=(None, {'a': 1})),
        'state that is a call': Call(argparse.Namespace, state=run),
        'attribute of a dict': config,
        'call of a method': Call(slots.__eq__, 1),
        'unsafe storage': Call(torch.storage._load_from_bytes, pickle.dumps(run)),
        'function': os.getcwd,
        'class': argparse.ArgumentParser,
    }


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('name', attacks(''))
def test_anything_else_is_refused_and_nothing_runs(tmp_path, way, name, zipped):
    marker, path = tmp_path / 'ran', tmp_path / 'lit_s.pth'
    saved = {'model': {'a': torch.ones(1)}, 'config': attacks(marker)[name]}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f'{path} is refused: it ')
    assert 'nothing in it was run.' in str(error.value)
    assert len(str(error.value)) < 1000
    assert isinstance(error.value, pickle.UnpicklingError)
    assert not marker.exists()


def test_the_attacks_are_attacks(tmp_path):
    """Without protection they run: the test above would notice."""
    for name in ('os.system', 'eval', 'smuggling Namespace', 'nested pickle'):
        marker = tmp_path / name.replace(' ', '-')
        torch.save(attacks(marker)[name], tmp_path / 'evil.pth')
        torch.load(tmp_path / 'evil.pth', weights_only=False)
        assert marker.exists(), name


def test_a_refusal_names_what_was_asked_for(tmp_path, way):
    for function, name in ((os.system, 'posix.system'), (eval, 'builtins.eval')):
        torch.save(Call(function, '1'), tmp_path / 'evil.pth')
        with pytest.raises(UnsafeCheckpointError, match=f'it asks for {name}, which'):
            read_checkpoint(tmp_path / 'evil.pth')


def damaged(name, whole):
    return {
        'empty': b'',
        'web page': b'\n<!DOCTYPE html><html><title>404</title></html>',
        'lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
        'text': b'{"model": 1}',
        'protocol 0': b"cposix\nsystem\n(S'touch ran'\ntR.",
        'other pickle': pickle.dumps({'model': 1}, 2),
        'head': whole[:60],
        'half': whole[: len(whole) // 2],
        'tail': whole[:-9],
    }[name]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('empty', 'is empty: the download or copy failed'),
        ('web page', 'is not a checkpoint: it looks like a web page; the download'),
        ('lfs', 'is not a checkpoint: it is a Git LFS pointer'),
        ('text', "torch.save writes no file that begins with b'"),
        ('protocol 0', "torch.save writes no file that begins with b'cposix"),
        ('other pickle', 'is cut off, damaged or no file of torch.save'),
        ('head', 'is cut off, damaged or no file of torch.save'),
        ('half', 'is cut off, damaged or no file of torch.save'),
        ('tail', 'is cut off, damaged or no file of torch.save'),
    ],
)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, way, name, message, zipped):
    path = tmp_path / 'lit_s.pth'
    state = {'model': {'a': torch.ones(3000)}}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(damaged(name, path.read_bytes()))
    with pytest.raises(BrokenCheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_other_wrong_files(tmp_path, way):
    with pytest.raises(FileNotFoundError, match='missing.pth can not be found .seen f'):
        read_checkpoint(tmp_path / 'missing.pth')
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    with pytest.raises(BrokenCheckpointError, match='holds a list and no checkpoint'):
        read_checkpoint(tmp_path / 'list.pth')
    torch.save({}, tmp_path / 'script.pth')
    with zipfile.ZipFile(tmp_path / 'script.pth', 'a') as archive:
        archive.writestr('script/constants.pkl', b'')
    with pytest.raises(UnsafeCheckpointError, match='a network as TorchScript'):
        read_checkpoint(tmp_path / 'script.pth')


@pytest.mark.skipif(not HAS_SAFE_GLOBALS, reason='nothing is allowed before torch 2.6')
def test_a_pickle_is_never_read_as_safetensors(tmp_path, way):
    path, marker = tmp_path / 'evil.safetensors', tmp_path / 'ran'
    torch.save(attacks(marker)['os.system'], path)
    with pytest.raises(BrokenCheckpointError, match='evil.safetensors '):
        read_checkpoint(path)
    assert not marker.exists()


def test_safetensors_are_read_by_their_package(tmp_path, way, monkeypatch):
    path = tmp_path / 'lit.safetensors'
    path.write_bytes(b'content')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(BrokenCheckpointError, match='pip install safetensors$'):
        read_checkpoint(path)

    def load_file(name, device):
        if Path(name).read_bytes() != b'content':
            raise Exception('Error while deserializing header')
        return {'a': torch.ones(2, device=device)}

    package = types.ModuleType('safetensors.torch')
    package.load_file = load_file
    monkeypatch.setitem(sys.modules, 'safetensors', types.ModuleType('safetensors'))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', package)
    for map_location in ('cpu', torch.device('cpu'), lambda storage, _: storage):
        found = read_checkpoint(path, map_location)
        assert torch.equal(found['a'], torch.ones(2))
        assert found._metadata['']['source'] == 'lit.safetensors'
    path.write_bytes(b'other')
    with pytest.raises(BrokenCheckpointError, match='cut off, .*deserializing'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'fault', [OSError(errno.EIO, 'Input/output error'), MemoryError()], ids=repr
)
def test_a_fault_of_the_machine_is_none_of_the_file(tmp_path, way, monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth')
    monkeypatch.setattr(checkpoint_reader, '_load', fail)
    with pytest.raises(type(fault)) as caught:
        read_checkpoint(tmp_path / 'a.pth')
    assert caught.value is fault


def test_only_our_reads_allow_the_authors_types(tmp_path):
    torch.save({'args': argparse.Namespace(a=1)}, tmp_path / 'file.pth')
    assert read_checkpoint(tmp_path / 'file.pth')['args'].a == 1
    assert not set(LITERALS) & set(torch.serialization.get_safe_globals())
    with pytest.raises(pickle.UnpicklingError, match='argparse.Namespace'):
        torch.load(tmp_path / 'file.pth', weights_only=True)
