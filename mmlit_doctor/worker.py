"""Run checks in another process, which may crash or hang.

A broken extension does not raise, it ends the process or never returns. The process
answers a line of JSON with a line of JSON; when it dies, the last question is to blame,
and the next one starts a new process.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from typing import Any, Dict, Optional

from .check_installed import find_opencv
from .check_runs import list_devices
from .checks import BY_NAME
from .findings import Advice, Fault, first_line
from .install import ROOT, TESTED, for_this_python, installed, version_of

# Neither this package's folder nor the current one is on the path of the checks: what
# they import is what a tool of mmdet's would import.
START = """
import sys
sys.path[:] = [{root!r}, *filter(None, sys.path)]
from mmlit_doctor.worker import serve
del sys.path[0]
serve()
"""


class DiedError(Exception):
    """The worker ended, or was ended, instead of answering."""


class Worker:
    """Ask a process that is started when it is needed.

    Args:
        patience: Seconds that an answer may take; an attribute, too.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self._process: Optional[subprocess.Popen] = None

    def ask(self, action: str, *arguments: str) -> Any:
        """Return the answer to one of ACTIONS.

        Raises:
            DiedError: There is none.
        """
        if self._process is None:
            self._start()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self._exchange, json.dumps([action, *arguments]))
            try:
                line = answer.result(self.patience)
            except TimeoutError:
                self.stop()
                raise DiedError(f'no end after {self.patience:g} s') from None
            except BaseException:  # Ctrl-C: the thread waits for the process.
                self.stop()
                raise
        if not line:
            raise DiedError(self._cause_of_death())
        return json.loads(line)

    def stop(self) -> None:
        """End the process, if there is one; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, '-c', START.format(root=str(ROOT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def _exchange(self, question: str) -> str:
        try:
            print(question, file=self._process.stdin, flush=True)
        except OSError:  # It is dead already: there is no answer to read.
            return ''
        return self._process.stdout.readline()

    def _cause_of_death(self) -> str:
        status = self._process.wait()
        self._process = None
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        try:
            how = f'a crash ({signal.Signals(-status).name})'
        except ValueError:
            how = f'a sudden end (status {status})'
        return f'{how}: {said[-1][:200]}' if said else how


def serve() -> None:
    """Answer until standard input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for question in sys.stdin:
        action, *arguments = json.loads(question)
        print(json.dumps(ACTIONS[action](*arguments)), file=answers, flush=True)


def _check(name: str, *arguments: str) -> Dict[str, str]:
    check = BY_NAME[name]
    try:
        return {'level': 'ok', 'seen': check.run(*arguments), 'mend': ''}
    except Advice as advice:
        level, seen, mend = 'advice', advice.seen, advice.mend
    except Fault as fault:
        level, seen, mend = 'fault', fault.seen, fault.mend
    except (Exception, SystemExit) as error:
        level, seen, mend = 'fault', first_line(error), check.mend(*arguments)
    return {'level': level, 'seen': seen, 'mend': for_this_python(mend)}


def _mend(name: str, *arguments: str) -> str:
    return for_this_python(BY_NAME[name].mend(*arguments))


def _versions() -> Dict[str, str]:
    """Return {name: version} for the head of a report, '' where not installed."""
    there = installed()
    names = ('mmlit', *TESTED, 'numpy', 'torchvision')
    return {
        'python': platform.python_version(),
        'platform': platform.platform(),
        **{name: version_of(name) for name in names},
        'opencv': ', '.join(f'{name} {there[name]}' for name in find_opencv()),
    }


ACTIONS = {
    'check': _check,
    'mend': _mend,
    'devices': list_devices,
    'versions': _versions,
}
