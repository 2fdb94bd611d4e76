"""What hypothesis does to checkpoint files: to bytes, archives, pickles and weights."""

import io
import math
import pickletools
import zipfile
from collections import Counter, OrderedDict
from functools import lru_cache

import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from mmlit.checkpoints.inert_pickle import InertUnpickler
from support.hostile_pickles import (
    archive,
    attacks,
    call,
    checkpoint,
    doubled,
    entry,
    legacy,
    name,
    nested,
    storage,
    tensor,
    text,
    whole,
)
from support.official_files import (
    ABSOLUTE_MICRO,
    RELATIVE_MICRO,
    official_file,
    official_state,
)

SNIPPETS = (
    call('posix', 'system', text('touch ran')),
    call('__builtin__', 'eval', text('1')),
    call('__builtin__', 'bytearray', whole(10**11)),
    call('torch', 'LongStorage', whole(10**11)),
    doubled(70),
    nested(300),
    b'}' + doubled(70) + b'Ns',
    b'\x80\x04',
    b'\x88',
    b'N',
    b'0',
    b'(',
    b't',
)
NUMBERS = (
    -1,
    0,
    1,
    2,
    2**16,
    2**31 - 1,
    2**31,
    2**40,
    2**63 - 1,
    2**63,
    -(2**63),
    2**70,
)
TEXTS = (
    '', 'latin1', 'punycode', 'idna', 'ascii', 'namereplace', 'zlib_codec', 'mean',
    '__class__', '__globals__', 'cuda:99', 'f8', 'O', 'V9999999', 'é' * 3000,
    ''.join(map(chr, range(0x3400, 0x9FFF))),
)  # fmt: skip
DTYPES = [
    getattr(torch, name)
    for name in 'bool uint8 int8 int64 float16 bfloat16 float64 complex64'.split()
]
ODD_VALUES = (None, 1, 'x', [1.0], (2,), {}, {'a': torch.ones(1)}, {1}, 1 + 2j, b'x')
ODD_KEYS = (
    '', '.', 7, None, (), 'é', 'x' * 5000, '\x1b[31m',
    'stages.0.patch_embed.proj.weight',
    'stages.2.blocks.99.norm1.weight', 'layers.9.blocks.0.norm1.weight', 'backbone.',
    'patch_embed.proj.weight', 'a.patch_embed1.proj.weight', 'head.weight',
    'stages.2.blocks.٣.norm1.weight', 'module.backbone.pos_embed4', 'norm9.bias',
)  # fmt: skip


@lru_cache(maxsize=None)
def contents():
    """Sound checkpoints: the authors' two kinds, a detector's, one in training."""
    relative = official_state(RELATIVE_MICRO, 'imagenet')
    absolute = official_state(ABSOLUTE_MICRO, 'imagenet')
    detector = official_state(ABSOLUTE_MICRO, 'detector', seed=1)
    few = {key: value for key, value in list(relative.items())[:9]}
    history = HistoryBuffer([0.5] * 9, [1] * 9)
    training = dict(
        meta=dict(epoch=3, iter=9, seed=np.int64(3), dataset_meta={'classes': ('a',)}),
        state_dict=OrderedDict((f'backbone.{k}', v) for k, v in few.items()),
        message_hub=dict(log_scalars=OrderedDict(loss=history)),
        optimizer=dict(
            state={0: dict(step=torch.tensor(3.0))}, param_groups=[{'lr': 1}]
        ),
        param_schedulers=[dict(milestones=Counter({8: 1, 11: 1}))],
    )
    return (
        official_file(relative, 'imagenet'),
        official_file(absolute, 'imagenet', 'absolute'),
        official_file(detector, 'detector', 'absolute'),
        training,
    )


def saved(content, zipped):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@lru_cache(maxsize=None)
def sound_files():
    """(bytes, whether zip) of each content in both formats."""
    return [(saved(c, zipped), zipped) for c in contents() for zipped in (True, False)]


