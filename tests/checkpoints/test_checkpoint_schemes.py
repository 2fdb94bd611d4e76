"""mmengine reads local files and URLs by our reader, whoever asks it to."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmlit import LIT, read_checkpoint, register_checkpoint_schemes
from mmlit.errors import UnsafeCheckpointError

URL = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_s.pth'
ARCH = dict(
    embed_dims=(8, 8, 16, 16),
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    mlp_ratios=(1, 1, 1, 1),
    pos_embed='absolute',
    norm_eps=1e-6,
    drop_path_rate=0.0,
)


class Touch:
    """Runs `touch marker` when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's download cache, empty, with every way to the network closed."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch home'))

    def no_network(*args, **kwargs):
        raise AssertionError('the network was asked')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    monkeypatch.setattr(torch.hub, 'urlopen', no_network)
    folder = tmp_path / 'torch home' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


class Probe(BaseModule):
    """Notes the metadata that it is loaded with."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen = []

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        self.seen.append(local_metadata.get('source'))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Probe()


@pytest.mark.parametrize('path', ['file', URL], ids=['local', 'url'])
@pytest.mark.parametrize('by', ['load_checkpoint', 'init_cfg', 'loader'])
def test_code_in_a_file_is_refused(tmp_path, cache, by, path):
    marker, file = tmp_path / 'ran', cache / 'lit_s.pth'
    path = str(file) if path == 'file' else path
    torch.save({'state_dict': {'weight': Touch(marker)}}, file)
    with pytest.raises(UnsafeCheckpointError, match='posix.system') as error:
        if by == 'init_cfg':
            LIT(ARCH, init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
        elif by == 'loader':
            CheckpointLoader.load_checkpoint(path, 'cpu')
        else:
            load_checkpoint(Probe(), path)
    assert str(file) in str(error.value)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), 'the file is harmless: the test shows nothing'


@pytest.mark.parametrize('path', ['file', URL], ids=['local', 'url'])
def test_weights_are_read_from_files_and_the_download_cache(cache, path):
    file = cache / 'lit_s.pth'
    path = str(file) if path == 'file' else path
    model = LIT(ARCH)
    torch.save({'state_dict': model.state_dict(), 'meta': {'epoch': 3}}, file)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    other = LIT(ARCH, init_cfg=init_cfg)
    other.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert CheckpointLoader.load_checkpoint(path)['meta'] == {'epoch': 3}


def test_what_is_no_dict_is_read_for_mmengine(cache):
    torch.save([1, 2], cache / 'list.pth')
    assert CheckpointLoader.load_checkpoint(str(cache / 'list.pth'), 'cpu') == [1, 2]


@pytest.mark.parametrize('wrapped', ['state_dict', 'model', None])
def test_the_network_learns_the_name_of_the_file(cache, wrapped):
    state = OrderedDict(weight=torch.ones(2))
    state._metadata = OrderedDict({'': {'version': 7}})
    saved = {wrapped: state, 'epoch': 1} if wrapped else state
    torch.save(saved, cache / 'lit_s.pth')
    probe = Probe()
    load_checkpoint(probe, URL)
    assert probe.seen == ['lit_s.pth']
    # mmengine does not unwrap `model`: that is up to LIT.
    assert torch.equal(probe.weight.data, torch.full((2,), float(wrapped != 'model')))
    found = read_checkpoint(cache / 'lit_s.pth')
    metadata = (found[wrapped] if wrapped else found)._metadata
    assert metadata[''] == {'version': 7, 'source': 'lit_s.pth'}


@pytest.mark.parametrize('module', ['', 'module.'])
@pytest.mark.parametrize(
    'first',
    [
        'patch_embed.proj.weight',
        'patch_embed1.proj.weight',
        'stages.0.patch_embed.proj.weight',
    ],
)
def test_a_backbone_learns_the_name_of_the_file(cache, first, module):
    state = {
        f'{module}backbone.{first}': torch.zeros(1),
        f'{module}backbone.weight': torch.ones(2),
        f'{module}neck.weight': torch.ones(2),
    }
    torch.save({'state_dict': state}, cache / 'mask_rcnn_lit_s.pth')
    detector = Detector()
    load_checkpoint(detector, str(cache / 'mask_rcnn_lit_s.pth'))
    assert detector.backbone.seen == ['mask_rcnn_lit_s.pth']
    assert detector.backbone.weight.sum() == 2


@pytest.mark.parametrize('name', ['backbone', 'student.backbone', 'a.b'])
def test_torch_finds_it_too(cache, name):
    torch.save({f'{name}.patch_embed.proj.weight': torch.zeros(1)}, cache / 'a.pth')
    found = read_checkpoint(cache / 'a.pth')
    assert found._metadata[name] == {'source': 'a.pth'}
    detector = Detector()
    detector.load_state_dict(found, strict=False)
    assert detector.backbone.seen == ['a.pth']


def with_attributes(names):
    """A state dict to be saved with attributes of its own."""

    class State:
        def __reduce__(self):
            items = iter([('weight', torch.ones(2))])
            return OrderedDict, (), dict.fromkeys(names, 1), None, items

    return {'state_dict': State()}


def test_a_file_cannot_bring_metadata_for_the_state_dict(cache):
    torch.save(with_attributes(['_metadata', 'mine']), cache / 'lit_s.pth')
    probe = Probe()
    load_checkpoint(probe, URL)
    assert probe.weight.sum() == 2 and probe.seen == ['lit_s.pth']


@pytest.mark.parametrize('name', ['keys', 'items', 'get', '__class__'])
def test_a_file_cannot_bring_methods_for_the_state_dict(cache, name):
    torch.save(with_attributes(['_metadata', name]), cache / 'lit_s.pth')
    with pytest.raises(UnsafeCheckpointError, match='a dict with attributes of its'):
        load_checkpoint(Probe(), URL)


def test_other_schemes_stay_mmengines():
    register_checkpoint_schemes()
    for path in ('s3://a', 'openmmlab://a', 'torchvision://a', 'mmcls://a', 'pavi://a'):
        loader = CheckpointLoader._get_checkpoint_loader(path)
        assert loader.__module__ == 'mmengine.runner.checkpoint', path
    for path in ('a.pth', '/a/b', 'http://a', 'https://a', 'C:\\a'):
        loader = CheckpointLoader._get_checkpoint_loader(path)
        assert loader.__module__ == 'mmlit.checkpoints.http_loader', path
        assert loader.__name__[:10] == 'load_from_'  # mmengine logs the rest


def test_a_loader_of_ones_own_replaces_ours(tmp_path, monkeypatch):
    """The documented way to go on reading a trusted file of another kind."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

    @CheckpointLoader.register_scheme('trusted://')
    def load_from_trusted(path, map_location=None):
        path = path[len('trusted://') :]
        return torch.load(path, map_location, weights_only=False)

    torch.save({'a': pickle.Pickler}, tmp_path / 'file.pth')
    found = CheckpointLoader.load_checkpoint(f'trusted://{tmp_path}/file.pth')
    assert found['a'] is pickle.Pickler
