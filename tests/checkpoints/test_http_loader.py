"""URLs are downloaded once, to where torch keeps them, and failures say what to do."""

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmlit import register_checkpoint_schemes
from mmlit.checkpoints import allowlist, http_loader
from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError
from support.attacks import attacks

URL = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_s.pth'


def test_a_url_is_downloaded_once(tmp_path, server, capfd):
    torch.save({'state_dict': {'weight': torch.ones(2)}}, tmp_path / 'file')
    server.files['a.pth'] = (tmp_path / 'file').read_bytes()
    for _ in range(2):
        found = CheckpointLoader.load_checkpoint(f'{server.url}/a.pth?raw=true')
        assert found['state_dict']['weight'].sum() == 2
    assert server.requests == ['/a.pth?raw=true']
    assert f'Downloading: "{server.url}/a.pth?raw=true" to ' in capfd.readouterr().err
    # Where torch.hub, and so mmengine's own loader, looks for it.
    state = torch.hub.load_state_dict_from_url(f'{server.url}/a.pth', weights_only=True)
    assert 'state_dict' in state and len(server.requests) == 1
    # What is no dict is read for mmengine, too.
    torch.save([1, 2], tmp_path / 'list.pth')
    server.files['list.pth'] = (tmp_path / 'list.pth').read_bytes()
    assert CheckpointLoader.load_checkpoint(f'{server.url}/list.pth', 'cpu') == [1, 2]


def test_a_download_that_fails_says_what_to_do(server, monkeypatch):
    path, events = server.cache / 'a.pth', []
    monkeypatch.setattr(http_loader, 'barrier', lambda: events.append('barrier'))
    with pytest.raises(ConnectionError) as error:
        CheckpointLoader.load_checkpoint(f'{server.url}/a.pth')
    assert f'{server.url}/a.pth cannot be downloaded (Not Found)' in str(error.value)
    assert f'put the file at {path}' in str(error.value)
    assert not path.exists()
    assert events == ['barrier']  # It lets the other processes go.
    server.files['a.pth'] = b'<html>please log in</html>'
    with pytest.raises(BrokenCheckpointError) as error:
        CheckpointLoader.load_checkpoint(f'{server.url}/a.pth')
    assert 'looks like a web page' in str(error.value)
    assert f'is the download of {server.url}/a.pth: delete it' in str(error.value)


@pytest.mark.parametrize('rank', [0, 1])
def test_the_first_process_downloads(tmp_path, monkeypatch, rank):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache, events = tmp_path / 'hub' / 'checkpoints', []
    cache.mkdir(parents=True)

    def save(when):
        events.append(when)
        if when == ('barrier' if rank else 'download'):
            torch.save({'a': 1}, cache / 'lit_s.pth')

    monkeypatch.setattr(http_loader, 'get_rank', lambda: rank)
    monkeypatch.setattr(http_loader, 'barrier', lambda: save('barrier'))
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda *args, **kwargs: save('download')
    )
    assert CheckpointLoader.load_checkpoint(URL)['a'] == 1
    assert events == (['barrier'] if rank else ['download', 'barrier'])


@pytest.mark.parametrize('why', ['old torch', 'onedl-mmengine'])
def test_an_unsafe_local_loader_is_replaced(tmp_path, monkeypatch, why):
    if why == 'old torch':
        monkeypatch.setattr(allowlist, 'TORCH_TAKES_LISTS', False)
    else:
        name = 'mmengine.runner.checkpoint._safe_torch_load'
        monkeypatch.setattr(name, None, raising=False)
    register_checkpoint_schemes()
    marker, path = tmp_path / 'ran', tmp_path / 'a.pth'
    meta = dict(config='import os', epoch=3)
    torch.save(dict(meta=meta, state_dict={}), path)
    found = CheckpointLoader.load_checkpoint(str(path))
    assert found == dict(meta=dict(epoch=3), state_dict={})
    torch.save(attacks(marker)['os.system'], path)
    with pytest.raises(UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(str(path))
    assert not marker.exists()
