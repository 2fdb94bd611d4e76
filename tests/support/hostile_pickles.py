"""Pickles and archives put together by hand, each of them an attack."""

import io
import pickle
import struct
import zipfile
import zlib
from functools import lru_cache

MAGIC = 0x1950A86A20F9469CFC6C
LETTERS = range(0x3400, 0x9FFF)


def name(module, item):
    return f'c{module}\n{item}\n'.encode()


def text(value):
    value = value.encode()
    return b'X' + struct.pack('<I', len(value)) + value


def whole(value):
    """A whole number of any size."""
    return pickle.dumps(value, 2)[2:-1]


def call(module, item, *args):
    """`module.item(*args)`, the arguments as pickle."""
    return name(module, item) + b'(' + b''.join(args) + b'tR'


def storage(kind, count, key='0', view=b''):
    parts = text('storage') + name('torch', kind) + text(key) + text('cpu')
    return b'(' + parts + whole(count) + view + b'tQ'


def tensor(of, shape, strides, offset=0):
    sizes, steps = (
        b'(' + b''.join(map(whole, sides)) + b't' for sides in (shape, strides)
    )
    hooks = call('collections', 'OrderedDict')
    return call(
        'torch._utils',
        '_rebuild_tensor_v2',
        of,
        whole(offset),
        sizes,
        steps,
        b'\x89',
        hooks,
    )


def entry(key, value):
    """One more entry of the dict below."""
    return key + value + b's'


def checkpoint(*entries, view=b''):
    """The pickle of a dict with a sound state dict, and more."""
    sound = tensor(storage('FloatStorage', 4, view=view), [4], [1])
    state = b'}' + entry(text('a.weight'), sound)
    return b'\x80\x02}' + entry(text('state_dict'), state) + b''.join(entries) + b'.'


def archive(data, storages=None, compress=(), extra=(), root='lit'):
    """A file of torch.save around a pickle."""
    storages = {'0': bytes(16)} if storages is None else storages
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        members = {
            'data.pkl': data,
            'byteorder': b'little',
            **{f'data/{key}': value for key, value in storages.items()},
            'version': b'3\n',
            **dict(extra),
        }
        for key, value in members.items():
            deflate = zipfile.ZIP_DEFLATED if key in compress else zipfile.ZIP_STORED
            file.writestr(f'{root}/{key}', value, deflate)
    return buffer.getvalue()


def legacy(data, keys=('0',), storages=((4, bytes(16)),)):
    """A file of torch before 1.6 around a pickle."""
    system = dict(protocol_version=1001, little_endian=True, type_sizes={})
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, system)]
    parts += [data, pickle.dumps(list(keys), 2)]
    parts += [struct.pack('<q', count) + held for count, held in storages]
    return b''.join(parts)


def nested(levels, of=b']', around=b'\x85'):
    """(((...))), by a tuple around it for each level."""
    return of + around * levels


def doubled(levels):
    """A tuple of two of a tuple of two of ...: 2**levels when unfolded."""
    return b'N\x85' + b''.join(b'q\x07h\x07\x86' for _ in range(levels))


def values(view=b''):
    """Hostile values for an entry; `view` is what the old format has beside."""

    def numbers(*args):
        return storage(*args, view=view)

    return {
        'bytearray of 100 GB': call('__builtin__', 'bytearray', whole(10**11)),
        'storage of 100 GB': call('torch', 'FloatStorage', whole(10**11)),
        'tensor of 100 GB': call('torch', 'FloatTensor', whole(10**11)),
        'Tensor of 400 GB': call('torch', 'Tensor', whole(10**11)),
        'Tensor of 400 GB, rebuilt': call(
            'torch._tensor',
            '_rebuild_from_type_v2',
            name('torch', 'Tensor'),
            name('torch', 'Tensor'),
            b'(' + whole(10**11) + b't',
            b'}',
        ),
        'key that never ends hashing': b'}' + doubled(80) + b'Ns',
        'key too deep to hash': b'}' + nested(100_000) + b'Ns',
        'set of the same': call('__builtin__', 'set', doubled(80) + b'\x85'),
        'Counter of it': call('collections', 'Counter', doubled(80)),
        'OrderedDict of it': call(
            'collections', 'OrderedDict', b'](' + doubled(80) + b'N\x86e'
        ),
        'repr that never ends': call(
            '__builtin__', 'getattr', doubled(80), text('mean')
        ),
        'value that never ends': doubled(80),
        'value too deep': nested(20_000),
        'list in itself': b']q\x08h\x08a',
        'keys that collide': b'}('
        + b''.join(whole(i * (2**61 - 1)) + b'N' for i in range(20_000))
        + b'u',
        'a million instructions': b'(' + b'N' * 1_050_000 + b't',
        'shape of many dimensions': tensor(
            numbers('FloatStorage', 4), [2**62] * 5000, [0] * 5000
        ),
        'tensor of 4 TB in 16 bytes': tensor(numbers('FloatStorage', 4), [2**40], [0]),
        'negative shape': tensor(numbers('FloatStorage', 4), [-4], [1]),
        'beyond its storage': tensor(numbers('FloatStorage', 4), [4], [1], 2),
        'storage beyond its entry': tensor(
            numbers('FloatStorage', 2**28), [2**28], [1]
        ),
        'another kind of numbers': tensor(numbers('DoubleStorage', 4), [4], [1]),
        'no such entry': tensor(numbers('FloatStorage', 4, '7'), [4], [1]),
        'negative storage': tensor(numbers('FloatStorage', -4), [4], [1]),
        'attribute that hides a method': call('collections', 'OrderedDict')
        + b'}'
        + entry(text('items'), b'K\x01')
        + b'b',
        'codec that takes for ever': call(
            '_codecs', 'encode', text(''.join(map(chr, LETTERS))), text('punycode')
        ),
        'device without a name': call('torch', 'device'),
        'device of another name': call('torch', 'device', text('toaster:1')),
        'device of no name': call('torch', 'device', whole(2**70)),
        'errors that grow': call(
            '_codecs',
            'encode',
            text('\ufbf9' * 3_000_000),
            text('ascii'),
            text('namereplace'),
        ),
        'code': call('posix', 'system', text('touch ran')),
        'code by a method': call(
            '__builtin__',
            'getattr',
            name('mmengine.logging', 'HistoryBuffer'),
            text('x'),
        ),
        'announced string of 4 GB': b'X\xff\xff\xff\xff',
        'announced number of 2 GB': b'\x8b\xff\xff\xff\x7f',
    }


