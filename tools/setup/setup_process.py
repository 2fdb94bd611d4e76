"""How the set-up runs long commands: output to a log, one progress line to the user.

Standard library only: this runs before anything is installed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Optional, Tuple

# (done, total, what), as a watcher reads it off one line of a command's output.
Status = Tuple[int, int, str]
Watcher = Callable[[str], Optional[Status]]

# Held open by every child, so that a set-up started after this one was killed waits
# until the compiler processes it left behind are gone too.
lock_descriptors: Tuple[int, ...] = ()


class SetupError(Exception):
    """A cause the user can act on, in plain words; printed without a traceback."""


def say(text: str) -> None:
    """Print one message of the set-up."""
    print(f'[setup] {text}', flush=True)


def duration(seconds: float) -> str:
    """Return `seconds` as minutes and seconds: 125 -> '2:05'."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


class Progress:
    """One line that is redrawn on a terminal, and printed now and then elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.monotonic()
        self.status: Optional[Status] = None
        # When the present count began: pip counts packages, then megabytes.
        self.counting_since = self.changed = self.started
        self.live = sys.stdout.isatty()
        self.interval = 0.5 if self.live else 20.0
        self.printed = self.started
        self.width = 0
        self.show(f'{what} ...')

    def update(self, status: Optional[Status]) -> None:
        """Take in a new status, if there is one, and show it when it is time to."""
        now = time.monotonic()
        if status is not None:
            if self.status is not None and self.status[1] != status[1]:
                self.counting_since = self.changed
            self.status, self.changed = status, now
        if now - self.printed >= self.interval:
            self.printed = now
            self.show(self.text(now))

    def text(self, now: float) -> str:
        """Return the line as of the time `now`."""
        elapsed = duration(now - self.started)
        if self.status is None:
            return f'{self.what}: {elapsed} elapsed'
        done, total, what = self.status
        left = ''
        if 0 < done < total:
            rate = (self.changed - self.counting_since) / done
            left = f', about {duration(rate * (total - done))} left'
        return f'{self.what} [{done}/{total}] {what}: {elapsed} elapsed{left}'

    def show(self, text: str) -> None:
        """Put `text` on the line."""
        if not self.live:
            say(text)
            return
        text = f'[setup] {text}'[:110]
        print('\r' + text.ljust(self.width), end='', flush=True)
        self.width = len(text)

    def close(self, text: str) -> None:
        """End the line with `text` and the time taken."""
        text = f'{text} ({duration(time.monotonic() - self.started)})'
        self.show(text)
        if self.live:
            print(flush=True)


def child_environment(**changes: Optional[str]) -> dict:
    """Return this environment with `changes`; None removes a variable."""
    environment = dict(os.environ)
    # Another Python's modules, or pip settings that aim outside .venv.
    for name in ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT'):
        environment.pop(name, None)
    environment.update(PIP_USER='0', PIP_DISABLE_PIP_VERSION_CHECK='1')
    # A child whose output goes to a file would hold it back otherwise.
    environment['PYTHONUNBUFFERED'] = '1'
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return environment


def run_logged(
    command: list,
    log: Path,
    what: str,
    watch: Watcher = lambda line: None,
    env: Optional[dict] = None,
    cwd: Optional[Path] = None,
) -> int:
    """Run `command` with its output in `log`, showing what `watch` makes of it.

    The child writes to the file itself, so it neither blocks nor dies with us.

    Returns:
        The exit status.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'w', encoding='utf-8', errors='replace') as output:
        output.write('$ ' + ' '.join(map(str, command)) + '\n')
        output.flush()
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env or child_environment(),
            cwd=cwd,
            pass_fds=lock_descriptors,
        )
    progress = Progress(what)
    try:
        with open(log, encoding='utf-8', errors='replace') as lines:
            rest = ''
            while True:
                code = child.poll()  # Before reading: nothing written is missed.
                *complete, rest = (rest + lines.read()).split('\n')
                for line in complete:
                    progress.update(watch(line))
                if code is not None:
                    break
                progress.update(None)
                time.sleep(0.2)
    except BaseException:
        if progress.live:
            print(flush=True)
        stop(child)
        raise
    progress.close(f'{what}: ' + ('done' if code == 0 else 'failed'))
    return code


def stop(child: subprocess.Popen) -> None:
    """End `child` the way Ctrl-C does, so that it ends its own children too."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def tail(log: Path, count: int = 20) -> str:
    """Return the last lines of `log`, indented."""
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    return '\n'.join('    ' + line[:200] for line in lines[-count:])


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)
