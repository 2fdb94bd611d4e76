"""A process that reads hostile files, and what it is held to."""

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: Seconds of work for a small file, and how long to wait for them on a busy machine.
WORK, PATIENCE = 20, 300
#: Bytes beyond those of the file, several times over: reading takes no more.
MEMORY = 256 << 20
OUTCOMES = ('read', 'refused', 'broken')


class HostileReader:
    """Has files read, converted and loaded in another process, and judges it.

    Args:
        sound: The bytes of a sound checkpoint, to begin with.
    """

    def __init__(self, sound):
        self.cases = 0
        self.sound = sound
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / 'lit_s.pth'
        self.errors = Path(self.folder.name) / 'stderr'
        self.process = None

    def _start(self):
        path = [str(TESTS.parent), str(TESTS), os.environ.get('PYTHONPATH', '')]
        env = {**os.environ, 'PYTHONPATH': os.pathsep.join(path)}
        with open(self.errors, 'w') as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(TESTS / 'support/hostile_worker.py')],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**env, 'OMP_NUM_THREADS': '1'},
            )
        for way in ('own', 'torch'):
            assert self._ask(self.sound, way, PATIENCE)['outcome'] == 'read'

    def _ask(self, content, way, patience):
        self.path.write_bytes(content)
        case = json.dumps(dict(path=str(self.path), way=way)) + '\n'
        self.process.stdin.write(case.encode())
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        assert ready, f'it hangs: no answer in {patience} s'
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.process = None
            said = self.errors.read_text(errors='replace')[-2000:]
            raise AssertionError(f'it died with status {status}: {said}')
        return json.loads(line)

    def __call__(self, content, way='torch', memory=MEMORY):
        """What came of a file, which no file may make other than orderly."""
        if self.process is None:
            self._start()
        self.cases += 1
        try:
            answer = self._ask(content, way, PATIENCE)
        except AssertionError:
            self.close()
            raise
        assert answer['outcome'] in OUTCOMES, answer
        assert answer['deeds'] == [], answer
        assert answer['seconds'] < WORK, answer
        assert answer['memory'] < memory + 8 * len(content), answer
        if answer['outcome'] != 'read':
            # A sentence that names the file, of a length that can be read.
            assert str(self.path) in answer['message'], answer
            assert len(answer['message']) < 1200, answer
        for text in answer['said']:
            assert 5 < len(text) < 2000, text
        return answer

    def close(self):
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.folder.cleanup()
