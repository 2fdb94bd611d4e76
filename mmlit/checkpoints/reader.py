"""Read checkpoint files without trusting them.

`read_checkpoint` rebuilds tensors, plain data and what `allowlist.py` lists; whatever
else a file asks for is refused before it is looked up. With torch 2.6 and later that is
``torch.load(weights_only=True)``. Before, ``weights_only`` does not exist, takes no
list, or has a hole (CVE-2025-32434): there the unpickler of `allowlist.py` reads.
"""

import errno
import os
import pickle
import re
from pathlib import Path
from typing import Any, Dict, List, Union

import torch

from ..errors import BrokenCheckpointError, UnsafeCheckpointError
from . import allowlist

_PathLike = Union[str, 'os.PathLike[str]']
_ZIP, _PICKLE = b'PK\x03\x04', b'\x80'


def read_checkpoint(path: _PathLike, map_location: Any = 'cpu') -> Dict[str, Any]:
    """Read a checkpoint file; nothing in it is run, whoever made it.

    Args:
        path: The file: one of the LIT authors', of mmlit, of mmengine or of mmcv.
        map_location: As for `torch.load`.

    Returns:
        What the file holds. A pickled `yacs` CfgNode arrives as an OrderedDict.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpointError: The file asks for something that is not on the list; it
            is a `pickle.UnpicklingError`.
        BrokenCheckpointError: It is no checkpoint, empty or cut off, or a safetensors
            file where that package is missing; a `ValueError`.
        OSError, MemoryError, RuntimeError: The machine fails or has no such device;
            the file may be whole.
    """
    checkpoint = read_file(path, map_location)
    if not isinstance(checkpoint, dict):
        raise BrokenCheckpointError(
            f'{path} holds a {type(checkpoint).__name__} and no checkpoint, which '
            'would be a dict of weights'
        )
    return checkpoint


def read_file(path: _PathLike, map_location: Any = 'cpu') -> Any:
    """Read any file of `torch.save` like `read_checkpoint`; it need not be a dict."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} can not be found (seen from {os.getcwd()})')
    try:
        if path.suffix == '.safetensors':
            return _load_safetensors(path, map_location)
        return _load(path, map_location)
    except BrokenCheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(_refusal(path, str(error))) from None
    except Exception as error:  # Bytes that no pickler wrote raise any.
        if _is_of_the_machine(error):
            raise
        said = re.split(r'\n|\. ', str(error))[0][:200] or type(error).__name__
        raise BrokenCheckpointError(
            f'{path} is cut off, damaged or no file of torch.save ({said}); download '
            'or copy it again'
        ) from error


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, OSError):  # EINVAL: torch looks for the end of a cut file.
        return error.errno != errno.EINVAL
    signs = 'Attempting to deserialize|CUDA|out of memory|allocate memory'
    return isinstance(error, MemoryError) or bool(re.search(signs, str(error)))


def _load(path: Path, map_location: Any) -> Any:
    with path.open('rb') as file:
        start = file.read(512)
    if not start.startswith((_ZIP, _PICKLE)):
        raise BrokenCheckpointError(_describe(path, start))
    if allowlist.TORCH_TAKES_LISTS:
        # Once more: other code may have cleared torch's list since the import.
        allowlist.allow_mmengine_checkpoints()
        return torch.load(path, map_location=map_location, weights_only=True)
    if start.startswith(_ZIP):
        entries = torch._C.PyTorchFileReader(str(path)).get_all_records()
        if 'constants.pkl' in entries:  # torch.load would hand it to torch.jit.load.
            raise pickle.UnpicklingError('a network as TorchScript, which is code')
    return torch.load(path, map_location=map_location, pickle_module=allowlist)


def _load_safetensors(path: Path, map_location: Any) -> Any:
    """Read numbers and their names, in a format without code; never as a pickle."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise BrokenCheckpointError(
            f'{path} is read by the package safetensors, which is not installed: pip '
            'install safetensors'
        ) from None
    is_device = isinstance(map_location, (str, torch.device))
    return load_file(str(path), device=str(map_location) if is_device else 'cpu')


def _describe(path: Path, start: bytes) -> str:
    """Return the sentence for a file that is no checkpoint from its first bytes on."""
    if not start:
        return f'{path} is empty: the download or copy failed; delete it and repeat it'
    text = start.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--')):
        what = 'it looks like a web page; the download failed?'
    elif text.startswith(b'version https://git-lfs'):
        what = 'it is a Git LFS pointer; git lfs pull fetches the file itself'
    else:
        what = f'torch.save writes no file that begins with {start[:12]!r}'
    return f'{path} is not a checkpoint: {what}'


def _refusal(path: Path, error: str) -> str:
    """Return the sentence for a file that asks for more than data."""
    names = _refused_names(path, error)
    if names:
        asks = f'it asks for {", ".join(names)[:200]}, which no checkpoint needs'
    else:
        said = error.split('WeightsUnpickler error:')[-1]
        said = ' '.join(said.split('\n\nCheck the documentation')[0].split())
        asks = f'it holds more than data ({said[:300]})'
    return (
        f'{path} is refused: {asks}; nothing in it was run. If you know who made the '
        'file and trust it, read it once yourself with torch.load(file, '
        "weights_only=False), save the weights alone, torch.save({'state_dict': ...}, "
        'new_file), and use the new file.'
    )


def _refused_names(path: Path, error: str) -> List[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        # Before torch 2.6, or a file older than torch 1.6. torch leaves the module out
        # where it is `builtins`.
        names = re.findall(r'GLOBAL (\S+) (?:was|is|whose)', error)[:1]
        return [name if '.' in name else f'builtins.{name}' for name in names]