@st.composite
def damaged(draw):
    """Bytes of a sound file, cut, flipped, overwritten, moved; and its index."""
    index = draw(st.integers(0, len(sound_files()) - 1))
    content = bytearray(sound_files()[index][0])
    places = st.integers(0, len(content) - 1) | st.integers(0, 3000).map(
        lambda back: max(0, len(content) - 1 - back)
    )
    at, length = draw(places), draw(st.integers(1, 400))
    kind = draw(
        st.sampled_from('cut flip flip random zero delete twice append'.split())
    )
    if kind == 'cut':
        del content[at:]
    elif kind == 'flip':
        for place in [at, *draw(st.lists(places, max_size=4))]:
            content[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == 'random':
        noise = draw(st.binary(min_size=1, max_size=64))
        content[at : at + len(noise)] = noise
    elif kind == 'zero':
        content[at : at + length] = bytes(len(content[at : at + length]))
    elif kind == 'delete':
        del content[at : at + length]
    elif kind == 'twice':
        content[at:at] = content[at : at + length]
    else:
        content += draw(st.binary(min_size=1, max_size=200))
    return index, bytes(content)


@st.composite
def rewritten(draw):
    """A sound file's archive with other entries, checksums made right again."""
    content = sound_files()[2 * draw(st.integers(0, len(contents()) - 1))][0]
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    methods = dict.fromkeys(range(len(members)), zipfile.ZIP_STORED)
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(members) - 1))
        name, data = members[i]
        kind = draw(
            st.sampled_from(
                'pickle pickle pickle drop rename twice short long zip'.split()
            )
        )
        if kind == 'pickle':
            i = next((n for n, (k, _) in enumerate(members) if 'data.pkl' in k), i)
            members[i] = (members[i][0], draw(mutated(members[i][1])))
        elif kind == 'drop' and len(members) > 1:
            del members[i]
        elif kind == 'rename':
            other = draw(st.sampled_from(members))[0]
            names = (other, name.upper(), '../../x', 'lit/constants.pkl', '/etc/x', 'x')
            members[i] = (draw(st.sampled_from(names)), data)
        elif kind == 'twice':
            members.append(members[i])
        elif kind == 'short':
            members[i] = (name, data[: draw(st.integers(0, 40))])
        elif kind == 'long':
            members[i] = (name, data + draw(st.binary(max_size=40)))
        else:
            methods[i] = draw(
                st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
            )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for i, (name, data) in enumerate(members):
            file.writestr(zipfile.ZipInfo(name), data, methods.get(i))
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _instructions(data):
    """(place, name of the instruction, its argument) of a pickle that is one."""
    try:
        return [(at, op.name, arg) for op, arg, at in pickletools.genops(data)]
    except Exception:
        return [(0, 'STOP', None)]


@st.composite
def mutated(draw, data):
    """A pickle with another number, name or instruction, or more of them."""
    found = _instructions(data)
    kind = draw(
        st.sampled_from('number number swap insert instruction cut noise'.split())
    )
    bounds = [at for at, _, _ in found] + [len(data)]
    i = draw(st.integers(0, len(found) - 1))
    if kind in ('number', 'swap'):
        wanted = ('BININT', 'BININT1', 'BININT2', 'LONG1')
        wanted = wanted if kind == 'number' else ('GLOBAL', 'BINUNICODE')
        places = [n for n, (_, name, _) in enumerate(found) if name in wanted] or [i]
        i = draw(st.sampled_from(places))
        other = whole(draw(st.sampled_from(NUMBERS)))
        if kind == 'swap':
            j = draw(st.sampled_from(places))
            other = data[bounds[j] : bounds[j + 1]]
        return data[: bounds[i]] + other + data[bounds[i + 1] :]
    if kind == 'insert':
        snippet = draw(st.sampled_from(SNIPPETS))
        return data[: bounds[i]] + snippet + data[bounds[i] :]
    if kind == 'instruction':
        code = draw(st.sampled_from(pickletools.opcodes)).code.encode('latin1')
        return data[: bounds[i]] + code + data[bounds[i] + 1 :]
    if kind == 'cut':
        return data[: bounds[i]] + data[bounds[draw(st.integers(i, len(found)))] :]
    noise = draw(st.binary(min_size=1, max_size=8))
    return data[: bounds[i]] + noise + data[bounds[i] + len(noise) :]


