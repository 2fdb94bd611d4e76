"""What mmengine leaves out when it resumes, for a run that goes on as if undisturbed.

mmengine restores weights, optimizer, schedules and counters. Not restored are the
random numbers; an epoch that was stopped in the middle begins anew, though its
iterations count as done; and an evaluation that was due is left out.
"""

from typing import Any, Callable, Dict, Iterator, List, Optional

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from .random_state import get_random_state, set_random_state

#: Where a checkpoint holds what `describe` returns.
KEY = 'resumption'
#: Where the message hub holds the iteration after which a model was last evaluated.
VALIDATED = 'validated_iter'


def describe(batches_done: int, epoch_length: int) -> Dict[str, Any]:
    """What a checkpoint needs on top of mmengine's; called in all processes.

    Args:
        batches_done: How many batches of an epoch are done that is not over.
        epoch_length: How many it has.
    """
    states: List[dict] = all_gather_object(get_random_state())
    return dict(
        batches_done=batches_done, epoch_length=epoch_length, random_states=states
    )


def go_on(runner: Runner, found: Dict[str, Any]) -> int:
    """Continue where the checkpoint was written that holds `found`.

    Called in all processes before the first epoch, when mmengine has resumed, and an
    iteration-based loop has a `BatchIterator`.

    Returns:
        How many batches of the first epoch are done already.
    """
    loop = runner.train_loop
    states = found['random_states']
    if len(states) == get_world_size():
        set_random_state(states[get_rank()])
    if isinstance(loop, IterBasedTrainLoop):
        _validate_if_due(runner, runner.iter)
        # onedl-mmengine can go on without dropping.
        at_once = getattr(loop, 'fast_forward_on_resume', False)
        to_drop = 0 if at_once else runner.iter
        loop.dataloader_iterator.resume(to_drop, get_random_state())
        return 0
    if not isinstance(loop, EpochBasedTrainLoop):
        return 0
    done, length = found['batches_done'], len(loop.dataloader)
    if not done:
        _validate_if_due(runner, runner.epoch)
        return 0
    if found['epoch_length'] != length or done >= length:
        print_log(
            f'The checkpoint is from the middle of an epoch of {found["epoch_length"]} '
            f'iterations, and this run has {length}: the epoch begins anew',
            logger='current',
        )
        return 0
    print_log(
        f'Epoch {runner.epoch + 1} goes on: {done} of its {length} iterations are '
        'done, and the log counts the rest of them from 1',
        logger='current',
    )
    sampler = loop.dataloader.sampler
    if hasattr(sampler, 'seed'):
        # Without a seed in the config the run has another one now, and the data
        # another order; mmengine restores the seed too late for them.
        sampler.seed = runner.seed
    loop.dataloader = RestOfEpoch(loop.dataloader, done, get_random_state())
    return done


def _validate_if_due(runner: Runner, progress: int) -> None:
    """Evaluate where the stop came between the checkpoint and the evaluation."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return
    if runner.message_hub.runtime_info.get(VALIDATED) == runner.iter:
        return
    loop._decide_current_val_interval()  # as both loops do before they decide
    last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
    if progress >= loop.val_begin and (
        progress % loop.val_interval == 0 or progress == last
    ):
        print_log('The checkpoint was not evaluated: doing it now', logger='current')
        runner.val_loop.run()


class RestOfEpoch:
    """A data loader without the first batches, for an epoch stopped in the middle.

    They are loaded and dropped, so that what follows is what would have followed. All
    but the iteration and the length is the loader's own.
    """

    def __init__(self, loader: Any, done: int, random_state: Dict[str, Any]):
        self.loader = loader
        self._done = done
        self._random_state = random_state

    def __len__(self) -> int:
        return len(self.loader) - self._done

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in range(self._done):
            next(batches, None)
        set_random_state(self._random_state)
        yield from batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class BatchIterator:
    """The batches of an iteration-based loop, which itself drops those done before.

    Loading them draws random numbers in a process without workers, so the state is
    restored in front of the first batch that counts.

    Args:
        batches: The loop's own iterator.
        before_iteration: Called with the state of the random numbers in front of a
            batch, when that batch is there or could not be had: what it raises counts
            for more than what loading did.
    """

    def __init__(self, batches: Any, before_iteration: Callable[[dict], None]):
        self._batches = batches
        self._before_iteration = before_iteration
        self._to_drop = 0
        self._random_state: Optional[Dict[str, Any]] = None

    def resume(self, done: int, random_state: Dict[str, Any]) -> None:
        """`done` batches will be dropped; then the state is to be this one."""
        self._to_drop, self._random_state = done, random_state

    def __iter__(self) -> 'BatchIterator':
        return self

    def __next__(self) -> Any:
        if self._to_drop > 0:
            self._to_drop -= 1
            return next(self._batches)
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None
        before = get_random_state()
        try:
            batch = next(self._batches)
        except Exception:
            self._before_iteration(before)
            raise
        self._before_iteration(before)
        return batch

    def skip_iter(self, number: int) -> None:
        """How onedl-mmengine drops them, without loading."""
        self._batches.skip_iter(number)
        self._to_drop = 0
