"""Set up .venv with the pinned stack; `make setup`, `make demo`, `make test` run it.

`--stack onedl` sets up .venv-onedl beside it, with the maintained continuation of the
OpenMMLab packages.

A second run does nothing, and an interrupted one goes on: see setup_steps.py for the
steps. Standard library only.

Environment variables: MMLIT_DEVICE=cpu|cuda overrides the choice of torch and ops;
MAX_JOBS limits the compilers; CUDA_HOME, TORCH_CUDA_ARCH_LIST and CXX are passed on.
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

import setup_mmcv
import setup_process
from setup_process import SetupError, say
from setup_steps import STACKS, Setup

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PYTHON = (3, 11)  # What the pinned numpy asks for.
TESTED_PYTHON = (3, 11)


def run(setup: Setup) -> None:
    """Do the steps of `setup` that are not done yet."""
    if not setup.todo():
        return
    with setup_lock(setup.build / 'setup.lock'):
        todo = setup.todo()
        if not todo:  # Another set-up did them while this one waited.
            return
        say(f'setting up {setup.venv} ({", ".join(todo)})')
        if sys.version_info[:2] != TESTED_PYTHON:
            say(
                f'this is Python {dotted(sys.version_info[:3])}; '
                f'only {dotted(TESTED_PYTHON)} was tested'
            )
        if 'mmcv' in todo and not setup.has_wheel():
            setup_mmcv.check_compiler()  # Rather now than after the downloads.
        for step in setup.steps:
            # Asked again: making .venv anew undoes what was done.
            if not setup.is_done(step):
                setup.do(step)
        say('complete')


@contextlib.contextmanager
def setup_lock(file: Path):
    """Let one set-up at a time work on this checkout; the others wait."""
    try:
        import fcntl
    except ImportError:  # Windows.
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(
                'another set-up is at work in this checkout, or what a killed one left '
                'running: waiting for it to end'
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        setup_process.lock_descriptors = (lock.fileno(),)
        yield


def dotted(version: tuple) -> str:
    """Return (3, 11) as '3.11'."""
    return '.'.join(map(str, version))


def leave_venv() -> None:
    """Go on under the Python that a .venv was made from: that may be replaced."""
    if Path(sys.prefix).resolve() in [ROOT / venv for venv in STACKS.values()]:
        base = getattr(sys, '_base_executable', sys.executable)
        if Path(base) != Path(sys.executable):
            os.execv(base, [base, *sys.argv])


def check_python() -> None:
    """Raise if this Python is too old for the pinned stack."""
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f'the pinned stack needs Python {dotted(OLDEST_PYTHON)} or newer, and '
            f'{sys.executable} is {dotted(sys.version_info[:3])}: choose another one '
            'with PYTHON=...'
        )


def read_stack() -> str:
    """Return the stack that the command line asks for; an unknown one is refused."""
    parser = argparse.ArgumentParser(description='Set up the pinned environment.')
    parser.add_argument('--stack', choices=list(STACKS), default='openmmlab')
    return parser.parse_args().stack


def main() -> int:
    """Run the set-up and return the exit status."""
    leave_venv()
    stack = read_stack()
    # A terminated set-up ends its children like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_python()
        run(Setup(ROOT, stack))
    except SetupError as error:
        print(f'[setup] stopped: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            '\n[setup] interrupted; the same command goes on where this stopped',
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
