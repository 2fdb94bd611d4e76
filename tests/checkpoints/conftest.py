"""Two ways to read, and a server of files on this machine."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from mmengine.runner import CheckpointLoader, checkpoint

from mmlit import register_checkpoint_schemes
from mmlit.checkpoints import allowlist


@pytest.fixture(autouse=True)
def schemes(monkeypatch):
    """Have mmengine's loaders be as after `import mmlit`, whatever tools did."""
    known = {**CheckpointLoader._schemes, '': checkpoint.load_from_local}
    monkeypatch.setattr(CheckpointLoader, '_schemes', known)
    register_checkpoint_schemes()


@pytest.fixture(params=['torch', 'own'])
def way(request, monkeypatch):
    """Read by torch's safe reading, or by the unpickler for torch before 2.6."""
    if request.param == 'torch' and not allowlist.TORCH_TAKES_LISTS:
        pytest.skip('torch takes no list of names before 2.6')
    monkeypatch.setattr(allowlist, 'TORCH_TAKES_LISTS', request.param == 'torch')
    return request.param


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve `server.files`, counting requests; torch's cache is empty."""
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
    server.cache = tmp_path / 'torch home' / 'hub' / 'checkpoints'
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
