"""The steps of the set-up: what each installs, and what it depends on.

Each step leaves a stamp in the environment once it is done, keyed by what went into it.
Standard library only: this runs before anything is installed.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import setup_mim
import setup_mmcv
import setup_torch
from setup_hashes import Hashes, lock_of, read_lock
from setup_packages import (
    FOREIGN_OPENCV,
    PROGRESS,
    Pip,
    find_installed,
    find_missing,
    is_editable,
    is_intact,
    pip_check,
    read_pins,
    remove_debris,
)
from setup_process import (
    SetupError,
    child_environment,
    run_logged,
    say,
    tail,
    write_atomically,
)

# The folders of requirements/ that hold the pins of one stack, and the environment
# each is installed in.
STACKS = {'openmmlab': '.venv', 'onedl': '.venv-onedl'}

# Published without a wheel; plain Python, so that the build step's tools suffice.
SOURCES_ONLY = ('onedl-mmdetection', 'onedl-mmsegmentation')

# The lines of `pip check` that are right for these environments. imaug names what it
# imports for some augmentations alone, and an OpenCV older than the pinned one.
EXPECTED_CHECK = re.compile(
    r'\S+ \S+ requires opencv-python, which is not installed\.'
    r'|imaug \S+ requires imagecorruptions-imaug, which is not installed\.'
    r'|imaug \S+ has requirement opencv-python(-headless)?<\S+, but you have '
    r'opencv-python-headless \S+\.'
)


class Setup:
    """The steps, over one checkout, for the environment of one of its STACKS."""

    def __init__(self, root: Path, stack: str) -> None:
        self.root = root
        self.stack = stack
        self.venv = root / STACKS[stack]
        self.build = root / '.build'
        self.wheels = setup_mmcv.wheel_cache()
        self.stamps = self.venv / '.mmlit-setup'
        self.python = self.venv / 'bin' / 'python'
        self.site = setup_mim.site_of(self.venv)
        self.mim = self.build / 'mim'
        self.pip = Pip(self.python, self.build)
        self.device = setup_torch.choose_device()
        # In order: torch needs the stack to be imported, and mmcv needs both (its
        # metadata asks for opencv-python where no OpenCV is found).
        self.steps: Dict[str, Callable[[], None]] = {
            'venv': self.make_venv,
            'build': self.install_build,
            'stack': self.install_stack,
            'test': self.install_test,
            'docs': self.install_docs,
            'torch': self.install_torch,
            'mmcv': self.install_mmcv,
            'mmlit': self.install_mmlit,
            'check': self.check,
            'mim': self.make_mim,
        }
        if stack != 'openmmlab':
            del self.steps['mim']  # One is enough, and it shares .venv's packages.

    def lists(self, name: str) -> List[Path]:
        """Return `name`.txt of requirements/ and of the stack's folder, if there."""
        folder = self.root / 'requirements'
        files = (folder / f'{name}.txt', folder / self.stack / f'{name}.txt')
        return [file for file in files if file.is_file()]

    def pins(self, name: str) -> Dict[str, str]:
        """Return the pins of the lists `name`."""
        pins = {}
        for file in self.lists(name):
            pins.update(read_pins(file))
        return pins

    def hashes(self, name: str) -> Hashes:
        """Return the hashes beside the lists `name`.

        No part of a step's key: what is installed stays when they become more.
        """
        locks = [lock_of(file) for file in self.lists(name)]
        hashes: Hashes = {}
        for lock in locks:
            if lock.is_file():
                hashes.update(read_lock(lock))
        return hashes

    def mmcv(self) -> Tuple[str, str]:
        """Return the (distribution name, version) of this stack's mmcv."""
        ((name, version),) = self.pins('mmcv').items()
        return name, version

    def has_wheel(self) -> bool:
        """Tell if a finished wheel of this stack's mmcv is there, for any torch."""
        name, version = self.mmcv()
        return any(self.wheels.glob(f'{name}-{version}-*/*.whl'))

    def key(self, step: str) -> str:
        """Return what a finished `step` depends on, hashed."""
        # A moved checkout breaks the absolute paths of a virtual environment.
        parts: List[object] = [step, sys.version, sys.base_prefix, self.root]
        if step in ('torch', 'mmcv', 'check'):
            parts += [self.device, self.pins('torch')]
        if step == 'mmlit':
            sources = ('setup.py', 'pyproject.toml', 'mmlit/version.py')
            parts += [(self.root / source).read_text() for source in sources]
        if step in ('build', 'stack', 'test', 'docs', 'mmcv', 'mim'):
            parts.append(sorted(self.pins(step).items()))
        if step == 'mmcv':
            parts += [os.environ.get('CUDA_HOME'), shutil.which('nvcc')]
        if step == 'check':
            others = (name for name in self.steps if name not in ('check', 'mim'))
            parts += [self.key(name) for name in others]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def is_done(self, step: str) -> bool:
        """Tell if `step` has its stamp and its packages are still listed."""
        try:
            stamp = json.loads((self.stamps / step).read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return False
        if stamp != {'key': self.key(step)}:
            return False
        if step in ('build', 'torch', 'stack', 'test', 'docs', 'mmcv'):
            return not find_missing(self.site, self.pins(step), deep=False)
        if step == 'mim':
            site = setup_mim.site_of(self.mim)
            return not find_missing(site, self.pins(step), deep=False)
        if step == 'mmlit':
            # A wheel in its place would be a copy that no edit of the checkout reaches.
            return any(
                key.startswith('mmlit==') and is_editable(folder)
                for key, folder in find_installed(self.site).items()
            )
        return self.python.exists()

    def todo(self) -> List[str]:
        """Return the steps that are not done."""
        return [step for step in self.steps if not self.is_done(step)]

    def do(self, step: str) -> None:
        """Do one step and leave its stamp."""
        self.steps[step]()
        stamp = json.dumps({'key': self.key(step)})
        write_atomically(self.stamps / step, stamp)

    def make_venv(self) -> None:
        """Create .venv, or adopt one that is sound and of this Python."""
        if self.venv.exists():
            if self.venv_is_sound():
                return
            say(f'{self.venv.name} is incomplete or of another Python: making it anew')
            shutil.rmtree(self.venv)
        log = self.build / 'venv.log'
        command = [sys.executable, '-m', 'venv', self.venv]
        if run_logged(command, log, f'creating {self.venv.name}') != 0:
            raise SetupError(
                f'{sys.executable} could not create a virtual environment (on Debian '
                f'and Ubuntu that takes the package python3-venv):\n{tail(log)}'
            )

    def venv_is_sound(self) -> bool:
        """Tell if .venv runs, is of this very Python, and has a pip in one piece."""
        code = 'import sys, pip._internal.cli.main; print(sys.version, sys.base_prefix)'
        try:
            done = subprocess.run(
                [str(self.python), '-c', code],
                capture_output=True,
                text=True,
                env=child_environment(),
            )
        except OSError:
            return False
        installed = find_installed(self.site).items()
        pips = [folder for key, folder in installed if key.startswith('pip==')]
        return (
            done.returncode == 0
            and done.stdout.strip() == f'{sys.version} {sys.base_prefix}'
            and len(pips) == 1
            and is_intact(pips[0])
            and (self.python.parent / 'activate').is_file()  # Written last.
        )

    def install_pins(self, what: str, name: str, options: tuple) -> None:
        """Install what is missing or damaged of the lists `name`, and nothing else."""
        remove_debris(self.site)
        missing = find_missing(self.site, self.pins(name), deep=True)
        if missing:
            # Damaged ones count as installed for pip unless it is forced.
            options = ('--force-reinstall', *options)
            self.pip.install_locked(what, missing, self.hashes(name), options)

    def install_build(self) -> None:
        """Install pip, setuptools and what else builds packages."""
        self.install_pins('installing the build tools', 'build', ())

    def install_torch(self) -> None:
        """Install the build of torch that this machine's device asks for."""
        remove_debris(self.site)
        pins = self.pins('torch')
        here = not find_missing(self.site, pins, deep=True)
        if here and self.torch_fits():
            return
        if here:
            say(
                f'the torch in {self.venv.name} is not the {self.device} build: '
                'replacing it'
            )
        constraints = self.root / 'requirements' / 'stack.txt'
        setup_torch.install(self.pip, self.device, pins['torch'], constraints)
        if not self.torch_fits():
            version, _ = setup_torch.installed(self.python)
            say(f'going on with torch {version}, which is no {self.device} build')

    def torch_fits(self) -> bool:
        """Tell if the installed torch is the build for this machine."""
        return bool(setup_torch.installed(self.python)[1]) == (self.device == 'cuda')

    def install_stack(self) -> None:
        """Install mmengine, mmdet, mmsegmentation and all they need, but mmcv."""
        foreign = [
            key.partition('==')[0]
            for key in find_installed(self.site)
            if key.partition('==')[0] in FOREIGN_OPENCV
        ]
        if foreign:  # Its files and those of the headless one are the same.
            self.pip.uninstall(foreign)
        # Wheels only: a source build would take long and need tools nobody promised.
        options = ('--only-binary', ':all:', '--no-binary', ','.join(SOURCES_ONLY))
        options += ('--no-build-isolation', *PROGRESS)
        what = 'installing the stack (some minutes, up to 250 MB)'
        self.install_pins(what, 'stack', options)

    def install_test(self) -> None:
        """Install what `make test` needs."""
        # fvcore and iopath have no wheels; the build step's setuptools builds them.
        options = ('--no-build-isolation',)
        self.install_pins('installing the test tools', 'test', options)

    def install_docs(self) -> None:
        """Install what `make docs` and the notebook need."""
        options = ('--only-binary', ':all:')
        what = 'installing what builds the documentation'
        self.install_pins(what, 'docs', options)

    def install_mmcv(self) -> None:
        """Install mmcv with ops that work here, from the finished wheel if it is."""
        name, version = self.mmcv()
        torch, cuda = setup_torch.installed(self.python)
        ops = 'cpu'
        if self.device == 'cuda':
            usable, reason = setup_mmcv.find_cuda(cuda)
            ops = f'cuda{cuda}' if usable else 'cpu'
            if not usable:
                say(f'mmcv gets CPU ops only, so training runs on the CPU: {reason}')
        remove_debris(self.site)
        if not find_missing(self.site, self.pins('mmcv'), deep=True):
            if not setup_mmcv.check_ops(self.python, ops):
                return  # There and working.
            say(f'the mmcv in {self.venv.name} has no working {ops} ops: replacing it')
        key = setup_mmcv.wheel_key(name, version, torch, ops)
        folder = self.wheels / key
        wheel = setup_mmcv.find_wheel(folder)
        if wheel is not None and self.install_wheel(wheel, ops):
            say(f'the wheel in {folder} does not work here: building another one')
            wheel.unlink()
            wheel = None
        if wheel is None:
            hashes = self.hashes('mmcv')
            tree = setup_mmcv.fetch_sources(
                self.python, name, version, hashes, self.build / key, self.build
            )
            wheel = setup_mmcv.build_wheel(
                self.python, name, version, ops, tree, folder, self.build
            )
            failure = self.install_wheel(wheel, ops)
            if failure:
                raise SetupError(f'mmcv was built, but its ops do not work: {failure}')

    def install_wheel(self, wheel: Path, ops: str) -> str:
        """Install the mmcv `wheel` and return what is wrong with its ops, or ''."""
        arguments = ('--no-deps', '--force-reinstall', str(wheel))
        self.pip.install(f'installing {wheel.name}', arguments, total=1)
        return setup_mmcv.check_ops(self.python, ops)

    def install_mmlit(self) -> None:
        """Install mmlit itself, so that edits take effect at once."""
        # compat: a plain path entry, which tools that look for folders understand.
        mode = ('--config-settings', 'editable_mode=compat')
        arguments = ('--no-deps', '--no-build-isolation', *mode, '-e', str(self.root))
        self.pip.install('installing mmlit', arguments, total=1)

    def make_mim(self) -> None:
        """Make the environment of mim, which shares .venv's packages."""
        wanted = [f'{name}=={version}' for name, version in self.pins('mim').items()]
        setup_mim.make(self.mim, self.site, wanted, self.hashes('mim'), self.build)

    def check(self) -> None:
        """Run `pip check`, explain the line that is expected, fail on any other."""
        explain_check(pip_check(self.python), self.venv.name)


def explain_check(output: str, venv: str) -> None:
    """Say what `pip check` in `venv` printed; raise if it names a real problem."""
    lines = [line for line in output.splitlines() if line.strip()]
    problems = [line for line in lines if not EXPECTED_CHECK.fullmatch(line)]
    if problems == ['No broken requirements found.']:
        return
    if problems:
        raise SetupError(
            '`pip check` finds packages that do not fit together:\n    '
            + '\n    '.join(problems)
            + f'\nDelete {venv} and run the same command again; if that does not help, '
            'a pin in requirements/ is wrong.'
        )
    say(f'pip check says: {" ".join(lines)}')
    say(
        'That is as it should be: OpenCV is asked for under the name opencv-python, '
        'and here it is opencv-python-headless, the same OpenCV without windows. '
        'Installing both would make them overwrite each other.'
    )
    if any(line.startswith('imaug ') for line in lines):
        say(
            'And imaug is here because onedl-mmdetection imports it, in its lane '
            'transforms: what it asks for beyond that is left out.'
        )
