"""A Python that has imported the stack, and runs scripts in forks of itself.

A tool spends most of a short run on importing torch, mmdet and mmseg. `WarmPython` does
that once; the `python` that it puts on the PATH hands its command line over and is,
for a shell, a Python like any other: output, folder, environment, exit status.
"""

import contextlib
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path

HEAVY = (
    'torch cv2 matplotlib.pyplot mmcv.ops mmdet.apis mmdet.datasets mmdet.engine '
    'mmdet.evaluation mmdet.models mmseg.apis mmseg.models onnxruntime mmlit'
).split()
#: `-S`: it needs nothing but the standard library.
CALLER = """#!/bin/sh
exec {python} -S -c '
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    call = dict(cwd=os.getcwd(), env=dict(os.environ), argv=sys.argv[1:])
    socket.send_fds(server, [json.dumps(call).encode()], [0, 1, 2])
    status = server.recv(1)
sys.exit(status[0] if status else 1)
' "$@"
"""
LONGEST_CALL = 2**20


class WarmPython:
    """The server, started in its own process, and the `python` that calls it."""

    def __init__(self, folder: Path):
        address = folder / 'socket'
        self.bin = folder / 'bin'
        self.bin.mkdir()
        for name in ('python', 'python3'):
            caller = self.bin / name
            caller.write_text(CALLER.format(python=sys.executable, address=address))
            caller.chmod(0o755)
        # One thread: what a fork of several does is anyone's guess.
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(address)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'},
        )
        # What the stack prints when it is imported comes first.
        assert b'ready\n' in iter(self.server.stdout.readline, b'')

    def shell(self, text: str, folder: Path, **environment: str):
        """Runs shell commands that find this `python`, and stop where one fails."""
        path = os.pathsep.join(
            [str(self.bin), str(Path(sys.executable).parent), os.environ['PATH']]
        )
        return subprocess.run(
            ['bash', '-eo', 'pipefail', '-c', text],
            cwd=folder,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    def close(self) -> None:
        """Ends the server."""
        self.server.terminate()
        self.server.wait()
        self.server.stdout.close()


def serve(address: str) -> None:
    """Answers calls one after the other, for ever."""
    for name in HEAVY:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print('ready', flush=True)
        while True:
            caller, _ = server.accept()
            with caller:
                call, descriptors, *_ = socket.recv_fds(caller, LONGEST_CALL, 3)
                child = os.fork()
                if not child:
                    os._exit(run(json.loads(call), descriptors))
                for descriptor in descriptors:
                    os.close(descriptor)
                _, status = os.waitpid(child, 0)
                with contextlib.suppress(BrokenPipeError):
                    caller.sendall(bytes([os.waitstatus_to_exitcode(status) & 255]))


def run(call: dict, descriptors: list) -> int:
    """Does in a fork what `python ARGV` would do; returns its exit status."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(call['cwd'])
    os.environ.clear()
    os.environ.update(call['env'])
    script, *rest = call['argv']
    try:
        if script == '-c':
            sys.argv = ['-c', *rest[1:]]
            exec(compile(rest[0], '<string>', 'exec'), {'__name__': '__main__'})
        else:
            sys.argv = [script, *rest]
            sys.path[0] = str(Path(script).resolve().parent)
            runpy.run_path(script, run_name='__main__')
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == '__main__':
    serve(sys.argv[1])
