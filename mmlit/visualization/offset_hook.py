"""An mmengine hook that shows, during training, where token merging samples."""

import os
import random
from contextlib import contextmanager
from typing import Iterator, Optional, Tuple

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ..arguments import check_bool, check_int
from ..engine.pipeline_guard import unguarded
from .image import load_image
from .offsets import draw_offsets, offset_statistics, render
from .probe import find_lit, read


@HOOKS.register_module()
class OffsetVisualizationHook(Hook):
    """Offset pictures and offset figures of one image, every few epochs.

    They go to all backends of the config's visualizer (local files, TensorBoard,
    wandb), in the main process alone, with the epoch (or iteration) as step::

        custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)
        custom_hooks = [dict(type='OffsetVisualizationHook', interval=1)]

    Of the token merging into stage k (1-3) there is a picture ``offsets_stage_k`` and
    the figures ``offsets/stage_k/mean_displacement`` and ``.../max_displacement``, in
    tokens of the stage before, and ``.../outside``, the share of points beyond the
    edge of the map. The same image each time, read as the validation (or test) data
    set reads it. Training goes on as if the hook were not there, bit by bit.

    Args:
        interval: Epochs (or iterations) from one picture to the next.
        by_epoch: Count epochs; ``False`` counts iterations, which iteration-based
            training needs.
        image: Path of the image; ``None`` takes the first one of the data set.

    Raises:
        ValueError, TypeError: An argument is wrong; before the first iteration: the
            model holds no LIT with token merging, or one sharded by FSDP, there is no
            image to take, or the training does not count as ``by_epoch`` says.
    """

    priority = 'LOW'

    def __init__(
        self, interval: int = 1, by_epoch: bool = True, image: Optional[str] = None
    ):
        self.interval = check_int('interval', interval, 1)
        self.by_epoch = check_bool('by_epoch', by_epoch)
        if image is not None and not isinstance(image, (str, os.PathLike)):
            raise TypeError(f'image={image!r} must be the path of a file, or None')
        if image is not None and not os.path.isfile(image):
            raise ValueError(f'image={str(image)!r} does not exist or is no file')
        self.image = image

    def before_train(self, runner: Runner) -> None:
        """Find everything that will be needed, and read the image."""
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'{type(self).__name__}: this training counts iterations and has only '
                'one epoch; give by_epoch=False and an interval in iterations'
            )
        model = _unwrapped(runner)
        # By name: torch has it in several places, and not on all platforms.
        if any('FullySharded' in type(m).__name__ for m in runner.model.modules()):
            raise ValueError(
                f'{type(self).__name__}: no process holds a whole LIT under FSDP; draw '
                'the checkpoints with tools/visualize.py offsets'
            )
        lit = find_lit(model)
        if len(lit.stages) < 2:
            raise ValueError(
                f'{type(self).__name__}: LIT with out_indices={lit.out_indices} has no '
                'token merging'
            )
        with _random_state_kept():
            path, transforms = self._source(runner)
            self._single = load_image(path, transforms, model.data_preprocessor)

    def after_train_epoch(self, runner: Runner) -> None:
        """Every `interval` epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._show(runner, runner.epoch + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Every `interval` iterations, where those are counted."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._show(runner, runner.iter + 1)

    @master_only
    def _show(self, runner: Runner, step: int) -> None:
        with _random_state_kept():
            lit = find_lit(_unwrapped(runner))
            mergings = read(lit, self._single.inputs, attention=False).mergings
            figures = {}
            for merging in mergings:
                name = f'stage_{merging.stage}'
                picture = render(draw_offsets(merging, self._single))
                # No slash: the local backend makes no folders for names.
                runner.visualizer.add_image(f'offsets_{name}', picture, step)
                statistics = offset_statistics(merging, self._single)
                for key, value in statistics.items():
                    figures[f'offsets/{name}/{key}'] = value
            runner.visualizer.add_scalars(figures, step)

    def _source(self, runner: Runner) -> Tuple[str, list]:
        """The path of the image, and the transforms that read it."""
        for name in ('val_loop', 'test_loop'):  # mmengine builds them when asked.
            loop = getattr(runner, name)
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):
                inner = getattr(dataset, 'datasets', None)
                dataset = dataset.dataset if inner is None else inner[0]
            if hasattr(dataset, 'get_data_info') and hasattr(dataset, 'pipeline'):
                path = self.image or dataset.get_data_info(0)['img_path']
                return path, unguarded(dataset.pipeline.transforms)
        raise ValueError(
            f'{type(self).__name__}: there is no validation or test data set of images '
            'with a pipeline, by which its image would be read'
        )


def _unwrapped(runner: Runner) -> torch.nn.Module:
    model = runner.model
    return model.module if is_model_wrapper(model) else model


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Whatever draws random numbers inside, training does not notice."""
    own, numpys = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)
