"""Checkpoints are read without running anything of them, in either `way`."""

import argparse
import errno
import os
import pickle
import sys
import types
from collections import OrderedDict
from unittest import mock

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmlit import LIT, read_checkpoint
from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError
from support.attacks import RAW, Call, archive, attacks, nothing_run, text
from support.official_files import ABSOLUTE_MICRO


def test_flags_beside_the_weights_arrive_as_data(tmp_path, way):
    """As in the authors' classifiers; yacs is not needed."""
    node = b'cyacs.config\nCfgNode\n)\x81' + text('TYPE') + text('lit') + b's'
    node += b'}' + text('__immutable__') + b'\x88sb'
    path = tmp_path / 'lit_s.pth'
    path.write_bytes(archive(b'\x80\x02}' + text('config') + node + b's.'))
    config = read_checkpoint(path)['config']
    assert config == {'TYPE': 'lit'} and type(config) is OrderedDict
    args = argparse.Namespace(model='lit_ti', betas=(0.9, 0.999))
    torch.save({'model': {'a': torch.ones(2, 3)}, 'args': args, 'config': config}, path)
    found = read_checkpoint(path)
    assert found['args'] == args and found['config'] == config
    assert torch.equal(found['model']['a'], torch.ones(2, 3))


@pytest.mark.parametrize('family', ['absolute', 'relative'])
def test_the_authors_classifiers_arrive_as_data(golden_root, family, way, monkeypatch):
    monkeypatch.setitem(sys.modules, 'yacs.config', None)
    path = golden_root / f'{family}_micro_imagenet.pth'
    for found in (read_checkpoint(path), CheckpointLoader.load_checkpoint(str(path))):
        kinds = {type(value) for value in found.values()}
        assert kinds <= {dict, OrderedDict, argparse.Namespace, int, float}
        assert len(found['model']) > 50
        assert all(type(value) is torch.Tensor for value in found['model'].values())


