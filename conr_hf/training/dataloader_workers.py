"""`Workers`: the data-loader workers of a trainer, and what those that died had read last."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader

from conr_hf.data.dataset import SampledDataset
from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.data.worker_progress import Whereabouts

_DIED = ("is killed by signal", "exited unexpectedly")  # torch, of a data-loader worker
_ENDING = 1.0  # seconds in which a process that has closed its connections ends


class Workers:
    """The data-loader workers that read for a trainer."""

    def __init__(self) -> None:
        self._count = 0
        self._rows: dict[str, SampledDataset | StreamingDataset] = {}

    def begin(self, task: str, rows: SampledDataset | StreamingDataset, count: int) -> None:
        """So many workers, at least 1, are to read these rows for a task, `"training"` or `"evaluation"`."""
        self._count = count
        rows.whereabouts = Whereabouts(count)
        self._rows[task] = rows

    def end(self, task: str) -> None:
        """Those of a task have ended, as they should."""
        self._rows.pop(task, None)

    @contextmanager
    def naming_dead(self) -> Iterator[None]:
        """
        Around what reads batches.

        Raises:
            `ChildProcessError`: for a data-loader worker that died, with the row that it read last.
        """
        try:
            yield
        except (RuntimeError, EOFError, ConnectionResetError, ConnectionRefusedError) as error:
            if isinstance(error, RuntimeError):
                pids = _pids_of(error)
            else:  # perhaps of a batch handed over half
                pids = self._ended() if _is_of_loader(error) else []
            if not pids:
                raise
            raise ChildProcessError(self._told(pids)) from error

    def _ended(self) -> list[int]:
        """Process ids of workers that have ended, or are about to."""
        of_loaders = [rows.whereabouts for rows in self._rows.values()]
        pids = [pid for one in of_loaders if one is not None for pid in one.pids()]
        for child in multiprocessing.active_children():
            if child.pid in pids:
                child.join(_ENDING / len(pids))
        alive = {child.pid for child in multiprocessing.active_children()}
        return [pid for pid in pids if pid not in alive]

    def _told(self, pids: list[int]) -> str:
        """What to do where workers with these process ids died."""
        read = self._read_last(pids)
        reading = f" The last row that it read is {' and '.join(read)}." if read else ""
        return (
            f"A process that reads images died (data-loader worker, pid {', '.join(map(str, pids))}), most often for "
            f"want of memory or shared memory.{reading} Set dataloader_num_workers, which is {self._count}, lower, or "
            "allow more shared memory (/dev/shm, in a container --shm-size); then start again, or go on with training "
            "by --resume_from_checkpoint true."
        )

    def _read_last(self, pids: list[int]) -> list[str]:
        """The rows that they read last, with the names of their data sets."""
        found = []
        for rows in self._rows.values():
            order = f" in the order of epoch {rows.epoch + 1}" if isinstance(rows, StreamingDataset) else ""
            assert rows.whereabouts is not None
            places = [rows.whereabouts.row_of(pid) for pid in pids]
            found += [f"{place:,} of {rows.name}{order}" for place in places if place is not None]
        return found


def _pids_of(error: RuntimeError) -> list[int]:
    """Of the workers that died, if that is what an error says."""
    text = str(error)
    if "DataLoader worker" not in text or not any(sign in text for sign in _DIED):
        return []
    found = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", text)
    return [] if found is None else [int(pid) for pid in found[1].split(",")]


def _is_of_loader(error: Exception) -> bool:
    """Whether an error was raised while a data loader fetched a batch, and not by what its worker did for it."""
    modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return DataLoader.__module__ in modules and "in DataLoader worker process" not in str(error)


def outlive_signals() -> None:
    """
    In a data-loader worker: a signal to all processes of a job must not end it before its trainer's step is done. So
    Ctrl-C is ignored, and SIGTERM ends it where its trainer sends it (on Linux, which tells the sender).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _begin_worker(begin: Callable[[int], None] | None, worker: int) -> None:
    outlive_signals()
    if begin is not None:
        begin(worker)
