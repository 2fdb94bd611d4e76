"""Resume a training exactly: random numbers, batches of the epoch, due validation.

mmengine restores weights, optimizer, schedules and counters. It does not restore the
random numbers, restarts an interrupted epoch although its iterations count as done, and
skips a validation that was due.
"""

import random
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

#: Key of a checkpoint that holds what `make_resume_state` returns.
KEY = 'resumption'
#: Key of the message hub that holds the iteration of the last validation.
VALIDATED = 'validated_iter'


def get_random_state() -> Dict[str, Any]:
    """Return Python's, numpy's, torch's and CUDA's, as `torch.load` reads safely."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = dict(
        python=[version, torch.tensor(numbers), gauss],
        numpy=[name, torch.from_numpy(keys.astype(np.int64)), *rest],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Dict[str, Any]) -> None:
    """Restore what `get_random_state` returned."""
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    # A checkpoint may be loaded to the GPU, and generators take bytes on the CPU.
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def make_resume_state(batches_done: int, epoch_length: int) -> Dict[str, Any]:
    """Return what a checkpoint needs besides mmengine's; call it in all processes."""
    states: List[dict] = all_gather_object(get_random_state())
    return dict(
        batches_done=batches_done, epoch_length=epoch_length, random_states=states
    )


def restore(runner: Runner, state: Dict[str, Any]) -> int:
    """Continue from a checkpoint's `make_resume_state`.

    Call it in all processes when mmengine has resumed, before the first epoch; an
    iteration-based loop must have a `BatchIterator` by then. Returns the number of
    batches of the first epoch that are done already.
    """
    loop = runner.train_loop
    random_states = state['random_states']
    if len(random_states) == get_world_size():
        set_random_state(random_states[get_rank()])
    if isinstance(loop, IterBasedTrainLoop):
        _validate_if_due(runner, runner.iter)
        # onedl-mmengine can skip batches without loading them.
        skips = getattr(loop, 'fast_forward_on_resume', False)
        state = get_random_state()
        loop.dataloader_iterator.resume(0 if skips else runner.iter, state)
        return 0
    if not isinstance(loop, EpochBasedTrainLoop):
        return 0
    done, length = state['batches_done'], len(loop.dataloader)
    if not done:
        _validate_if_due(runner, runner.epoch)
        return 0
    if state['epoch_length'] != length or done >= length:
        print_log(
            f'The checkpoint is from an epoch of {state["epoch_length"]} iterations, '
            f'but an epoch has {length} now: it is restarted',
            logger='current',
        )
        return 0
    print_log(
        f'Epoch {runner.epoch + 1} continues: {done} of its {length} iterations are '
        'done, and the log counts the rest of them from 1',
        logger='current',
    )
    sampler = loop.dataloader.sampler
    if hasattr(sampler, 'seed'):
        # Without a seed in the config this run has drawn another one; mmengine restores
        # the old one too late for the sampler.
        sampler.seed = runner.seed
    loop.dataloader = RestOfEpoch(loop.dataloader, done, get_random_state())
    return done


def _validate_if_due(runner: Runner, progress: int) -> None:
    """Validate if the run ended between the checkpoint and its validation."""
    loop, validated = runner.train_loop, runner.message_hub.runtime_info.get(VALIDATED)
    if runner.val_loop is None or validated == runner.iter:
        return
    loop._decide_current_val_interval()  # as both loops do before they decide
    last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
    if progress >= loop.val_begin and (
        progress % loop.val_interval == 0 or progress == last
    ):
        print_log('The checkpoint was not validated: doing it now', logger='current')
        runner.val_loop.run()


class RestOfEpoch:
    """A data loader that drops the batches of an epoch that are done already.

    It loads them, so that the others are those of an uninterrupted epoch.
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
    """The batches of an iteration-based loop, which itself drops those done already.

    Loading these draws random numbers, unless there are worker processes; the random
    state is restored in front of the first batch that counts.

    Args:
        batches: The loop's own iterator.
        before_iteration: Called with the random state from before a batch, when it is
            loaded or has failed to load; its error takes precedence.
    """

    def __init__(self, batches: Any, before_iteration: Callable[[dict], None]):
        self._batches = batches
        self._before_iteration = before_iteration
        self._to_drop = 0
        self._random_state: Optional[Dict[str, Any]] = None

    def resume(self, to_drop: int, random_state: Dict[str, Any]) -> None:
        """Expect `to_drop` batches to be dropped, then restore the random state."""
        self._to_drop, self._random_state = to_drop, random_state

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
        """Skip batches without loading them, as onedl-mmengine does."""
        self._batches.skip_iter(number)
        self._to_drop = 0
