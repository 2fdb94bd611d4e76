"""mmengine's checkpoint hook for trainings that may be killed at any moment."""

import contextlib
from collections import deque
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ..checkpoints.atomic import remove_parts, write_whole
from ..checkpoints.atomic_backend import BACKEND_ARGS
from ..errors import CheckpointWriteError
from .preemption import Termination
from .random_state import set_random_state
from .resume import (
    KEY,
    VALIDATED,
    BatchIterator,
    RestOfEpoch,
    describe,
    go_on,
)

#: The checkpoint that SIGTERM leaves; the next one replaces it.
INTERRUPTED = 'interrupted.pth'
#: The exit status after that: EX_TEMPFAIL of sysexits.h, "try again".
STOPPED = 75


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook` for trainings that may be killed at any moment.

    It takes the same arguments and writes the same files::

        custom_imports = dict(imports=['mmlit'], allow_failed_imports=False)
        default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1))

    - Checkpoints appear whole or not at all, the best ones too; `last_checkpoint`
      follows, and only then are superseded ones removed. So for a moment there is one
      more than `max_keep_ckpts`. A full disk ends the training with one sentence, and
      what was there before stays.
    - SIGTERM saves `interrupted.pth` after the iteration it comes in (in an evaluation
      by one process, where the weights are saved already, at once) and ends with
      status 75. `resume` then goes on with the next iteration of that epoch.
    - The states of the random numbers are saved as well, and an evaluation that a kill
      prevented is made up for: a resumed run does what the undisturbed one does.
      docs/reliability.md says what that needs.

    Checkpoints on other storage than local files are left to mmengine.

    Raises:
        TypeError: An argument that `CheckpointHook` does not know. mmengine would find
            that out at the first save.
        CheckpointWriteError: The disk is full, say.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args:
            raise TypeError(
                f'{type(self).__name__} got unknown arguments: {", ".join(self.args)}'
            )
        self._termination = Termination()
        self._loaded: Optional[Dict[str, Any]] = None
        self._saved: Optional[Dict[str, Any]] = None
        self._saved_iter = -1
        self._epoch_began = 0
        self._batches_done = 0

    # --- the course of a training -------------------------------------------------

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what is of use if the run resumes from it."""
        self._loaded = checkpoint.get(KEY)

    def before_train(self, runner: Runner) -> None:
        """Clear away what killed runs left, and go on where the checkpoint was."""
        is_local = '://' not in str(self.out_dir or runner.work_dir)
        plain = self.backend_args in (None, {}, {'backend': 'local'})
        if is_local and plain and self.file_client_args is None:
            self.backend_args = BACKEND_ARGS
        super().before_train(runner)
        if is_local and is_main_process():
            remove_parts(Path(self.out_dir))
            remove_parts(Path(runner.work_dir))
        self._termination.watch()
        self._prepare_loops(runner)
        if runner.iter and self._loaded:
            # Until an epoch begins: an evaluation that is made up for saves, too.
            self._epoch_began = runner.iter
            self._take_up(runner)
            self._batches_done = go_on(runner, self._loaded)
        self._loaded = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Note where the epoch began."""
        self._epoch_began = runner.iter - self._batches_done
        self._batches_done = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Save if it is time, and stop after a SIGTERM."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        iteration = runner.iter + 1
        in_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if in_epochs and iteration - self._epoch_began == _epoch_length(runner):
            return  # The epoch is over: it is saved and stopped as such in a moment.
        if self._termination.received_anywhere():
            self._stop(runner, dict(epoch=runner.epoch, iter=iteration))

    def after_train_epoch(self, runner: Runner) -> None:
        """Save if it is time, and stop after a SIGTERM."""
        loop = runner.train_loop
        if isinstance(loop.dataloader, RestOfEpoch):
            loop.dataloader = loop.dataloader.loader
        self._epoch_began = runner.iter
        super().after_train_epoch(runner)
        if not isinstance(loop, EpochBasedTrainLoop):
            return  # Its one epoch is the training, which is over.
        if self._termination.received_anywhere():
            self._stop(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Stop after a SIGTERM where nothing is lost by it."""
        # Several processes may differ in the number of their batches here.
        alone = get_world_size() == 1
        if alone and self._termination.received and self._saved_iter == runner.iter:
            self._stop(runner, {})

    def after_val_epoch(self, runner: Runner, metrics: Dict[str, float]) -> None:
        """Save the best, and stop after a SIGTERM."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)
        if self._termination.received_anywhere():
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_train(self, runner: Runner) -> None:
        """Publish what is to be published; SIGTERM ends the process again."""
        super().after_train(runner)
        self._termination.unwatch()

    def _prepare_loops(self, runner: Runner) -> None:
        """Have SIGTERM lose nothing that comes while data are waited for."""
        loop = runner.train_loop
        for each in (loop, runner.val_loop):
            self._termination.spare_workers(getattr(each, 'dataloader', None))
        if isinstance(loop, IterBasedTrainLoop) and not isinstance(
            loop.dataloader_iterator, BatchIterator
        ):
            # mmengine has started its workers already, and SIGTERM may end them.
            loop.dataloader_iterator = BatchIterator(
                loop.dataloader_iterator,
                lambda random_state: self._before_iteration(runner, random_state),
            )

    def _before_iteration(self, runner: Runner, random_state: Dict[str, Any]) -> None:
        if self._termination.received_anywhere():
            set_random_state(random_state)
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    # --- saving -------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what mmengine leaves out."""
        if self._saved is not None:
            checkpoint[KEY] = self._saved

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, note, remove, where mmengine removes first and notes in place."""
        superseded: List[int] = []
        if self.max_keep_ckpts > 0:
            kept = list(self.keep_ckpt_ids)
            if kept[-1:] != [step]:
                kept.append(step)
            # In the file are those to be removed, too: mmengine removes all that are
            # too many at the next start, should it not come to that here.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            superseded = kept[: -self.max_keep_ckpts]
        self._write(runner, self.filename_tmpl.format(step), meta)
        if is_main_process():
            names = [INTERRUPTED, *map(self.filename_tmpl.format, superseded)]
            for name in names:
                path = self.file_backend.join_path(self.out_dir, name)
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)
                elif self.file_backend.isdir(path):
                    self.file_backend.rmtree(path)

    def _take_up(self, runner: Runner) -> None:
        """Have an evaluation that is made up for complete its checkpoint, as usual."""
        last = runner.message_hub.runtime_info.get('last_ckpt')
        step = runner.epoch if self.by_epoch else runner.iter
        if last and Path(last).name == self.filename_tmpl.format(step):
            self.last_ckpt = last

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, float]) -> None:
        removing_last = getattr(
            self.file_backend, 'removing_last', contextlib.nullcontext
        )
        with removing_last(), self._naming_the_last_whole_one(runner):
            super()._save_best_checkpoint(runner, metrics)

    @contextlib.contextmanager
    def _naming_the_last_whole_one(self, runner: Runner) -> Iterator[None]:
        """What cannot be written ends the training with what there is instead."""
        try:
            yield
        except CheckpointWriteError:
            raise
        except OSError as error:
            note = Path(runner.work_dir) / 'last_checkpoint'
            before = note.read_text() if note.exists() else 'none'
            raise CheckpointWriteError(
                f'{error}; the last whole checkpoint, which resuming goes on from, is '
                f'{before}'
            ) from error

    def _write(self, runner: Runner, name: str, meta: dict) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._saved = describe(meta['iter'] - self._epoch_began, _epoch_length(runner))
        try:
            with self._naming_the_last_whole_one(runner):
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
                    content = memoryview(str(self.last_ckpt).encode())
                    write_whole(note, content, True, lambda _: None)
        finally:
            self._saved = None
        self._saved_iter = meta['iter']

    def _stop(self, runner: Runner, meta: dict) -> None:
        """Leave the training so that it can be resumed."""
        if meta and self._saved_iter != meta['iter']:
            self._write(runner, INTERRUPTED, meta)
        barrier()  # The first to leave would have the others killed while they write.
        self._termination.unwatch()
        runner.logger.warning(
            f'Stopped by SIGTERM after iteration {self._saved_iter}, with status '
            f'{STOPPED}: resuming goes on from {self.last_ckpt}'
        )
        raise SystemExit(STOPPED)


def _epoch_length(runner: Runner) -> int:
    loader = runner.train_loop.dataloader
    return len(loader.loader if isinstance(loader, RestOfEpoch) else loader)
