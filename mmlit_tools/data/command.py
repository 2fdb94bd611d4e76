"""Check the data of a config before training on it.

    python tools/check_data.py CONFIG [--cfg-options KEY=VALUE ...] [--workers N]

Reads the training and validation data that the config names: annotation files, whole
images and masks, loaded as the pipeline does; nothing else of it is run. Ends with
status 1 where there are errors. `tools/train.py --check-data` does the same before it
trains. `--quick` reads no more of images than their headers.

An error cannot be right: training would crash, or learn something other than what the
files mean. Warnings also occur in sound datasets: COCO has boxes without an area and
boxes that reach over the edge by a rounding, classes may lack instances.
"""

from __future__ import annotations

import argparse

from mmlit_tools.cli import add_config_options, command, positive
from mmlit_tools.configs import read_config
from mmlit_tools.data.check import stop_at_errors
from mmlit_tools.data.findings import SHOWN, WORKERS


@command('check_data.py')
def main(arguments: list[str] | None = None) -> None:
    """Check the data that the command line asks for."""
    args = parse_args(arguments)
    options = dict(workers=args.workers, shown=args.show, quick=args.quick)
    stop_at_errors(read_config(args), **options)


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'check_data.py', description='Check the data of a config.'
    )
    add_config_options(parser)
    parser.add_argument(
        '--workers',
        type=positive,
        default=WORKERS,
        help='threads that read files (default: %(default)s)',
    )
    parser.add_argument(
        '--show',
        type=positive,
        default=SHOWN,
        metavar='N',
        help='findings of a kind to name; the rest is counted (default: %(default)s)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='read headers of images alone: one that is cut off is not found',
    )
    return parser.parse_args(arguments)