@lru_cache(maxsize=None)
def attacks():
    """Name -> the file."""
    found = {}
    for key, value in values().items():
        found[key] = archive(checkpoint(entry(text('x'), value)))
    for key, value in values(b'N').items():
        found[f'{key}, legacy'] = legacy(checkpoint(entry(text('x'), value), view=b'N'))
    sound = checkpoint()
    lists = b'\x80\x04\x8e' + struct.pack('<Q', 10**11) + b'a.'
    found['announced bytes of 100 GB'] = archive(lists)
    found['announced bytearray'] = archive(
        b'\x80\x05\x96' + struct.pack('<Q', 10**11) + b'a.'
    )
    bomb = bytes(200 << 20)
    found['deflated storage'] = archive(sound, {'0': bomb}, ['data/0'])
    found['deflated pickle'] = archive(
        sound[:-1] + b'N' * 10 + b'0' * 10 + b'.' + bomb, compress=['data.pkl']
    )
    found['network as code'] = archive(sound, extra={'constants.pkl': b''}.items())
    found['unknown byte order'] = archive(sound, extra={'byteorder': b'?'}.items())
    found['version that is none'] = archive(sound, extra={'version': b'x'}.items())
    huge = tensor(storage('FloatStorage', 2**60, '1', b'N'), [1], [1])
    found['legacy storage of 4 EB'] = legacy(
        checkpoint(entry(text('x'), huge), view=b'N'),
        ['0', '1'],
        ((4, bytes(16)), (2**60, b'')),
    )
    found['legacy storage that is not there'] = legacy(sound, [], ())
    found['legacy keys that never end hashing'] = legacy(sound)[:-24].replace(
        pickle.dumps(['0'], 2), b'\x80\x02]' + doubled(80) + b'a.'
    )
    found.update(_directories(sound))
    return found


def _directories(sound):
    """Archives whose directory lies."""
    whole_file = archive(sound)
    crc = struct.pack('<I', zlib.crc32(bytes(16)))
    at = whole_file.rindex(crc)  # In the directory: checksum, two sizes.

    def changed(offset, value, length=4):
        content = bytearray(whole_file)
        content[at + offset : at + offset + length] = value.to_bytes(length, 'little')
        return bytes(content)

    twice = io.BytesIO()
    with zipfile.ZipFile(twice, 'w') as file:
        for item, data in (
            ('data.pkl', sound),
            ('DATA.PKL', sound),
            ('data/0', bytes(16)),
        ):
            file.writestr(f'lit/{item}', data)
    other = archive(sound, root='other')
    return {
        'directory: 4 GB in 16 bytes': changed(8, 2**32 - 2),
        'directory: both sizes 4 GB': changed(4, (2**32 - 2) * (2**32 + 1), 8),
        'directory: 8 of 16 bytes': changed(4, 8 * (2**32 + 1), 8),
        'directory: encrypted': changed(-8, 1, 2),
        'directory: elsewhere': changed(26, 0),
        'two of a name': twice.getvalue(),
        'two archives': whole_file + other,
        'flipped bit': whole_file.replace(bytes(16), bytes(15) + b'\x01', 1),
    }
