"""Data-loader workers: they outlive signals to the job, and one that died is recognised."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable


def start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """
    In a new worker: a signal to all processes of a job must not end it before its trainer's step is done. So Ctrl-C is
    ignored, and SIGTERM ends it where its trainer sends it (on Linux, where the sender is known). Then calls `init`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_trainer, daemon=True).start()
    if init is not None:
        init(worker)


def _end_with_trainer() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def is_dead_worker(error: Exception) -> bool:
    """Whether an error means that a data-loader worker died: torch says so, or a batch arrived cut off."""
    if isinstance(error, RuntimeError):
        text = str(error)
        return "DataLoader worker (pid" in text and ("is killed by" in text or "exited unexpectedly" in text)
    last = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals["__name__"]
    return isinstance(error, EOFError | ConnectionError) and last.startswith("multiprocessing.")
