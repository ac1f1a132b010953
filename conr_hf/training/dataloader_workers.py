"""Data-loader workers: they outlive signals to the job, and one that died is recognised."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType

_quiet_handler: Callable[[int, FrameType | None], None] | None = None


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


def quiet_worker_deaths() -> None:
    """
    Keeps torch from raising in a signal handler that a worker died, wherever the process happens to be: in the middle
    of logging that leaves a lock behind, for which others wait for ever; in code of the user's own, long after
    training. Whoever waits for a batch of that worker learns of it within seconds anyway. Torch sets its handler for
    good with the first workers, so this is called when a batch has come, and lasts as long.
    """
    global _quiet_handler
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return  # Python allows handlers in the main thread alone
    handler = signal.getsignal(signal.SIGCHLD)
    if not callable(handler) or handler is _quiet_handler:
        return

    def quiet(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except RuntimeError as error:
            if not is_dead_worker(error):
                raise

    _quiet_handler = quiet
    signal.signal(signal.SIGCHLD, quiet)


def is_dead_worker(error: Exception) -> bool:
    """Whether an error means that a data-loader worker died: torch says so, or a batch arrived cut off."""
    if isinstance(error, RuntimeError):
        text = str(error)
        return "DataLoader worker (pid" in text and ("is killed by" in text or "exited unexpectedly" in text)
    last = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals["__name__"]
    return isinstance(error, EOFError | ConnectionError) and last.startswith("multiprocessing.")
