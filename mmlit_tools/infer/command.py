"""Run a detector or a segmentor on images, folders of images and videos.

    python tools/infer.py IMAGE_OR_FOLDER_OR_VIDEO ... --config CONFIG \\
        --checkpoint FILE --out-dir OUT [--score-thr 0.3] [--device cuda:0]

Which of the two the config is for is its `default_scope`. What is found is drawn
(`OUT/pictures`) and written down (`OUT/predictions`, a JSON for each image, a line of
JSON for each frame of a video; `OUT/label_maps` in segmentation), under the path of the
image within the folder that holds all inputs. A folder stands for the images in it and
in its sub-folders. A run replaces the files of an earlier one of the same names.

The JSON of an image has `image` (the path that was read), `width` and `height`, and

* in detection `objects`: `label` (from 0), `class` (its name), `score` (0 to 1), `box`
  (left, top, right, bottom in pixels), `mask` where the model has masks (COCO's RLE,
  which `pycocotools.mask.decode` reads); only those with a score of at least
  `--score-thr`, which goes for the pictures, too;
* in segmentation `classes`, those in the image: `label` (from 0), `class`, `pixels`,
  `share` (0 to 1); and `label_map`, the path of the label map in OUT.

Pixels are those of the image as the config's pipeline loads it: a photo that EXIF turns
is upright. Images go through the model one by one, so that nothing depends on what else
there is to do.

What cannot be read, or not be done, is named, with the reason, and left out; if the
model fails on all in the same way, that is said, too. The exit status is 0 if all went
well, 1 if anything was left out or wrong, 130 after an interruption, which keeps what
was done.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from mmlit.errors import UserError
from mmlit_tools.cli import add_cfg_options, check_file, command
from mmlit_tools.configs import known_scope, read_config
from mmlit_tools.infer.results import Results
from mmlit_tools.infer.sources import (
    Source,
    UnreadableError,
    count_frames,
    find_sources,
    open_video,
)

MIN_SCORE = 0.3
INTERRUPTED = 130  # what shells expect of a process that Ctrl-C ended
MAX_NAMES = 10
# Errors of one image, which need not end the others: it is broken, too small for LIT,
# too large for a GPU, or so narrow that it is resized to nothing. A mistake in the
# config can raise the same, for every image.
IMAGE_ERRORS = (UnreadableError, ValueError, cv2.error, torch.cuda.OutOfMemoryError)


@command('infer.py')
def main(arguments: list[str] | None = None) -> None:
    """Run the model on all inputs of the command line."""
    args = parse_args(arguments)
    check_file(args.checkpoint, 'checkpoint')
    sources = find_sources(args.inputs, args.out_dir)
    config = read_config(args)
    model = build_model(config, args)
    try:
        results = Results(args.out_dir, sources)
        run = Run(model, results)
        run.do_all(sources)
    except OSError as error:
        raise UserError(f'--out-dir {args.out_dir}: {error}') from error
    sys.exit(run.report(len(sources)))


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        'infer.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'inputs',
        nargs='+',
        type=Path,
        metavar='IMAGE_OR_FOLDER_OR_VIDEO',
        help='images, videos, folders of images',
    )
    parser.add_argument('--config', required=True, help='config file')
    parser.add_argument('--checkpoint', required=True, help='checkpoint file')
    parser.add_argument(
        '--out-dir', required=True, type=Path, help='folder for the results'
    )
    parser.add_argument(
        '--score-thr',
        type=_share,
        metavar='SCORE',
        help=f'detection: leave out what is less sure (default: {MIN_SCORE})',
    )
    parser.add_argument(
        '--device', help='cpu, cuda:1, ... (default: a GPU if there is one)'
    )
    add_cfg_options(parser)
    return parser.parse_args(arguments)


def build_model(config: Config, args: argparse.Namespace):
    """Build the config's detector or segmentor with the weights of the checkpoint."""
    scope = known_scope(config)
    if scope == 'mmseg' and args.score_thr is not None:
        raise UserError('--score-thr is for detection; this config is for segmentation')
    if args.device is not None:
        _check_device(args.device)
    try:
        if scope == 'mmseg':
            from mmlit_tools.infer.segmentation import Segmentor

            return Segmentor(config, args.checkpoint, args.device)
        from mmlit_tools.infer.detection import Detector

        score = MIN_SCORE if args.score_thr is None else args.score_thr
        return Detector(config, args.checkpoint, args.device, score)
    except (KeyError, OSError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f'--config {args.config}, --checkpoint {args.checkpoint}: {error}'
        ) from error


class Run:
    """One run over all sources, which counts successes and failures."""

    def __init__(self, model, results: Results):
        self.model = model
        self.results = results
        self.screen = Console(stderr=True)
        self.done = 0
        self.failed: list[str] = []
        # Messages of the model's failures, without the figures of an image.
        self.failures: list[str] = []
        self.interrupted = False

    def do_all(self, sources: list[Source]) -> None:
        """Predict for all sources, up to an interruption."""
        columns = [*Progress.get_default_columns(), MofNCompleteColumn()]
        shown = self.screen.is_terminal
        with Progress(*columns, console=self.screen, disable=not shown) as bar:
            task = bar.add_task('Predicting', total=sum(map(count_frames, sources)))
            try:
                for source in sources:
                    self._do(source, lambda: bar.advance(task))
            except KeyboardInterrupt:
                self.interrupted = True

    def _do(self, source: Source, advance: Callable[[], None]) -> None:
        try:
            if source.is_video:
                self._do_video(source, advance)
            else:
                try:
                    self._do_image(source)
                finally:
                    advance()
            self.done += 1
        except IMAGE_ERRORS as error:
            path, said = source.path.as_posix(), ' '.join(str(error).split())
            self.failed.append(path)
            if not isinstance(error, UnreadableError):
                self.failures.append(re.sub(r'\d+', '', said))
                said = f'could not be done: {said}'
            self._say(f'{path}: {said}')

    def _do_image(self, source: Source) -> None:
        image = self.model.read(source.path)
        self.results.write_image(source, self.model.predict(image))

    def _do_video(self, source: Source, advance: Callable[[], None]) -> None:
        count = 0
        with open_video(source.path) as video:
            with self.results.write_video(source, video.fps) as write:
                for frame in video:
                    write(self.model.predict(frame))
                    advance()
                    count += 1
                if not count:
                    raise UnreadableError('no frame of this video can be read')
            if count < video.count:
                raise UnreadableError(
                    f'ends after {count} of the {video.count} frames that its header '
                    'tells of; those are done'
                )

    def report(self, total: int) -> int:
        """Print a summary; return the exit status."""
        print(f'{self.done} of {total} done: {self.results.folder}')
        if self.failed:
            more = len(self.failed) - MAX_NAMES
            self._say(
                f'{len(self.failed)} of {total} could not be done, or not wholly: '
                + ', '.join(self.failed[:MAX_NAMES])
                + (f' and {more} more' if more > 0 else '')
            )
        if 1 < len(self.failures) == total and len(set(self.failures)) == 1:
            self._say(
                'The model failed on all of them in the same way: look for the cause '
                'in the config or the device, not in the images'
            )
        if self.interrupted:
            self._say('interrupted; what was done is kept')
            return INTERRUPTED
        return 1 if self.failed else 0

    def _say(self, text: str) -> None:
        self.screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device}: {str(error).splitlines()[0]}') from error


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} must be from 0 to 1')
    return value