@st.composite
def pickles(draw):
    """Pickles put together from instructions, and attacks of `hostile_pickles`."""
    parts = draw(
        st.lists(st.sampled_from(SNIPPETS + (b'}', b']', b's', b'a', b'b', b'R')))
    )
    data = b'\x80\x02' + b''.join(parts) + b'.'
    known = sorted(attacks())
    name = draw(st.sampled_from(known))
    return draw(st.sampled_from([archive(data), legacy(data), attacks()[name]]))


@lru_cache(maxsize=None)
def _known_names():
    """What a file may name, as (module, item)."""
    names = InertUnpickler(io.BytesIO(), 0)._names
    return sorted(tuple(name.rpartition('.')[::2]) for name in names)


@st.composite
def calls(draw):
    """Calls of what a file may name, with arguments and states that make no sense."""

    def odd(depth):
        kinds = 'number text name tensor tuple list dict call none'.split()
        kind = draw(st.sampled_from(kinds if depth < 3 else kinds[:3]))
        if kind == 'number':
            return whole(draw(st.sampled_from(NUMBERS)))
        if kind == 'text':
            return text(draw(st.sampled_from(TEXTS)))
        if kind == 'name':
            return name(*draw(st.sampled_from(_known_names())))
        if kind == 'tensor':
            return tensor(storage('FloatStorage', 4), [4], [1])
        if kind == 'none':
            return b'N'
        if kind == 'call':
            return made(depth + 1)
        parts = [odd(depth + 1) for _ in range(2 * draw(st.integers(0, 2)))]
        opened = dict(tuple=b'(', list=b'](', dict=b'}(')[kind]
        return opened + b''.join(parts) + dict(tuple=b't', list=b'e', dict=b'u')[kind]

    def made(depth=0):
        arguments = [odd(depth) for _ in range(draw(st.integers(0, 4)))]
        whole_call = call(*draw(st.sampled_from(_known_names())), *arguments)
        states = draw(st.integers(0, 1)) if depth < 2 else 0
        return whole_call + b''.join(odd(depth + 1) + b'b' for _ in range(states))

    data = checkpoint(entry(text('x'), made()))
    return draw(st.sampled_from([archive, legacy]))(data)


@st.composite
def weights(draw):
    """A file that reads well, of weights that are wrong in shape, dtype, name, kind."""
    content = dict(contents()[draw(st.integers(0, 2))])
    container = 'model' if 'model' in content else 'state_dict'
    state = OrderedDict(content[container])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(list(state)))
        value = state[key]
        kind = draw(st.sampled_from('shape dtype odd drop add rename expand'.split()))
        if kind == 'shape':
            sides = st.integers(0, 9) | st.sampled_from([1, 25, 49, 81, 1000])
            shape = draw(st.lists(sides, max_size=4).filter(lambda s: np.prod(s) < 1e6))
            state[key] = torch.zeros([int(side) for side in shape])
        elif kind == 'dtype' and isinstance(value, torch.Tensor):
            state[key] = value.to(draw(st.sampled_from(DTYPES)))
        elif kind == 'odd':
            state[key] = draw(st.sampled_from(ODD_VALUES))
        elif kind == 'drop' and len(state) > 1:
            del state[key]
        elif kind == 'add':
            state[draw(st.sampled_from(ODD_KEYS))] = torch.zeros(1)
        elif kind == 'rename':
            state[draw(st.sampled_from(ODD_KEYS))] = state.pop(key)
        elif kind == 'expand' and isinstance(value, torch.Tensor):
            sides = st.sampled_from([1, 3, 97**2, 1999**2])
            shape = st.lists(sides, min_size=value.ndim, max_size=value.ndim)
            # Giant, but no more than torch itself can count.
            shape = draw(shape.filter(lambda s: math.prod(s) < 2**62))
            state[key] = torch.zeros(1).expand(*shape) if shape else value
    other = draw(st.sampled_from([container, 'model', 'state_dict', '']))
    content.pop(container)
    content = {**content, other: state} if other else state
    return saved(content, draw(st.booleans()))
