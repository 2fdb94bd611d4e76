"""Fixtures for data that lies outside the project; a test skips where it is absent."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

# Before anything imports torch, for these processes and the tools they start: tests
# side by side share the cores, and threads that wait for a core spin.
if 'PYTEST_XDIST_WORKER_COUNT' in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, share)))

import pytest
from mmengine.registry import DefaultScope

# A shell's background jobs, and what they start, ignore the SIGINT that a test sends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHECKOUT = Path(__file__).resolve().parent.parent


def find_outside(variable: str, name: str) -> Path:
    """Return the folder that `variable` names, by default ../shared/NAME."""
    root = Path(os.environ.get(variable) or CHECKOUT.parent / 'shared' / name)
    if not root.is_dir():
        pytest.skip(f'no folder {root} (set {variable} to where the {name} folder is)')
    return root.resolve()


def pytest_collection_modifyitems(items):
    """Mark everything in e2e/ as slow: it starts real processes."""
    for item in items:
        if 'e2e' in Path(item.path).parts:
            item.add_marker(pytest.mark.slow)


@contextmanager
def default_scope_kept():
    """What is done within sets no default scope for what comes after it."""
    # mmengine has no way to take one back but its table of them, which it replaces
    # itself (`overwrite_default_scope`): what is kept is what is in it.
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict = before


@pytest.fixture(autouse=True, scope='module')
def scope_of_its_module():
    """Set by a fixture of a whole module, it ends with that."""
    with default_scope_kept():
        yield


@pytest.fixture(autouse=True)
def scope_of_its_own():
    """A test does not see the default scope that the one before it has set."""
    with default_scope_kept():
        yield


@pytest.fixture(autouse=True)
def signals_of_its_own():
    """A handler of a command or of a training ends with the test."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in signals]
    yield
    for number, handler in zip(signals, before):
        signal.signal(number, handler)


@pytest.fixture(scope='session')
def data_root() -> Path:
    """The folder of real images: coco_tiny/ and ade_layout/."""
    return find_outside('MMLIT_DATA', 'data')


@pytest.fixture(scope='session')
def golden_root() -> Path:
    """The folder of the authors' reference files: *_micro_*.pth."""
    return find_outside('MMLIT_GOLDEN', 'golden')


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """The drawn dataset: 40 images of 96 px to train on, 20 for validation, seed 1."""
    from mmlit_tools.shapes.dataset import ensure_shapes

    out = tmp_path_factory.mktemp('data') / 'shapes'
    return ensure_shapes(out, train=40, val=20, size=96, seed=1, progress=False)


@pytest.fixture
def said(monkeypatch):
    """The lines that loading weights logs."""
    lines = []
    monkeypatch.setattr(
        'mmlit.weights.load.print_log', lambda text, **_: lines.append(text)
    )
    return lines
