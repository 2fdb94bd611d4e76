"""SIGTERM, which a cluster sends before it takes a machine back, as a question."""

import multiprocessing
import os
import signal
import threading
from typing import Any, Callable, Optional

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from torch.utils.data import DataLoader


class Termination:
    """Notes that SIGTERM has come, so that a training can stop where it suits."""

    def __init__(self):
        self.received = False
        self._process = None

    def watch(self) -> None:
        """From here on SIGTERM is noted, where nobody else listens to it already."""
        self.received = False
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets the main thread alone set handlers.
        handler = signal.getsignal(signal.SIGTERM)
        # An error in a training before this one, in a notebook say, leaves its own.
        left_over = isinstance(getattr(handler, '__self__', None), Termination)
        if handler != signal.SIG_DFL and not left_over:
            print_log(
                'SIGTERM has a handler already, so it does not save a checkpoint',
                logger='current',
            )
            return
        self._process = os.getpid()
        signal.signal(signal.SIGTERM, self._note)

    def spare_workers(self, loader: Any) -> None:
        """Have workers that it starts from now on live until this process ends them.

        Slurm and torchrun send SIGTERM to them too, and without them the iteration that
        waits for their data would fail where it should be the last one.
        """
        can_wait = hasattr(signal, 'sigtimedwait')  # Not on Windows and macOS.
        if self._process is None or not can_wait or not isinstance(loader, DataLoader):
            return
        if not isinstance(loader.worker_init_fn, SparedWorker):
            loader.worker_init_fn = SparedWorker(loader.worker_init_fn)

    def unwatch(self) -> None:
        """SIGTERM ends the process again."""
        if self._process is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._process = None

    def received_anywhere(self) -> bool:
        """Whether any process of a distributed run has it: all of them have to ask."""
        if get_world_size() == 1:
            return self.received
        received = torch.tensor(int(self.received))
        all_reduce(received, 'max')
        return bool(received)

    def _note(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:
            # A forked process, say of a pool: its parent means it to end.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.received = True
        # Where the whole group of processes got the signal, torch's data workers end,
        # and torch would raise here because of that, before anything is saved.
        signal.signal(signal.SIGCHLD, lambda *_: None)


class SparedWorker:
    """A data loader's `worker_init_fn`: SIGTERM ends a worker if its parent sent it.

    For workers that are forked; programs that they start inherit the blocked signal.

    Args:
        init: What the loader had there before; called first.
    """

    def __init__(self, init: Optional[Callable[[int], None]]):
        self._init = init

    def __call__(self, worker_id: int) -> None:
        """Called in the worker."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # With a fork server, the process that ends it is not the one it comes from.
        main, parent = multiprocessing.parent_process().pid, os.getppid()
        threading.Thread(target=_end_by, args=(main, parent), daemon=True).start()
        if self._init is not None:
            self._init(worker_id)


def _end_by(main: int, parent: int) -> None:
    while os.getppid() == parent:  # else it is an orphan
        told = signal.sigtimedwait({signal.SIGTERM}, 5)
        if told is not None and told.si_pid == main:
            break
    os._exit(0)
