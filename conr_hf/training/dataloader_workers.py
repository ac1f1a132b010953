"""Data-loader workers: they outlive signals to the job, and one that died is reported in a sentence."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable


def start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """In a new worker: ignores the signals that are its trainer's to act on, then calls `init`."""
    ignore_signals()
    if init is not None:
        init(worker)


def ignore_signals() -> None:
    """
    In a worker: a signal to all processes of a job must not end it before its trainer's step is done. So Ctrl-C is
    ignored, and SIGTERM ends it where its trainer sends it (on Linux, where the sender is known).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def is_dead_worker(error: Exception) -> bool:
    """Whether an error means that a data-loader worker died: by torch's word, or of a batch handed over half."""
    if isinstance(error, RuntimeError):
        text = str(error)
        return "DataLoader worker (pid" in text and ("is killed by" in text or "exited unexpectedly" in text)
    last = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals["__name__"]
    return isinstance(error, EOFError | ConnectionError) and last.startswith("multiprocessing.")


def describe_dead_worker(workers: int) -> str:
    """
    What to do about a worker that died.

    Args:
        workers (`int`): `dataloader_num_workers`.
    """
    return (
        "A process that reads images (a data-loader worker) died, most often for lack of memory or shared memory. "
        f"Set dataloader_num_workers, which is {workers}, lower, or allow more shared memory (/dev/shm, in a "
        "container --shm-size); then start again, or resume with --resume_from_checkpoint true."
    )
