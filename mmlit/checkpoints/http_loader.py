"""Have mmengine read local files and downloads through `checkpoint_reader.py`.

mmengine 0.10 reads a URL with `weights_only=False`, which runs what a file in the
download cache asks for; onedl-mmengine reads a local file so, too, once the safe read
has failed. Both look their loaders up by the beginning of the path, and both document
`CheckpointLoader.register_scheme` for replacing one: `init_cfg`, `load_from`, `resume`,
`init_detector` and `load_checkpoint` all come this way.

`s3://`, `openmmlab://`, `torchvision://` and other schemes stay mmengine's.
"""

import os
import sys
from typing import Any, Optional
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader

from ..errors import BrokenCheckpointError
from .embedded_config import without_programs
from .reader import read_file


# mmengine logs a loader by its name, less `load_from_`.
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a local file for mmengine, see `checkpoint_reader.read_checkpoint`."""
    return without_programs(read_file(filename, map_location), filename)


def load_from_http(
    filename: str,
    map_location: Any = None,
    model_dir: Optional[str] = None,
    progress: Optional[bool] = None,
) -> Any:
    """Read a URL for mmengine: download it once, then read the file without trust.

    The file lies where torch.hub and mmengine keep it, under the last part of the URL,
    so that what either has downloaded is not fetched again.

    Args:
        filename: The URL.
        map_location: As for `torch.load`.
        model_dir: Folder of the file, by default `torch.hub.get_dir()/checkpoints`.
        progress: Show a progress bar; by default in a terminal.
    """
    if model_dir is None:
        model_dir = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(model_dir, os.path.basename(urlparse(filename).path))
    # The first process downloads; the others find the file, or, on another machine,
    # download it there. They are let go even if the download fails, to fail likewise.
    if get_rank() == 0:
        try:
            _download(filename, path, progress)
        finally:
            barrier()
    else:
        barrier()
        _download(filename, path, progress)
    try:
        return without_programs(read_file(path, map_location), filename)
    except BrokenCheckpointError as error:
        raise BrokenCheckpointError(
            f'{error}. It is the download of {filename}: delete it, and it is fetched '
            'again'
        ) from error


def _download(url: str, path: str, progress: Optional[bool]) -> None:
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    print(f'Downloading: "{url}" to {path}', file=sys.stderr, flush=True)
    try:
        torch.hub.download_url_to_file(
            url, path, progress=sys.stderr.isatty() if progress is None else progress
        )
    except URLError as error:
        raise ConnectionError(
            f'{url} cannot be downloaded ({error.reason}); without network, put the '
            f'file at {path}, or give a local path in its place'
        ) from error


def register_checkpoint_schemes() -> None:
    """Make mmengine load local paths, http:// and https:// with the loaders above.

    `import mmlit` calls this; calling it again changes nothing. A loader that is
    registered later, with `force=True`, replaces these.
    """
    for prefixes, loader in (
        ('', load_from_local),
        (('http://', 'https://'), load_from_http),
    ):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
