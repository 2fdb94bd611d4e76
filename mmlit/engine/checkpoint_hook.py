"""Save checkpoints of trainings that may be killed at any moment."""

import contextlib
from collections import deque
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ..checkpoints.atomic import BACKEND_ARGS, remove_parts, write_whole
from ..checkpoints.embedded_config import remove_config_code
from ..errors import CheckpointWriteError
from . import resume
from .preemption import INTERRUPTED, STOPPED, Preemption


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook` for trainings that may be killed at any moment.

    It takes the same arguments and writes the same files::

        custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)
        default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))

    - Checkpoints, also the best ones, appear whole or not at all; `last_checkpoint`
      follows, and only then are superseded ones removed. So for a moment there is one
      more than `max_keep_ckpts`. A full disk ends the training with one sentence, and
      the earlier files stay.
    - SIGTERM saves `interrupted.pth` after the current iteration (at once in a
      validation by one process, whose weights are saved already) and ends the process
      with status 75. `resume` continues with the next iteration of that epoch.
    - Random states are saved as well, and a validation that a kill prevented is done on
      resuming: a resumed run gives the result of an undisturbed one, on the conditions
      in docs/reliability.md.

    Checkpoints on other storage than local files are left to mmengine.

    Raises:
        TypeError: An argument that `CheckpointHook` does not know (mmengine would
            raise at the first save).
        CheckpointWriteError: The disk is full, for example.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args:
            raise TypeError(
                f'{type(self).__name__} got unknown arguments: {", ".join(self.args)}'
            )
        self._preemption = Preemption()
        self._loaded_state: Optional[Dict[str, Any]] = None
        self._state_to_save: Optional[Dict[str, Any]] = None
        self._saved_iter = -1
        self._epoch_start = 0
        self._batches_done = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the resume state; drop a config that resuming would run as a program."""
        remove_config_code(checkpoint, 'the checkpoint')
        self._loaded_state = checkpoint.get(resume.KEY)

    def before_train(self, runner: Runner) -> None:
        """Clean up after killed runs, handle SIGTERM, and restore the resume state."""
        is_local = '://' not in str(self.out_dir or runner.work_dir)
        plain = self.backend_args in (None, {}, {'backend': 'local'})
        if is_local and plain and self.file_client_args is None:
            self.backend_args = BACKEND_ARGS
        super().before_train(runner)
        if is_local and is_main_process():
            remove_parts(Path(self.out_dir))
            remove_parts(Path(runner.work_dir))
        self._preemption.install()
        loop = runner.train_loop
        for each in (loop, runner.val_loop):
            self._preemption.shield_workers(getattr(each, 'dataloader', None))
        if isinstance(loop, IterBasedTrainLoop) and not isinstance(
            loop.dataloader_iterator, resume.BatchIterator
        ):
            # Its workers run already, unshielded: when SIGTERM ends them, stop there.
            loop.dataloader_iterator = resume.BatchIterator(
                loop.dataloader_iterator,
                lambda random_state: self._before_iteration(runner, random_state),
            )
        if runner.iter and self._loaded_state:
            # A validation done on resuming may save before an epoch begins.
            self._epoch_start = runner.iter
            last = runner.message_hub.runtime_info.get('last_ckpt')
            step = runner.epoch if self.by_epoch else runner.iter
            if last and Path(last).name == self.filename_tmpl.format(step):
                self.last_ckpt = last  # It updates the checkpoint it belongs to.
            self._batches_done = resume.restore(runner, self._loaded_state)
        self._loaded_state = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Note the iteration at which the epoch began."""
        self._epoch_start = runner.iter - self._batches_done
        self._batches_done = 0

    def _before_iteration(self, runner: Runner, random_state: Dict[str, Any]) -> None:
        if self._preemption.requested_anywhere():
            resume.set_random_state(random_state)
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Save if it is due, and stop after SIGTERM."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        iteration = runner.iter + 1
        in_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if in_epochs and iteration - self._epoch_start == _epoch_length(runner):
            return  # `after_train_epoch`, which is next, saves and stops.
        if self._preemption.requested_anywhere():
            self._stop(runner, dict(epoch=runner.epoch, iter=iteration))

    def after_train_epoch(self, runner: Runner) -> None:
        """Save if it is due, and stop after SIGTERM."""
        loop = runner.train_loop
        if isinstance(loop.dataloader, resume.RestOfEpoch):
            loop.dataloader = loop.dataloader.loader
        self._epoch_start = runner.iter
        super().after_train_epoch(runner)
        if not isinstance(loop, EpochBasedTrainLoop):
            return  # Its only epoch is the training, which is over.
        if self._preemption.requested_anywhere():
            self._stop(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Stop after SIGTERM if the weights are saved already."""
        # Several processes may have different numbers of batches here.
        alone = get_world_size() == 1
        if alone and self._preemption.requested and self._saved_iter == runner.iter:
            self._stop(runner, {})

    def after_val_epoch(self, runner: Runner, metrics: Dict[str, float]) -> None:
        """Save the best, and stop after SIGTERM."""
        runner.message_hub.update_info(resume.VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)
        if self._preemption.requested_anywhere():
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_train(self, runner: Runner) -> None:
        """Publish checkpoints as mmengine does, and stop handling SIGTERM."""
        super().after_train(runner)
        self._preemption.uninstall()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the resume state."""
        if self._state_to_save is not None:
            checkpoint[resume.KEY] = self._state_to_save

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, then remove superseded ones (mmengine removes first)."""
        superseded: List[int] = []
        if self.max_keep_ckpts > 0:
            kept = list(self.keep_ckpt_ids)
            if kept[-1:] != [step]:
                kept.append(step)
            # It lists those to be removed, too: after a kill, mmengine does it.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            superseded = kept[: -self.max_keep_ckpts]
        self._write(runner, self.filename_tmpl.format(step), meta)
        if is_main_process():
            for name in (INTERRUPTED, *map(self.filename_tmpl.format, superseded)):
                path = self.file_backend.join_path(self.out_dir, name)
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
                elif self.file_backend.isdir(path):
                    self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, float]) -> None:
        backend, null = self.file_backend, contextlib.nullcontext
        with getattr(backend, 'removing_last', null)(), self._write_errors(runner):
            super()._save_best_checkpoint(runner, metrics)

    @contextlib.contextmanager
    def _write_errors(self, runner: Runner) -> Iterator[None]:
        """Name the last whole checkpoint in the error of one that is not written."""
        try:
            yield
        except CheckpointWriteError:
            raise
        except OSError as error:
            note = Path(runner.work_dir) / 'last_checkpoint'
            last = note.read_text() if note.exists() else 'none'
            raise CheckpointWriteError(
                f'{error}; resuming continues from the last whole checkpoint: {last}'
            ) from error

    def _write(self, runner: Runner, name: str, meta: dict) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._state_to_save = resume.make_resume_state(
            meta['iter'] - self._epoch_start, _epoch_length(runner)
        )
        try:
            with self._write_errors(runner):
                runner.save_checkpoint(
                    self.out_dir,
                    name,
                    self.file_client_args,
                    save_optimizer=self.save_optimizer,
                    save_param_scheduler=self.save_param_scheduler,
                    meta=meta,
                    by_epoch=self.by_epoch,
                    backend_args=self.backend_args,
                )
                if is_main_process():
                    note = Path(runner.work_dir) / 'last_checkpoint'
                    write_whole(note, memoryview(str(self.last_ckpt).encode()))
        finally:
            self._state_to_save = None
        self._saved_iter = meta['iter']

    def _stop(self, runner: Runner, meta: dict) -> None:
        """Save unless that is done, and exit."""
        if meta and self._saved_iter != meta['iter']:
            self._write(runner, INTERRUPTED, meta)
        barrier()  # When the first leaves, launchers kill the others: all have written.
        self._preemption.uninstall()
        runner.logger.warning(
            f'Stopped by SIGTERM after iteration {self._saved_iter}, with status '
            f'{STOPPED}: resuming continues from {self.last_ckpt}'
        )
        raise SystemExit(STOPPED)


def _epoch_length(runner: Runner) -> int:
    loader = runner.train_loop.dataloader
    return len(loader.loader if isinstance(loader, resume.RestOfEpoch) else loader)
