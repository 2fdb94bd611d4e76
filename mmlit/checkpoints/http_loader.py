"""Make mmengine's loading of URLs safe, and that of local files where it is not.

mmengine 0.10 reads URLs with ``weights_only=False``, which runs what a file asks for.
"""

import os
import sys
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader, checkpoint

from ..errors import BrokenCheckpointError
from . import allowlist
from .embedded_config import remove_config_code
from .reader import read_file


# mmengine logs a loader by its name, less `load_from_`.
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a local file for mmengine, see `reader.read_checkpoint`."""
    return remove_config_code(read_file(filename, map_location), filename)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Read a URL for mmengine: download it once, then read the file without trust.

    The file lies where torch.hub and mmengine keep it, under the last part of the URL,
    so that what either has downloaded is not fetched again.
    """
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(filename).path))
    # The first process downloads; the others find the file, or, on another machine,
    # download it there. They are let go even if the download fails, to fail likewise.
    if get_rank() == 0:
        try:
            _download(filename, path)
        finally:
            barrier()
    else:
        barrier()
        _download(filename, path)
    try:
        return remove_config_code(read_file(path, map_location), filename)
    except BrokenCheckpointError as error:
        raise BrokenCheckpointError(
            f'{error}. It is the download of {filename}: delete it, and it is fetched '
            'again'
        ) from error


def _download(url: str, path: str) -> None:
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    print(f'Downloading: "{url}" to {path}', file=sys.stderr, flush=True)
    try:
        torch.hub.download_url_to_file(url, path, progress=sys.stderr.isatty())
    except URLError as error:
        raise ConnectionError(
            f'{url} cannot be downloaded ({error.reason}); without network, put the '
            f'file at {path}, or give a local path in its place'
        ) from error


def register_checkpoint_schemes() -> None:
    """Make mmengine load http:// and https:// without running what a file asks for.

    mmengine goes on reading local files, safely since torch 2.6. Where it is not safe,
    mmlit reads those too, for every model of the process: with an older torch, and with
    onedl-mmengine, which reads without limits what the safe read has refused.
    `import mmlit` calls this; loaders that are registered later replace these.
    """
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), load_from_http, force=True
    )
    is_onedl = hasattr(checkpoint, '_safe_torch_load')
    if is_onedl or not allowlist.TORCH_TAKES_LISTS:
        CheckpointLoader.register_scheme('', load_from_local, force=True)
