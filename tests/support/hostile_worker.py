"""Reads, converts and loads the files it is told of; a process that a file may kill.

Run by `hostile_reader.py`. One JSON line in for each file, one out: what came of it,
what the process did that reading does not need, how long it took and how much memory.
"""

import argparse
import encodings.latin_1  # noqa: F401 (below: what is imported late)
import hashlib
import io
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmlit import LIT, checkpoint_reader, read_checkpoint
from mmlit.errors import BrokenCheckpointError, UnsafeCheckpointError
from mmlit_tools.convert import command as convert_checkpoint
from mmlit_tools.convert.conversion import convert_to_mmlit, convert_to_official
from support.official_files import ABSOLUTE_MICRO, RELATIVE_MICRO, official_state

#: What the process may take beyond what it has once everything is imported.
ROOM = 3 << 30
#: Audit events that no reading of a file raises: code, processes, files, network.
DEEDS = (
    'os.exec os.fork os.forkpty os.posix_spawn os.spawn os.system subprocess.Popen '
    'os.remove os.rename os.rmdir os.mkdir os.chmod os.link os.symlink os.putenv '
    'os.kill socket.connect socket.bind exec compile import ctypes.dlopen '
    'webbrowser.open shutil.rmtree pty.spawn'
).split()
deeds = []
watching = False


def watch(event, args):
    if not watching:
        return
    writes = event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+')
    if event in DEEDS or writes:
        deeds.append(f'{event} {args!r:.200}')


def digest(value):
    """The same for the same content, to the last bit."""
    total = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            total.update(f'{type(value).__name__}{len(value)}'.encode())
            for key in value:
                add(key)
                add(value[key])
        elif isinstance(value, (list, tuple)):
            total.update(f'{type(value).__name__}{len(value)}'.encode())
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            # Where it says more than it holds, what it holds.
            held = torch.tensor([], dtype=torch.uint8).set_(value.untyped_storage())
            total.update(f'{value.dtype}{value.shape}{value.stride()}'.encode())
            total.update(held.numpy().tobytes())
        elif isinstance(value, HistoryBuffer):  # Its repr is an address.
            add(value.data)
        elif isinstance(value, np.ndarray):
            total.update(f'{value.dtype}{value.shape}'.encode())
            total.update(value.tobytes())
        else:
            total.update(f'{type(value).__name__}{value!r:.999}'.encode())

    add(value)
    return total.hexdigest()


def peak():
    """Peak of the memory in use, in bytes, since `forget_peak`."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) * 1024
    raise OSError('no VmHWM')


def forget_peak():
    Path('/proc/self/clear_refs').write_text('5')
    return peak()


def use(path, checkpoint, nets):
    """Convert and load what was read; yields what was said, or fails."""
    options = argparse.Namespace(src=path, to_official=False)
    for convert, size in (
        (convert_to_mmlit, None),
        (convert_to_mmlit, (64, 96)),
        (convert_to_official, None),
    ):
        try:
            weights = convert_checkpoint.weights_of(checkpoint)
            result = convert(weights, size)
            options.to_official = convert is convert_to_official
            convert_checkpoint.pack(checkpoint, result, options)
            yield 'converted'
        except ValueError as error:
            yield str(error)
    for net in nets:
        try:
            net.load_state_dict(checkpoint, strict=False)
            yield 'loaded'
        except ValueError as error:
            yield str(error)
        except RuntimeError as error:
            # torch's own report, of keys that are no LIT's.
            if not str(error).startswith('Error(s) in loading state_dict'):
                raise
            yield 'Error(s) in loading'


def handle(path, way, nets):
    global watching
    checkpoint_reader._SINCE_TORCH_2_6 = way == 'torch'
    said, before = [], forget_peak()
    started = time.process_time()
    deeds.clear()
    watching = True
    try:
        checkpoint = read_checkpoint(path)
        outcome, message = 'read', ''
    except UnsafeCheckpointError as error:
        outcome, message = 'refused', str(error)
    except BrokenCheckpointError as error:
        outcome, message = 'broken', str(error)
    except BaseException as error:
        outcome, message = f'{type(error).__name__}', str(error)[:500]
    content = digest(checkpoint) if outcome == 'read' else ''
    if outcome == 'read':
        try:
            said = [text[:2000] for text in use(path, checkpoint, nets)]
        except BaseException as error:
            outcome = f'use: {type(error).__name__}'
            message = str(error)[:500]
    watching = False
    done = list(deeds)
    return dict(
        outcome=outcome,
        message=message,
        said=said,
        deeds=done,
        digest=content,
        seconds=time.process_time() - started,
        memory=peak() - before,
    )


def main():
    torch.set_num_threads(1)
    nets = [LIT(arch, img_size=224) for arch in (RELATIVE_MICRO, ABSOLUTE_MICRO)]
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    # What is imported late shall not look like a deed of the first file.
    for arch in (RELATIVE_MICRO, ABSOLUTE_MICRO):
        state = official_state(arch, 'imagenet')
        torch.save(state, io.BytesIO())
        list(use(Path(__file__), {'model': state}, nets))
    sys.addaudithook(watch)
    limited = False
    for line in sys.stdin:
        case = json.loads(line)
        answer = handle(Path(case['path']), case['way'], nets)
        print(json.dumps(answer), file=answers, flush=True)
        if not limited:  # The first file is a sound one: all is imported now.
            limited = True
            pages = int(Path('/proc/self/statm').read_text().split()[0])
            most = pages * resource.getpagesize() + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == '__main__':
    main()
