"""URLs are downloaded once, to where torch keeps them, and failures say what to do."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from mmengine.runner import CheckpointLoader

from mmlit.checkpoints import http_loader as checkpoint_schemes
from mmlit.errors import BrokenCheckpointError

URL = 'https://github.com/ziplab/LIT/releases/download/v1.0/lit_s.pth'


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `server.files`, counting requests; torch's cache is empty."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch home'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            server.requests.append(self.path)
            content = server.files.get(self.path.partition('?')[0].strip('/'))
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b'')

        def log_message(self, *args):
            pass

    server = HTTPServer(('127.0.0.1', 0), Handler)
    server.files, server.requests = {}, []
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


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


def test_a_download_that_fails_says_what_to_do(tmp_path, server):
    path = tmp_path / 'torch home' / 'hub' / 'checkpoints' / 'a.pth'
    with pytest.raises(ConnectionError) as error:
        CheckpointLoader.load_checkpoint(f'{server.url}/a.pth')
    assert f'{server.url}/a.pth cannot be downloaded (Not Found)' in str(error.value)
    assert f'put the file at {path}' in str(error.value)
    assert not path.exists()
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

    monkeypatch.setattr(checkpoint_schemes, 'get_rank', lambda: rank)
    monkeypatch.setattr(checkpoint_schemes, 'barrier', lambda: save('barrier'))
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda *args, **kwargs: save('download')
    )
    assert CheckpointLoader.load_checkpoint(URL)['a'] == 1
    assert events == (['barrier'] if rank else ['download', 'barrier'])


def test_a_failed_download_lets_the_other_processes_go(server, monkeypatch):
    events = []
    monkeypatch.setattr(checkpoint_schemes, 'barrier', lambda: events.append('barrier'))
    with pytest.raises(ConnectionError):
        CheckpointLoader.load_checkpoint(f'{server.url}/a.pth')
    assert events == ['barrier']
