"""Damaged and made-up files are read or refused, and nothing of them is run."""

import io
import pickletools
import resource
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from mmlit import read_checkpoint
from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError
from support.attacks import archive, nothing_run, text

#: Cases of each strategy in `make test` and in `make fuzz`.
EFFORTS = [40, pytest.param(3000, marks=pytest.mark.fuzz)]
#: Memory for damaged sizes, on top of what the process has.
ROOM = 4 << 30
CONTENT = dict(
    meta=dict(epoch=3, seed=np.int64(3)),
    state_dict=OrderedDict(weight=torch.ones(3, 2), bias=torch.zeros(3)),
    message_hub=dict(loss=HistoryBuffer([0.5] * 9, [1] * 9)),
    param_schedulers=[dict(milestones=Counter({8: 1, 11: 1}))],
)
GETATTR = b'c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\n'
SNIPPETS = [
    b'cposix\nsystem\n' + text('touch ran') + b'\x85R',
    b'c__builtin__\neval\n' + text('open("ran", "w")') + b'\x85R',
    GETATTR + text('__init__') + b'\x86R',
    *(op.code.encode('latin1') for op in pickletools.opcodes if op.arg is None),
]


def saved(zipped):
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


SOUND = [saved(True), saved(False)]
with zipfile.ZipFile(io.BytesIO(SOUND[0])) as file:
    PICKLE = file.read('archive/data.pkl')
    STORAGES = {f'data/{i}': file.read(f'archive/data/{i}') for i in range(2)}
PLACES = [at for _, _, at in pickletools.genops(PICKLE)]


@st.composite
def damaged(draw):
    """Bytes of a sound file, cut, overwritten, moved."""
    content = bytearray(draw(st.sampled_from(SOUND)))
    for at in draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        length = draw(st.sampled_from([0, 1, 1, 8, 64]))
        moved = st.sampled_from(PLACES).map(lambda i: bytes(content[i : i + 64]))
        content[at : at + length] = draw(st.binary(max_size=8) | moved)
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@st.composite
def rewritten(draw):
    """An archive with other instructions in its pickle, checksums made right again."""
    data = PICKLE
    places = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3))
    for at in sorted(places, reverse=True):
        new = b''.join(draw(st.lists(st.sampled_from(SNIPPETS), max_size=3)))
        data = data[:at] + new + data[at + draw(st.integers(0, 2)) :]
    return archive(data, **STORAGES)


@pytest.fixture
def little_memory():
    """Have damaged sizes end in an error."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize('cases', EFFORTS)
@pytest.mark.parametrize('strategy', [damaged, rewritten], ids=lambda s: s.__name__)
def test_files(tmp_path, monkeypatch, way, strategy, cases, little_memory):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'lit_s.pth'
    outcomes = Counter()

    @settings(
        max_examples=cases,
        derandomize=cases < 1000,  # The same ones each time; new ones every night.
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy())
    def check(content):
        path.write_bytes(content)
        with nothing_run():
            try:
                read_checkpoint(path)
                outcomes['read'] += 1
            except (UnsafeCheckpointError, BrokenCheckpointError) as error:
                outcomes[type(error)] += 1
                assert str(path) in str(error) and len(str(error)) < 1200
            except (OSError, MemoryError):
                outcomes['machine'] += 1
            except RuntimeError as error:
                assert 'allocate memory' in str(error)
        assert [file.name for file in tmp_path.iterdir()] == ['lit_s.pth']

    check()
    wanted = BrokenCheckpointError if strategy is damaged else UnsafeCheckpointError
    assert outcomes['read'] and outcomes[wanted]
