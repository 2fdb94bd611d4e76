#!/usr/bin/env python3
"""Draws the training data of a config as the network gets it, with its labels.

    python tools/draw_data.py CONFIG DIR [--number N] [--cfg-options KEY=VALUE ...]

Writes DIR/0001_NAME.png and so on: what the pipeline makes of the first N images, with
boxes and outlines, or masks, drawn in by mmdet's or mmseg's own visualizer. Pipelines
throw dice, so that each run shows another crop or flip. An error of the pipeline shows
here and not in a worker process of a training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from rich.progress import track

from mmlit_tools.data.check import positive
from mmlit_tools.configs import add_config_options, read_config, stop

NUMBER = 20


def main() -> None:
    """Draws what the command line asks for."""
    args = parse_args()
    config = read_config(args)
    drawn = draw_data(config, Path(args.dir), args.number)
    print(f'{drawn} pictures are in {args.dir}')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Draw the training data of a config.')
    add_config_options(parser)
    parser.add_argument('dir', help='folder to write, made where it is missing')
    parser.add_argument(
        '--number',
        type=positive,
        default=NUMBER,
        metavar='N',
        help='how many images to draw (default: %(default)s)',
    )
    return parser.parse_args()


def draw_data(config: Config, folder: Path, number: int) -> int:
    """Writes pictures of the first images of a config's training data.

    Args:
        config: Resolved, its scope's modules registered (`common.read_config`).
        folder: Where to.
        number: How many, at most; a smaller data set gives as many as it has.

    Returns:
        How many were drawn.
    """
    if config.get('train_dataloader') is None or config.get('visualizer') is None:
        stop('the config has no train_dataloader, or no visualizer to draw with')
    init_default_scope(config.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(config.train_dataloader.dataset)
    # Without backends, which would want a work folder.
    settings = dict(config.visualizer, name='draw_data', vis_backends=None)
    visualizer = VISUALIZERS.build(settings)
    visualizer.dataset_meta = dataset.metainfo
    folder.mkdir(parents=True, exist_ok=True)
    count = min(number, len(dataset))
    for index in track(range(count), description='drawing'):
        item = dataset[index]
        sample = item['data_samples']
        name = f'{index + 1:04d}_{Path(sample.img_path).stem}'
        if 'gt_instances' in sample:
            boxes = sample.gt_instances.bboxes
            sample.gt_instances.bboxes = getattr(boxes, 'tensor', boxes)
        visualizer.add_datasample(
            name,
            _upright(item['inputs']),
            sample,
            draw_pred=False,
            out_file=str(folder / f'{name}.png'),
        )
    return count


def _upright(inputs) -> np.ndarray:
    """(3, h, w) blue green red, as pipelines pack it -> (h, w, 3) red green blue."""
    # Contiguous: mmseg's visualizer draws with OpenCV, which wants it so.
    return np.ascontiguousarray(inputs.flip(0).permute(1, 2, 0).numpy())


if __name__ == '__main__':
    main()
