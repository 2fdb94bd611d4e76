"""The hashes of what the set-up installs: whole, kept to, and made from an index."""

import hashlib
import json
import re
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SETUP = CHECKOUT / 'tools' / 'setup'
sys.path.insert(0, str(SETUP))

import setup_hashes  # noqa: E402
import setup_mmcv  # noqa: E402
import setup_packages  # noqa: E402
import setup_steps  # noqa: E402
from setup_process import SetupError  # noqa: E402

REQUIREMENTS = CHECKOUT / 'requirements'
#: torch: its CPU build lies in another index, and the set-up installs no other file.
LISTS = sorted(set(REQUIREMENTS.rglob('*.txt')) - {REQUIREMENTS / 'torch.txt'})


# --- the lock files --------------------------------------------------------------


def test_every_list_has_a_lock_and_every_lock_a_list():
    assert len(LISTS) >= 9
    locks = {setup_hashes.lock_of(file) for file in LISTS}
    assert locks == set(REQUIREMENTS.rglob('*.lock'))


@pytest.mark.parametrize(
    'pins', LISTS, ids=lambda file: str(file.relative_to(REQUIREMENTS))
)
def test_a_lock_has_the_pins_of_its_list_each_with_hashes(pins):
    lock = setup_hashes.lock_of(pins)
    hashes = setup_hashes.read_lock(lock)
    wanted = setup_packages.read_pins(pins).items()
    assert list(hashes) == [f'{name}=={version}' for name, version in wanted]
    for pin, files in hashes.items():
        assert files and files == sorted(set(files)), pin
    # Nothing was lost or added by hand: it is what is written from what is read.
    text = ''.join(
        line
        for line in lock.read_text().splitlines(keepends=True)
        if not line.startswith('#')
    )
    assert text == setup_hashes.write_pins(hashes, hashes)
    assert f'lock_pins.py of {pins.name}:' in lock.read_text()


def test_locks_hold_the_files_of_all_platforms():
    hashes = setup_hashes.read_lock(REQUIREMENTS / 'stack.lock')
    # Wheels of a compiled package for each Python, system and machine, and its sources.
    assert sum(pin.startswith(('numpy==', 'scipy==')) for pin in hashes) == 2
    for pin, files in hashes.items():
        assert len(files) > 30 or not pin.startswith(('numpy==', 'scipy=='))


@pytest.mark.parametrize('line', ['numpy>=2.0', 'numpy==2.0', '    --hash=md5:00'])
def test_a_line_that_is_none_of_a_lock_file_is_refused(tmp_path, line):
    (tmp_path / 'a.lock').write_text(f'# A lock.\n{line}\n')
    with pytest.raises(SetupError, match=re.escape(repr(line))):
        setup_hashes.read_lock(tmp_path / 'a.lock')


@pytest.mark.parametrize('hashes', [{}, {'numpy==2.0': []}, {'numpy==1.0': ['0' * 64]}])
def test_a_pin_without_hashes_is_not_given_to_pip(hashes):
    with pytest.raises(SetupError, match=r'numpy==2\.0.*lock_pins\.py'):
        setup_hashes.write_pins(['numpy==2.0'], hashes)


# --- the set-up keeps to them ----------------------------------------------------


