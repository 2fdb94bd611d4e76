"""What a checkpoint file declares must be in it: looked at before torch reads it.

torch takes a file's word for the size of its storages and compressed entries: it reads
beyond the end of an entry, or allocates what a few bytes announce. Here a file has to
hold what it declares, and to be intact where it carries checksums (the zip format of
torch >= 1.6 does, the format before it does not). `inert_pickle.py` looks at the
pickle in it.
"""

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO, Collection

import torch

from .inert_pickle import InertUnpickler

#: Tensors may share numbers, so that they declare more than the file holds: so many
#: times its size, and so much beside.
MOST_SHARED, FREE_BYTES = 2, 96 << 20
TORCHSCRIPT = 'a network as TorchScript, which is code'
ZIP = b'PK\x03\x04'
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PART = 1 << 20


def check_limits(path: Path, also: Collection[str] = ()) -> None:
    """Look at a file of torch.save without making anything of it.

    Args:
        path: The file.
        also: Names that its pickle may hold beside those of mmlit, mmengine and torch.

    Raises:
        pickle.UnpicklingError: It asks for what no checkpoint needs.
        Exception: It is damaged; any of what parsers raise.
    """
    with path.open('rb') as file:
        is_zip = file.read(4) == ZIP
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        (_check_zip if is_zip else _check_legacy)(file, size, also)


def _check_zip(file: BinaryIO, size: int, also: Collection[str]) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f'{entry.filename[:80]} in it is compressed')
            if entry.file_size != entry.compress_size:
                raise ValueError(f'{entry.filename[:80]} in it has two sizes')
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError('its entries are larger than the whole')
        names = {entry.filename.partition('/')[2].lower() for entry in entries}
        if len(names) < len(entries):
            raise ValueError('entries of the same name')
        _check_agreement(file, entries)
        for entry in entries:
            if entry.CRC:  # Zero where torch was told to write none.
                with archive.open(entry) as part:
                    while part.read(_PART):
                        pass  # zipfile compares the checksum at the end.
        sizes = {entry.filename.partition('/')[2]: entry.file_size for entry in entries}
        if 'constants.pkl' in sizes:
            raise pickle.UnpicklingError(TORCHSCRIPT)
        root = entries[0].filename.partition('/')[0]
        data = archive.read(f'{root}/data.pkl')
    found = InertUnpickler(io.BytesIO(data), len(data), also)
    found.load()
    for key, declared in found.storages.items():
        held = sizes.get(f'data/{key}')
        if held is None or held < declared:
            raise ValueError(
                f'storage {key[:80]} of {declared} bytes has {held or 0} in the file'
            )
    _check_declared(found.declared, size)


def _check_agreement(file: BinaryIO, entries: Collection[zipfile.ZipInfo]) -> None:
    """Raise unless torch's own parser finds the same entries at the same places."""
    # By name, as torch reads it; a file object would be read through Python.
    torchs = torch._C.PyTorchFileReader(str(file.name))
    if set(torchs.get_all_records()) != {e.filename.partition('/')[2] for e in entries}:
        raise ValueError('its directory can be read in two ways')
    for entry in entries:
        file.seek(entry.header_offset)
        header = file.read(30)
        begin = entry.header_offset + 30
        begin += int.from_bytes(header[26:28], 'little')
        begin += int.from_bytes(header[28:30], 'little')
        if torchs.get_record_offset(entry.filename.partition('/')[2]) != begin:
            raise ValueError('its directory can be read in two ways')


def _check_legacy(file: BinaryIO, size: int, also: Collection[str]) -> None:
    """The format before torch 1.6: five pickles, then the storages one by one."""
    if _is_tar(file):
        raise pickle.UnpicklingError('a tar archive, as torch wrote before 0.1.10')
    if _load(file, size, also).load() != _LEGACY_MAGIC:
        raise ValueError('Invalid magic number')
    for _ in ('protocol', 'system'):
        _load(file, size, also).load()
    found = _load(file, size, also)
    found.load()
    keys = _load(file, size, also).load()
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError('its list of storages is none')
    if set(keys) != set(found.storages):
        raise ValueError('its list of storages is not that of its tensors')
    for key in keys:
        count = int.from_bytes(file.read(8), 'little', signed=True)
        nbytes = found.storages[key]
        if count < 0 or nbytes not in [count * n for n in (1, 2, 4, 8, 16)]:
            raise ValueError(f'storage {key[:80]} of {nbytes} bytes is {count} long')
        if nbytes > size - file.tell():
            raise ValueError(f'storage {key[:80]} of {nbytes} bytes is cut off')
        file.seek(nbytes, os.SEEK_CUR)
    _check_declared(found.declared, size)


def _load(file: BinaryIO, size: int, also: Collection[str]) -> InertUnpickler:
    return InertUnpickler(file, size, also)


def _is_tar(file: BinaryIO) -> bool:
    try:
        tarfile.open(fileobj=file, mode='r:').close()
    except (tarfile.TarError, ValueError):
        return False
    finally:
        file.seek(0)
    return True


def _check_declared(declared: int, size: int) -> None:
    if declared > MOST_SHARED * size + FREE_BYTES:
        raise ValueError(
            f'its tensors declare {declared:,} bytes in {size:,} bytes of file'
        )
