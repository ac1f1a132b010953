"""Rows of a data set read in threads, on the cores that this process has."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import datasets
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

T = TypeVar("T")

_MOST_OF_BLOCK = 16  # rows, which a thread reads at once


def in_threads(
    read: Callable[[int], T], dataset: Dataset[Any], rows: Sequence[int], title: str, show_progress: bool
) -> Iterator[T]:
    """
    What `read` gives for each row, in order, in threads only if the data set is known to allow them. Threads are as
    fast as processes here, since Pillow decodes without holding Python's lock. A bar shows images a second and the
    time left.
    """
    return blocks_in_threads(lambda block: [read(row) for row in block], dataset, rows, title, show_progress)


def blocks_in_threads(
    read: Callable[[Sequence[int]], Sequence[T]],
    dataset: Dataset[Any],
    rows: Sequence[int],
    title: str,
    show_progress: bool,
) -> Iterator[T]:
    """[`in_threads`], where `read` gives as many things as it is handed rows: some that follow each other."""
    threads = cores() if isinstance(dataset, datasets.Dataset) else 1  # one of the user's own may hold a file open
    size = max(1, min(_MOST_OF_BLOCK, len(rows) // (4 * threads)))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    bar = tqdm(desc=title, total=len(rows), unit=" images", leave=False, disable=not (show_progress and len(rows)))
    with bar, ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused instead
        for found in pool.map(read, blocks) if threads > 1 else map(read, blocks):
            yield from found
            bar.update(len(found))


def cores() -> int:
    """The cores that this process may use, its share where other processes of the run are on the same node."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