class Remembers(Exception):
    """Raised in place of running pip."""


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A set-up of an empty environment that stops where it would run pip."""

    def note(pip, what, arguments, total=0):
        raise Remembers(list(arguments), total)

    monkeypatch.setattr(setup_packages.Pip, 'install', note)
    made = setup_steps.Setup(CHECKOUT, 'openmmlab')
    made.site = tmp_path / 'site'
    made.pip = setup_packages.Pip(Path(sys.executable), tmp_path)
    return made


@pytest.mark.parametrize('stack', setup_steps.STACKS)
@pytest.mark.parametrize('step', ['build', 'stack', 'test', 'docs'])
def test_a_step_gives_pip_its_pins_with_hashes(setup, stack, step):
    setup.stack = stack
    with pytest.raises(Remembers) as call:
        setup.steps[step]()
    arguments, total = call.value.args
    assert {'--require-hashes', '--no-deps'} <= set(arguments)
    file = Path(arguments[arguments.index('-r') + 1])
    pins = {f'{name}=={version}' for name, version in setup.pins(step).items()}
    given = setup_hashes.read_lock(file)
    assert set(given) == pins and total == len(pins)
    assert all(given.values())
    # Nothing comes beside the file: an argument with a pin would have no hash.
    assert not any('==' in argument for argument in arguments)


def test_a_fuller_lock_redoes_no_step(tmp_path):
    keys = []
    for extra in ('', f'added==1.0 \\\n    --hash=sha256:{"0" * 64}\n'):
        for file in (*LISTS, REQUIREMENTS / 'torch.txt'):
            copy = tmp_path / file.relative_to(CHECKOUT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(file.read_text())
            setup_hashes.lock_of(copy).write_text(extra)
        made = setup_steps.Setup(tmp_path, 'openmmlab')
        keys.append([made.key(step) for step in ('build', 'stack', 'test', 'docs')])
    assert made.hashes('test') == {'added==1.0': ['0' * 64]}
    assert keys[0] == keys[1]


def write_wheel(folder, text):
    """Write a wheel of `tiny` 1.0 and return its sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'tiny-1.0-py3-none-any.whl'
    info = 'tiny-1.0.dist-info'
    with zipfile.ZipFile(file, 'w') as wheel:
        wheel.writestr('tiny.py', text)
        wheel.writestr(
            f'{info}/METADATA', 'Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n'
        )
        wheel.writestr(
            f'{info}/WHEEL',
            'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        )
        wheel.writestr(f'{info}/RECORD', '')
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_pip_installs_the_file_of_the_lock_and_no_other(tmp_path):
    """With the real pip: a mirror that holds another file of the same version."""
    sha256 = write_wheel(tmp_path / 'pypi', 'here = 1\n')
    write_wheel(tmp_path / 'mirror', 'here = "something else"\n')
    pip = setup_packages.Pip(Path(sys.executable), tmp_path / 'logs')

    def install(source):
        options = ('--isolated', '--no-index', '--find-links', str(tmp_path / source))
        options += ('--target', str(tmp_path / f'from-{source}'))
        hashes = {'tiny==1.0': ['0' * 64, sha256]}
        pip.install_locked('installing tiny', ['tiny==1.0'], hashes, options)

    install('pypi')
    assert (tmp_path / 'from-pypi' / 'tiny.py').read_text() == 'here = 1\n'
    with pytest.raises(SetupError) as failure:
        install('mirror')
    assert not (tmp_path / 'from-mirror').exists()
    message = str(failure.value)
    assert 'serves files of tiny==1.0 that are not those of the release' in message
    assert '\n' not in message and str(tmp_path / 'logs') in message


def test_the_sources_of_mmcv_are_those_of_the_lock(tmp_path, monkeypatch):
    """And they are not unpacked, nor is anything of them run, if they are others."""
    ran = []

    def download(command, log, what):
        ran.append(list(map(str, command)))
        ran.append(Path(ran[0][ran[0].index('-r') + 1]).read_text())
        log.write_text(
            'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.'
            '\n    mmcv==2.1.0 from file:///a.tar.gz (from -r a.txt (line 1)):\n'
            '        Expected sha256 00\n             Got        11\n'
        )
        return 1

    monkeypatch.setattr(setup_mmcv, 'run_logged', download)
    hashes = setup_steps.Setup(CHECKOUT, 'openmmlab').hashes('mmcv')
    assert list(hashes) == ['mmcv==2.1.0']
    python = Path(sys.executable)
    arguments = (python, 'mmcv', '2.1.0', hashes, tmp_path / 'build', tmp_path)
    with pytest.raises(SetupError, match=r'^the package index .* of mmcv==2\.1\.0 '):
        setup_mmcv.fetch_sources(*arguments)
    assert '--require-hashes' in ran[0]
    assert ran[1] == setup_hashes.write_pins(hashes, hashes)
    assert list((tmp_path / 'build').iterdir()) == []


# --- the tool that writes them ---------------------------------------------------

FILES = {
    'tiny-1.0-py3-none-any.whl': 'a',
    'tiny-1.0-cp311-cp311-win_amd64.whl': 'b',
    'tiny-1.0-cp315-cp315-macosx_11_0_arm64.whl': 'c',
    'tiny-1.0.tar.gz': 'd',
    # Of other releases, or nothing that pip installs.
    'tiny-1.0.post1.tar.gz': 'e',
    'tiny-1.0.1-py3-none-any.whl': 'f',
    'tiny-1.0-py3.11.egg': '0',
    'tiny-dev.tar.gz': '1',
}


class Quiet(SimpleHTTPRequestHandler):
    """A package index that does not talk; it knows JSON, HTML or neither's hashes."""

    def __init__(self, *args, kind, asked, **kwargs):
        self.kind, self.asked = kind, asked
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked.append(self.path)
        files = {name: {'sha256': x * 64} for name, x in FILES.items()}
        if self.kind == 'bare':
            files['tiny-1.0.tar.gz'] = {}
        if self.kind == 'json':
            form = 'application/vnd.pypi.simple.v1+json'
            assert form in self.headers['Accept']
            for hashes in files.values():
                hashes['md5'] = hashes.pop('sha256')[:32]
                hashes['sha256'] = hashes['md5'] * 2  # Not the first one.
            entries = [
                {'filename': name, 'url': f'../../{name}', 'hashes': hashes}
                for name, hashes in files.items()
            ]
            page = {'meta': {'api-version': '1.1'}, 'name': 'tiny', 'files': entries}
            text = json.dumps(page)
        else:
            form = 'text/html'
            text = '<!DOCTYPE html><html><body>'
            for name, hashes in files.items():
                fragment = ''.join(f'#sha256={x}' for x in hashes.values())
                text += f'<a href="../../{name}{fragment}">{name}</a>'
        self.send_response(200)
        self.send_header('Content-Type', form)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def lock_pins(tmp_path):
    """Runs the tool on the list with tiny==1.0 and an index of the given kind."""
    folder = tmp_path / 'requirements'
    folder.mkdir()
    (folder / 'a.txt').write_text('# Why.\nTiny==1.0\n')
    (folder / 'torch.txt').write_text('torch==2.13.0\n')

    def run(kind, *options):
        asked = []
        handler = partial(Quiet, kind=kind, asked=asked)
        with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f'http://127.0.0.1:{server.server_port}/simple'
            command = [sys.executable, str(SETUP / 'lock_pins.py'), *options]
            command += ['--index-url', url, '--requirements', str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            server.shutdown()
        # torch is not asked for, and tiny by its normalised name.
        assert set(asked) == {'/simple/tiny/'}
        return done

    run.lock = folder / 'a.lock'
    return run


@pytest.mark.parametrize('kind', ['json', 'html'])
def test_the_hashes_of_all_files_of_a_release_are_written(lock_pins, kind):
    done = lock_pins(kind)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == f'written: {lock_pins.lock}\n'
    assert setup_hashes.read_lock(lock_pins.lock) == {
        'tiny==1.0': [letter * 64 for letter in 'abcd']
    }
    assert '127.0.0.1' not in lock_pins.lock.read_text()
    assert not lock_pins.lock.with_name('torch.lock').exists()
    # The same again: nothing to write, nothing to report.
    done = lock_pins(kind, '--check')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_check_reports_what_changed_and_writes_nothing(lock_pins):
    lock_pins.lock.write_text('# An older one.\n')
    done = lock_pins('json', '--check')
    assert (done.returncode, done.stdout) == (1, f'differs: {lock_pins.lock}\n')
    assert lock_pins.lock.read_text() == '# An older one.\n'


def test_an_index_without_hashes_is_refused(lock_pins):
    done = lock_pins('bare')
    assert done.returncode == 1
    assert done.stderr == 'stopped: the index lists no sha256 of tiny-1.0.tar.gz\n'
    assert not lock_pins.lock.exists()
