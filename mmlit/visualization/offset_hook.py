"""Log pictures and statistics of token merging offsets during training."""

import os
from typing import Optional, Tuple

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ..arguments import check_bool, check_int
from .image import load_image
from .offsets import draw_offsets, offset_statistics, render
from .probe import find_lit, probe


@HOOKS.register_module()
class OffsetVisualizationHook(Hook):
    """Log offset pictures and statistics of one image, every few epochs.

    They go to all backends of the config's visualizer (local files, TensorBoard,
    wandb), from the main process only, with the epoch (or iteration) as step::

        custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)
        custom_hooks = [dict(type='OffsetVisualizationHook', interval=1)]

    For the token merging into stage k (1-3) it logs a picture ``offsets_stage_k`` and
    the scalars ``offsets/stage_k/mean_displacement`` and ``.../max_displacement``, in
    tokens of the stage before, and ``.../outside``, the share of points beyond the
    edge of the map. The image is the same each time, loaded as the validation (or
    test) dataset loads it. The training itself is the same bit by bit without the hook.

    Args:
        interval: Epochs (or iterations) from one picture to the next.
        by_epoch: Count epochs; ``False`` counts iterations, which iteration-based
            training needs.
        image: Path of the image; ``None`` takes the first one of the dataset.

    Raises:
        ValueError, TypeError: An argument is wrong; before the first iteration: the
            model has no LIT with token merging, or one sharded by FSDP, there is no
            image to load, or ``by_epoch`` does not fit the training loop.
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
            raise ValueError(f'image={str(image)!r} is not an existing file')
        self.image = image

    def before_train(self, runner: Runner) -> None:
        """Check the model and load the image."""
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'{type(self).__name__}: this training counts iterations, not epochs; '
                'set by_epoch=False and an interval in iterations'
            )
        # By name: torch has it in several places, and not on all platforms.
        if any('FullySharded' in type(m).__name__ for m in runner.model.modules()):
            raise ValueError(
                f'{type(self).__name__}: no process holds a whole LIT under FSDP; draw '
                'the checkpoints with tools/visualize.py offsets'
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._lit = find_lit(model)
        if len(self._lit.stages) < 2:
            raise ValueError(
                f'{type(self).__name__}: LIT with out_indices={self._lit.out_indices} '
                'has no token merging'
            )
        path, transforms = self._find_image(runner)
        self._image = load_image(path, transforms, model.data_preprocessor)

    def after_train_epoch(self, runner: Runner) -> None:
        """Log after every `interval` epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._log(runner, runner.epoch + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Log after every `interval` iterations, with ``by_epoch=False``."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._log(runner, runner.iter + 1)

    @master_only
    def _log(self, runner: Runner, step: int) -> None:
        scalars = {}
        result = probe(self._lit, self._image.inputs, attention=False)
        for merging in result.token_mergings:
            stage = f'stage_{merging.stage}'
            picture = render(draw_offsets(merging, self._image))
            # Without a slash: the local backend makes no folders for names.
            runner.visualizer.add_image(f'offsets_{stage}', picture, step)
            for name, value in offset_statistics(merging, self._image).items():
                scalars[f'offsets/{stage}/{name}'] = value
        runner.visualizer.add_scalars(scalars, step)

    def _find_image(self, runner: Runner) -> Tuple[str, list]:
        """Return the path of the image, and the transforms that load it."""
        for name in ('val_loop', 'test_loop'):  # properties that build them
            loop = getattr(runner, name)
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):
                inner = getattr(dataset, 'datasets', None)
                dataset = dataset.dataset if inner is None else inner[0]
            if hasattr(dataset, 'get_data_info') and hasattr(dataset, 'pipeline'):
                path = self.image or dataset.get_data_info(0)['img_path']
                return path, dataset.pipeline.transforms
        raise ValueError(
            f'{type(self).__name__}: there is no validation or test dataset with a '
            'pipeline to load its image with'
        )
