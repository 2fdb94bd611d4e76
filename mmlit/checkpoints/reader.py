"""Read checkpoint files without trusting them.

`read_checkpoint` rebuilds tensors and plain data, and what `checkpoint.py` (mmengine's
own files) and `strict_pickle.py` (the authors') list; anything else that a file asks
for is refused before it is looked up. Before that, `checkpoint_limits.py` sees that it
holds what it declares. `checkpoint_schemes.py` makes mmengine use it.

=============  ==================================================================
torch          how
=============  ==================================================================
2.6 and later  `torch.load(weights_only=True)`, with the authors' types allowed for
               the time of the read only
before         `torch.load` with the unpickler of `strict_pickle.py`, equally strict:
               there `weights_only` either does not exist or cannot be extended by name
=============  ==================================================================
"""

import errno
import os
import pickle
import re
import struct
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Union

import torch
from mmengine.utils import digit_version

from ..errors import BrokenCheckpointError, UnsafeCheckpointError
from . import strict_pickle
from .checkpoint_limits import ZIP, check_limits

#: torch keeps one list of what may be read for all threads of a process.
_ONE_READER = threading.RLock()
_SINCE_TORCH_2_6 = digit_version(torch.__version__)[:2] >= (2, 6)

#: What unpickling raises for bytes that no pickler wrote.
_SIGNS_OF_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
#: What torch says where a sound file cannot be put to where `map_location` wants it.
_OF_THE_MACHINE = re.compile(
    r'\bdevice\b|\bCUDA\b|\bout of memory\b|allocate memory', re.IGNORECASE
)
#: A disk that fails or a server that is gone: the file may be whole.
_ERRORS_OF_THE_MACHINE = {
    getattr(errno, name)
    for name in 'EACCES EIO EMFILE ENFILE ENODEV ENOMEM EPERM ESTALE ETIMEDOUT'.split()
    if hasattr(errno, name)
}
_PICKLE = b'\x80'
#: One key that each layout of a LIT has.
_FIRST_KEYS = (
    'patch_embed.proj.weight',
    'patch_embed1.proj.weight',
    'stages.0.patch_embed.proj.weight',
)


def read_checkpoint(
    path: Union[str, 'os.PathLike[str]'], map_location: Any = 'cpu'
) -> Dict[str, Any]:
    """Read a checkpoint file; nothing in it is run, whoever made it.

    Args:
        path: The file: one of the authors', of mmlit, of mmengine or of mmcv.
        map_location: As for `torch.load`.

    Returns:
        What the file holds. A pickled `argparse.Namespace` arrives as a
        `SavedNamespace`, a `yacs` CfgNode as an OrderedDict; neither needs its package.
        The state dict (`['state_dict']`, `['model']` or the whole) is an OrderedDict
        whose `_metadata` names the file as its `source`.

    Raises:
        FileNotFoundError: There is no such file.
        UnsafeCheckpointError: The file asks for something that is not on the list; it
            is a `pickle.UnpicklingError`.
        BrokenCheckpointError: It is no checkpoint, empty or cut off, or a safetensors
            file where that package is missing; a `ValueError`.
        OSError, MemoryError: The machine fails, and the file may be whole.
    """
    checkpoint = read_file(path, map_location)
    if not isinstance(checkpoint, dict):
        raise BrokenCheckpointError(
            f'{path} holds a {type(checkpoint).__name__} and no checkpoint, which '
            'would be a dict of weights'
        )
    return checkpoint


def read_file(path: Union[str, 'os.PathLike[str]'], map_location: Any = 'cpu') -> Any:
    """Read any file of `torch.save` like `read_checkpoint`; it need not be a dict."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} can not be found (seen from {os.getcwd()})')
    if path.suffix == '.safetensors':
        return _name_source(_load_safetensors(path, map_location), path)
    _check_beginning(path)
    is_vetted = False
    try:
        check_limits(path, _allowed_by_the_user())
        is_vetted = True
        found = _load(path, map_location)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(_refusal(path, str(error))) from None
    except _SIGNS_OF_DAMAGE as error:
        if _is_of_the_machine(error, is_vetted):
            raise
        raise BrokenCheckpointError(_broken(path, error)) from error
    return _name_source(found, path)


def _is_of_the_machine(error: Exception, is_vetted: bool) -> bool:
    """Whether another try, or another machine, may read the file."""
    if isinstance(error, OSError) and error.errno in _ERRORS_OF_THE_MACHINE:
        return True
    return is_vetted and (
        isinstance(error, MemoryError) or bool(_OF_THE_MACHINE.search(str(error)))
    )


def _allowed_by_the_user() -> List[str]:
    """Names that `torch.serialization.add_safe_globals` was given, but by mmlit."""
    if not _SINCE_TORCH_2_6:
        return []
    known, names = strict_pickle.named_globals(), []
    for item in torch.serialization.get_safe_globals():
        named = isinstance(item, tuple)
        name = item[1] if named else f'{item.__module__}.{item.__qualname__}'
        if name not in known and '\n' not in name:
            names.append(name)
    return names


def _load(path: Path, map_location: Any) -> Any:
    if _SINCE_TORCH_2_6:
        allowed = torch.serialization.safe_globals(strict_pickle.LITERALS)
        with _ONE_READER, allowed:
            return torch.load(path, map_location=map_location, weights_only=True)
    return torch.load(path, map_location=map_location, pickle_module=strict_pickle)


def _load_safetensors(path: Path, map_location: Any) -> Any:
    """Numbers and their names, in a format without code; never read as a pickle."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise BrokenCheckpointError(
            f'{path} is read by the package safetensors, which is not installed: pip '
            'install safetensors'
        ) from None
    is_device = isinstance(map_location, (str, torch.device))
    try:
        return load_file(str(path), device=str(map_location) if is_device else 'cpu')
    except Exception as error:  # Its own SafetensorError is no subclass of anything.
        if _is_of_the_machine(error, is_vetted=True):
            raise
        raise BrokenCheckpointError(_broken(path, error)) from error


