"""`Whereabouts`: which row each data-loader worker read last, for the process that outlives it."""

import os

import torch
from torch.utils.data import get_worker_info


class Whereabouts:
    """
    Memory that a trainer and its data-loader workers share.

    Args:
        workers (`int`): How many there are; at least 1.
    """

    def __init__(self, workers: int) -> None:
        self._read = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()  # process id and row

    def note(self, row: int) -> None:
        """In a worker: it is about to read this row."""
        worker = get_worker_info()
        if worker is not None:
            self._read[worker.id] = torch.tensor((os.getpid(), row))

    def pids(self) -> list[int]:
        """The workers' process ids; of those that have read a row."""
        return [pid for pid, _ in self._read.tolist() if pid > 0]

    def row_of(self, pid: int) -> int | None:
        """The row that a process read last, if it is one of these workers."""
        return dict(self._read.tolist()).get(pid)
