"""Turn SIGTERM into a flag that the training loop polls."""

import multiprocessing
import os
import signal
import threading
from typing import Any, Callable, Optional

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from torch.utils.data import DataLoader

#: The checkpoint that SIGTERM leaves; the next one replaces it.
INTERRUPTED = 'interrupted.pth'
#: The exit status after that: EX_TEMPFAIL of sysexits.h, "try again".
STOPPED = 75


class Preemption:
    """Whether SIGTERM has arrived, as a cluster sends it before it takes a machine."""

    def __init__(self):
        self.requested = False
        self._process = None

    def install(self) -> None:
        """Handle SIGTERM, unless something else handles it already."""
        self.requested = False
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets the main thread alone set handlers.
        handler = signal.getsignal(signal.SIGTERM)
        # An earlier training that failed, in a notebook say, leaves its handler.
        left_over = isinstance(getattr(handler, '__self__', None), Preemption)
        if handler != signal.SIG_DFL and not left_over:
            print_log(
                'SIGTERM has a handler already: it saves no checkpoint', 'current'
            )
            return
        self._process = os.getpid()
        signal.signal(signal.SIGTERM, self._handle)

    def uninstall(self) -> None:
        """Let SIGTERM end the process again."""
        if self._process is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._process = None

    def shield_workers(self, loader: Any) -> None:
        """Keep worker processes alive until this process ends them.

        Slurm and torchrun send SIGTERM to them too, and the iteration that waits for
        their data would fail instead of being the last one.
        """
        can_wait = hasattr(signal, 'sigtimedwait')  # not on Windows and macOS
        if self._process is None or not can_wait or not isinstance(loader, DataLoader):
            return
        if not isinstance(loader.worker_init_fn, ShieldedWorker):
            loader.worker_init_fn = ShieldedWorker(loader.worker_init_fn)

    def requested_anywhere(self) -> bool:
        """Return whether any process of a distributed run got it; call it in all."""
        if get_world_size() == 1:
            return self.requested
        requested = torch.tensor(int(self.requested))
        all_reduce(requested, 'max')
        return bool(requested)

    def _handle(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:
            # A forked process, of a pool say, which its parent wants to end.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.requested = True
        # Unshielded workers that got it too end, at which torch's handler would raise.
        signal.signal(signal.SIGCHLD, lambda *_: None)


class ShieldedWorker:
    """A `worker_init_fn` that lets SIGTERM end a worker only if its parent sent it.

    For forked workers. (If they ignored it, multiprocessing would hang at exit.)

    Args:
        init: The loader's own `worker_init_fn`, called as well.
    """

    def __init__(self, init: Optional[Callable[[int], None]]):
        self._init = init

    def __call__(self, worker_id: int) -> None:
        """Block SIGTERM in the worker and watch for the parent's."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # With a fork server, the process that ends it is not the one it comes from.
        main, parent = multiprocessing.parent_process().pid, os.getppid()
        threading.Thread(target=_end_by, args=(main, parent), daemon=True).start()
        if self._init is not None:
            self._init(worker_id)


def _end_by(main: int, parent: int) -> None:
    while os.getppid() == parent:  # else it is an orphan
        received = signal.sigtimedwait({signal.SIGTERM}, 5)
        if received is not None and received.si_pid == main:
            break
    os._exit(0)