def _check_beginning(path: Path) -> None:
    """Tell what is no checkpoint at all from its first bytes."""
    with path.open('rb') as file:
        start = file.read(512)
    if not start:
        raise BrokenCheckpointError(
            f'{path} is empty: the download or copy failed; delete it and repeat that'
        )
    if start.startswith((ZIP, _PICKLE)):
        return
    text = start.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--')):
        what = 'it looks like a web page; the download failed?'
    elif text.startswith(b'version https://git-lfs'):
        what = 'it is a Git LFS pointer; git lfs pull fetches the file itself'
    else:
        what = f'torch.save writes no file that begins with {start[:12]!r}'
    raise BrokenCheckpointError(f'{path} is not a checkpoint: {what}')


def _broken(path: Path, error: Exception) -> str:
    said = re.split(r'\n|\. ', str(error))[0][:200] or type(error).__name__
    return (
        f'{path} is cut off, damaged or no file of torch.save ({said}); download or '
        'copy it again'
    )


def _refusal(path: Path, error: str) -> str:
    """The sentence for a file that asks for more than data."""
    name = re.search(r'GLOBAL (\S+) (?:was not|is not|whose)', error)
    opcode = re.search(r'Unsupported operand (\d+)', error)
    if name:
        # torch leaves the module out where it is `builtins`.
        name = name[1] if '.' in name[1] else f'builtins.{name[1]}'
        asks = f'it asks for {name[:100]}, which no checkpoint needs'
    elif opcode:
        asks = (
            f'it holds the pickle instruction {opcode[1]}, which torch.save does not '
            'write unless another pickle_protocol is asked for'
        )
    else:
        said = error.split('WeightsUnpickler error:')[-1]
        said = said.split('\n\nCheck the documentation')[0].strip()
        asks = f'it holds more than data ({said[:300]})'
    return (
        f'{path} is refused: {asks}; nothing in it was run. If you know who made the '
        'file and trust it, read it once yourself with torch.load(file, '
        "weights_only=False), save the weights alone, torch.save({'state_dict': ...}, "
        'new_file), and use the new file.'
    )


def _name_source(found: Any, path: Path) -> Any:
    """Note the file's name in the metadata of the state dicts of a checkpoint.

    A checkpoint of mmengine and mmcv is loaded from its `state_dict`; the authors'
    `model` is not unwrapped by mmengine, so that the whole arrives at the network.
    """
    if type(found) not in (dict, OrderedDict):
        return found
    for key in ('state_dict', 'model'):
        state = dict.get(found, key)
        if isinstance(state, dict):
            for name in state:
                if not isinstance(name, str):
                    raise BrokenCheckpointError(
                        f'{path} has the key {name!r:.80} in its {key}, where '
                        'parameters have names'
                    )
            found[key] = _with_source(state, path.name)
            if key == 'state_dict':
                return found
    return _with_source(found, path.name)


def _with_source(state: Dict, source: str) -> 'OrderedDict':
    # A new dict, by the methods of the type: an OrderedDict may come out of a file with
    # attributes of any name, `items` included.
    named = OrderedDict(type(state).items(state))
    metadata = getattr(state, '_metadata', None)
    named._metadata = OrderedDict(
        (prefix, dict(dict.items(entry)))
        for prefix, entry in (
            dict.items(metadata) if isinstance(metadata, dict) else ()
        )
        if isinstance(entry, dict)
    )
    for prefix in _prefixes(named):
        named._metadata.setdefault(prefix, {})['source'] = source
    return named


def _prefixes(state: Dict) -> Iterator[str]:
    """Where mmengine and torch look metadata up: the model's and each LIT's prefix.

    mmengine strips `module.` from keys, but not from the prefixes of the metadata.
    `backbone` is among them whatever the file holds, so that a detector can say which
    file has nothing for it.
    """
    yield from ('', 'backbone')
    for key in state:
        for first in _FIRST_KEYS:
            if isinstance(key, str) and key.endswith(f'.{first}'):
                prefix = key[: -len(first) - 1]
                yield prefix
                yield re.sub(r'^module\.', '', prefix)
