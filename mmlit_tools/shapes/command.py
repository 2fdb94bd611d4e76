"""Draw a small dataset for detection and segmentation, without a download.

    python tools/make_shapes.py [--out DIR] [--train 1600] [--val 80] [--size 160]
                                [--seed 0] [--force]

The same arguments give the same bytes. `dataset.py` lists the files, `drawing.py`
decides what the images hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlit.errors import UserError
from mmlit_tools.cli import command
from mmlit_tools.shapes.dataset import DEFAULT_OUT, ensure_shapes


@command('make_shapes.py')
def main(arguments: list[str] | None = None) -> None:
    """Draw the dataset that the command line asks for."""
    parser = argparse.ArgumentParser(
        'make_shapes.py',
        description='Draw a small dataset for detection and segmentation.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default=DEFAULT_OUT, help='folder to write')
    parser.add_argument('--train', type=int, default=1600, help='training images')
    parser.add_argument('--val', type=int, default=80, help='validation images')
    parser.add_argument('--size', type=int, default=160, help='image side in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--force',
        dest='replace',
        action='store_true',
        help='draw anew what is there already',
    )
    args = vars(parser.parse_args(arguments))
    try:
        folder = ensure_shapes(**args)
    except (ValueError, OSError) as error:
        raise UserError(error) from error
    print(f'The dataset is at {folder}')
