"""Share options, checks of arguments and one-line errors between commands."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import DictAction

from mmlit.checkpoints.atomic import write_whole
from mmlit.errors import UserError


def command(name: str) -> Callable:
    """Decorate the `main(arguments)` of a command.

    A `UserError` ends it with the line "NAME: message" and exit status 1, any other
    error with a traceback.

    Args:
        name: That of the file in `tools/`.
    """

    def decorate(main: Callable[[list[str] | None], None]) -> Callable:
        @functools.wraps(main)
        def run(arguments: list[str] | None = None) -> None:
            try:
                main(arguments)
            except UserError as error:
                sys.exit(f'{name}: {spell_user_error(error)}')

        return run

    return decorate


def spell_user_error(error: UserError) -> str:
    """Return the text of an error in one line."""
    text = str(error).strip()
    # torch puts a traceback in front of what a data worker raises.
    if text.startswith('Caught ') and 'Original Traceback' in text:
        text = text.splitlines()[-1].split(f'{type(error).__name__}: ')[-1]
    return ' '.join(text.splitlines())


class StrictDictAction(DictAction):
    """DictAction that rejects arguments without '='."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: D102
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string}: {value!r} is not KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the config and `--cfg-options`, named as in mmdet's tools."""
    parser.add_argument('config', help='config file')
    add_cfg_options(parser)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=StrictDictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for example '
        'train_cfg.max_epochs=2 model.backbone.init_cfg=None; write a list as '
        'key="[a,b]" without white space',
    )


def add_runner_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share, named as in mmdet's tools."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: the one of the config, else '
        'work_dirs/<name of the config> in the current folder)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    # torch's launchers give one spelling or the other, by their version.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def positive(text: str) -> int:
    """Convert an argument to a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} must be at least 1')
    return value


def check_least(name: str, value: int, least: int) -> None:
    """Raise UserError if the number of an option is too small."""
    if value < least:
        raise UserError(f'{name} must be at least {least}, got {value}')


def check_file(path: str | Path, what: str) -> None:
    """Raise UserError if `path` is neither a file nor an address such as https://..."""
    if '://' not in str(path) and not Path(path).is_file():
        raise UserError(f'{what} {path} does not exist (seen from {os.getcwd()})')


def check_out_file(path: Path, name: str, force: bool, ending: str = '') -> None:
    """Raise UserError if a file cannot be written, or would replace another."""
    if ending and path.suffix != ending:
        raise UserError(f'{name} must end in {ending}, got {path}')
    if not path.parent.is_dir():
        raise UserError(
            f'the folder of {name} {path} does not exist (seen from {os.getcwd()})'
        )
    if path.is_dir():
        raise UserError(f'{name} {path} is a folder; give the file to write')
    if path.exists() and not force:
        raise UserError(f'{name} {path} exists; --force replaces it')


def write_file(
    path: Path,
    content: bytes | memoryview,
    force: bool = True,
    advance: Callable[[int], None] = lambda written: None,
) -> None:
    """Write a file whole or not at all; raise UserError if it cannot be written.

    Args:
        path: The file, in a folder that exists.
        content: Its bytes.
        force: Replace a file that is there.
        advance: Called with the number of bytes of each step.
    """
    try:
        write_whole(path, memoryview(content), force, advance)
    except OSError as error:
        raise UserError(str(error)) from error
