"""Draw the training data of a config as the network gets it, with its labels.

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
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from rich.progress import track

from mmlit.errors import UserError
from mmlit_tools.cli import add_config_options, command, positive
from mmlit_tools.configs import read_config


@command('draw_data.py')
def main(arguments: list[str] | None = None) -> None:
    """Draw the data that the command line asks for."""
    parser = argparse.ArgumentParser(
        'draw_data.py', description='Draw the training data of a config.'
    )
    add_config_options(parser)
    parser.add_argument('dir', type=Path, help='folder to write, made where missing')
    parser.add_argument(
        '--number',
        type=positive,
        default=20,
        metavar='N',
        help='how many images to draw (default: %(default)s)',
    )
    args = parser.parse_args(arguments)
    config = read_config(args)
    if config.get('train_dataloader') is None or config.get('visualizer') is None:
        raise UserError(
            'the config has no train_dataloader, or no visualizer to draw with'
        )
    init_default_scope(config.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(config.train_dataloader.dataset)
    # Without backends, which would want a work folder.
    settings = dict(config.visualizer, name='draw_data', vis_backends=None)
    visualizer = VISUALIZERS.build(settings)
    visualizer.dataset_meta = dataset.metainfo
    args.dir.mkdir(parents=True, exist_ok=True)
    count = min(args.number, len(dataset))
    for index in track(range(count), description='drawing'):
        item = dataset[index]
        sample = item['data_samples']
        name = f'{index + 1:04d}_{Path(sample.img_path).stem}'
        if 'gt_instances' in sample:
            boxes = sample.gt_instances.bboxes
            sample.gt_instances.bboxes = getattr(boxes, 'tensor', boxes)
        # (3, h, w) BGR, as pipelines pack it -> (h, w, 3) RGB; contiguous for OpenCV.
        image = np.ascontiguousarray(item['inputs'].flip(0).permute(1, 2, 0).numpy())
        path = str(args.dir / f'{name}.png')
        visualizer.add_datasample(name, image, sample, draw_pred=False, out_file=path)
    print(f'{count} pictures are in {args.dir}')