@pytest.mark.parametrize('wrapped', ['state_dict', 'model', None])
def test_mmengine_loads_weights(server, tmp_path, wrapped):
    state = LIT(ABSOLUTE_MICRO).state_dict()
    torch.save({wrapped: state, 'epoch': 3} if wrapped else state, tmp_path / 'a.pth')
    server.files['a.pth'] = (tmp_path / 'a.pth').read_bytes()
    for path in (f'{tmp_path}/a.pth', f'{server.url}/a.pth'):
        net = LIT(ABSOLUTE_MICRO, init_cfg=dict(type='Pretrained', checkpoint=path))
        net.init_weights()
        assert all(torch.equal(net.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize('name', attacks(''))
def test_an_attack_is_refused_and_nothing_runs(tmp_path, way, name):
    marker, path = tmp_path / 'ran', tmp_path / 'lit_s.pth'
    saved = {'model': {'a': torch.ones(1)}, 'config': attacks(marker)[name]}
    for zipped in (True, False):
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafeCheckpointError) as error, nothing_run():
            read_checkpoint(path)
        assert not marker.exists()
        assert str(error.value).startswith(f'{path} is refused: it ')
        assert 'nothing in it was run.' in str(error.value)
        assert len(str(error.value)) < 1000
        assert isinstance(error.value, pickle.UnpicklingError)


@pytest.mark.parametrize('name', RAW)
def test_a_pickle_that_no_pickler_writes_is_refused(tmp_path, way, name):
    path = tmp_path / 'lit_s.pth'
    path.write_bytes(archive(b'\x80\x02' + RAW[name]))
    with pytest.raises(UnsafeCheckpointError), nothing_run():
        read_checkpoint(path)
    assert '__setstate__' not in vars(argparse.Namespace)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


@pytest.mark.parametrize('by', ['local', 'http'])
@pytest.mark.parametrize('name', attacks(''))
def test_mmengine_refuses_it_as_well(tmp_path, server, name, by):
    marker, path = tmp_path / 'ran', tmp_path / 'lit_s.pth'
    torch.save({'state_dict': {'weight': attacks(marker)[name]}}, path)
    server.files['lit_s.pth'] = path.read_bytes()
    where = f'{server.url}/lit_s.pth' if by == 'http' else str(path)
    net = LIT(ABSOLUTE_MICRO, init_cfg=dict(type='Pretrained', checkpoint=where))
    for load in (lambda: load_checkpoint(net, where), net.init_weights):
        with pytest.raises(pickle.UnpicklingError), nothing_run():
            load()
        assert not marker.exists()


def test_the_attacks_are_attacks(tmp_path):
    """Without protection they run: the tests above would notice."""
    for name in ('os.system', 'eval', 'in a Namespace', 'nested pickle'):
        marker = tmp_path / name.replace(' ', '-')
        torch.save(attacks(marker)[name], tmp_path / 'evil.pth')
        torch.load(tmp_path / 'evil.pth', weights_only=False)
        assert marker.exists(), name


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_refusal_names_what_was_asked_for(tmp_path, way, zipped):
    path = tmp_path / 'evil.pth'
    for function, name in ((os.system, 'posix.system'), (eval, 'builtins.eval')):
        torch.save(Call(function, '1'), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafeCheckpointError, match=f'it asks for {name}, which'):
            read_checkpoint(path)


DAMAGE = 'is cut off, damaged or no file of torch.save'
DAMAGED = {
    'empty': (b'', 'is empty: the download or copy failed'),
    'web page': (b'\n<!DOCTYPE html><html>', 'looks like a web page; the download'),
    'lfs': (b'version https://git-lfs.github.com/spec/v1\n', 'it is a Git LFS pointer'),
    'text': (b'{"a": 1}', "torch.save writes no file that begins with b'"),
    'protocol 0': (b"cposix\nsystem\n(S'ran'\ntR.", "file that begins with b'cposix"),
    'other pickle': (pickle.dumps({'model': 1}, 2), DAMAGE),
    # Parts of a sound file.
    'head': (slice(60), DAMAGE),
    'half': (slice(6000), DAMAGE),
    'tail': (slice(-9), DAMAGE),
}


@pytest.mark.parametrize('name', DAMAGED)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, way, name, zipped):
    path, (damage, message) = tmp_path / 'lit_s.pth', DAMAGED[name]
    state = {'model': {'a': torch.ones(3000)}}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[damage] if isinstance(damage, slice) else damage)
    with pytest.raises(BrokenCheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_other_wrong_files(tmp_path, way):
    with pytest.raises(FileNotFoundError, match='missing.pth can not be found .seen f'):
        read_checkpoint(tmp_path / 'missing.pth')
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    with pytest.raises(BrokenCheckpointError, match='holds a list and no checkpoint'):
        read_checkpoint(tmp_path / 'list.pth')
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / 'script.pth'))
    with pytest.raises((UnsafeCheckpointError, BrokenCheckpointError), match='Script'):
        read_checkpoint(tmp_path / 'script.pth')
    torch.save(attacks(tmp_path / 'ran')['os.system'], tmp_path / 'evil.safetensors')
    with pytest.raises(BrokenCheckpointError, match='evil.safetensors '):
        read_checkpoint(tmp_path / 'evil.safetensors')
    assert not (tmp_path / 'ran').exists()


def test_a_fault_of_the_machine_is_none_of_the_file(tmp_path, way, monkeypatch):
    torch.save({'a': torch.ones(1)}, tmp_path / 'a.pth')
    for fault in (OSError(errno.EIO, 'I/O'), MemoryError(), RuntimeError('no CUDA')):
        monkeypatch.setattr(torch, 'load', mock.Mock(side_effect=fault))
        with pytest.raises(type(fault)) as caught:
            read_checkpoint(tmp_path / 'a.pth')
        assert caught.value is fault


def test_safetensors_are_read_by_their_package(tmp_path, monkeypatch):
    path = tmp_path / 'lit.safetensors'
    path.touch()
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(BrokenCheckpointError, match='pip install safetensors$'):
        read_checkpoint(path)

    def load_file(name, device):
        return {'a': torch.full((2,), 1 / os.path.getsize(name), device=device)}

    package = types.SimpleNamespace(load_file=load_file)
    monkeypatch.setitem(sys.modules, 'safetensors', types.ModuleType('safetensors'))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', package)
    with pytest.raises(BrokenCheckpointError, match='cut off, .*division by zero'):
        read_checkpoint(path)
    path.write_bytes(b'x')
    for map_location in ('cpu', torch.device('cpu'), lambda storage, _: storage):
        assert torch.equal(read_checkpoint(path, map_location)['a'], torch.ones(2))
