"""From a stream to a training epoch: the same rows in the same places however many processes and workers read them."""

from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from conr_hf.data.rows import Row, describe, label_problem, to_image
from conr_hf.data.views import Draw, Example

logger = logging.get_logger(__name__)

_AT_ONCE = 32  # rows that are asked of a `datasets` stream at once


class StreamedRows(IterableDataset[Example]):
    """
    A stream as epochs of `count` rows, each beside its place in the epoch.

    Every process, and every worker of it, reads the whole stream and decodes the images of its own batches, so that
    the global order hangs on (seed, epoch) alone. Where the processes' batches would not come out even, rows from the
    start of the epoch follow as repeats. A stream that ends early begins again.

    Args:
        stream (`torch.utils.data.IterableDataset`): Rows with an image and labels, or ready for the model. It must
            give every process and worker the same rows; one of `datasets` is told the epoch and does.
        name (`str`): What messages call it.
        image_column (`str`): Column of the image.
        label_columns (`list[str]`): The T columns of the label.
        count (`int`): Rows of an epoch.
        batch (`int`): Samples of a micro-batch over all processes.
        process (`int`): This process.
        processes (`int`): How many there are.
        drop_last (`bool`): Leave out a last micro-batch that is not full.
        skip_bad_rows (`bool`): Leave out rows whose label is no number, and put the row before it in the place of one
            whose image cannot be read, with a warning, instead of stopping.
    """

    def __init__(
        self,
        stream: IterableDataset[Any],
        name: str,
        image_column: str,
        label_columns: list[str],
        *,
        count: int,
        batch: int,
        process: int,
        processes: int,
        drop_last: bool,
        skip_bad_rows: bool,
    ) -> None:
        self.stream, self.name, self.count, self.batch = stream, name, count, batch
        self.image_column, self.label_columns = image_column, label_columns
        self.process, self.processes = process, processes
        self.drop_last, self.skip_bad_rows = drop_last, skip_bad_rows
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it change

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        if self.drop_last:
            return self.count // self.batch * self.batch
        return self.count if self.processes == 1 else -(-self.count // self.batch) * self.batch

    def __iter__(self) -> Iterator[Example]:
        epoch, worker, before = self.epoch, get_worker_info(), None
        for position, (place, row) in zip(range(len(self)), self._epoch_of_rows(epoch), strict=False):
            batch, sample = divmod(position, self.batch)
            if worker is not None and batch % worker.num_workers != worker.id:
                continue
            if sample * self.processes // self.batch == self.process:
                row = before = self._decoded(row, place, before)
            yield Draw(position, epoch, position), row

    def _epoch_of_rows(self, epoch: int) -> Iterator[tuple[int, Row]]:
        """The rows of the stream that can be used, beside their places in it, `count` of them and then repeats."""
        repeats: list[tuple[int, Row]] = []
        position = 0
        while position < self.count:
            begun_at = position
            for place, row in enumerate(_rows(self.stream, epoch)):
                if self._is_wrong(row, place):
                    continue
                if position < len(self) - self.count:
                    repeats.append((place, row))
                yield place, row
                position += 1
                if position == self.count:
                    break
            else:
                if position == begun_at:
                    raise ValueError(f"{self.name} is a stream without rows that can be used.")
                logger.warning_once(f"{self.name} ended after {position:,} of {self.count:,} rows and begins again.")
        while True:
            yield from repeats

    def _is_wrong(self, row: Row, place: int) -> bool:
        for column in self.label_columns:
            problem = label_problem(row[column]) if column in row else None
            if problem is not None and not self.skip_bad_rows:
                raise ValueError(
                    f'{self.name}, row {place:,}, column "{column}": {problem}. Mend the data, or leave such rows out '
                    "with skip_bad_rows."
                )
            if problem is not None:
                return True
        return False

    def _decoded(self, row: Row, place: int, before: Row | None) -> Row:
        if self.image_column not in row:
            return row
        try:
            return {**row, self.image_column: to_image(_fetched(row[self.image_column]))}
        except Exception as error:  # whatever a decoder raises, the row cannot be used
            problem = f'column "{self.image_column}": the image cannot be read ({describe(error)})'
            sentence = f"{self.name}, row {place:,}, {problem}"
            if not self.skip_bad_rows:
                raise ValueError(f"{sentence}. Mend the data, or leave such rows out with skip_bad_rows.") from error
            logger.warning(f"{sentence}; another row is taken in its place.")
            return self._readable() if before is None else before

    def _readable(self) -> Row:
        """The first row of the stream whose image can be read."""
        for row in _rows(self.stream, self.epoch):
            try:
                return {**row, self.image_column: to_image(_fetched(row[self.image_column]))}
            except Exception:  # said already
                continue
        raise ValueError(f"{self.name} has no row that can be used: no image of the stream can be read.")


def _rows(stream: IterableDataset[Any], epoch: int) -> Iterator[Row]:
    """The rows of an epoch; a `datasets` stream, asked row by row, would share them out among the workers."""
    if not isinstance(stream, datasets.IterableDataset):
        yield from stream
        return
    stream.set_epoch(epoch)
    for block in stream.iter(_AT_ONCE):
        for values in zip(*block.values(), strict=True):
            yield dict(zip(block, values, strict=True))


def _fetched(cell: Any) -> Any:
    """What is not in the row but in a file elsewhere, as the Hub's folders of images are."""
    elsewhere = isinstance(cell, dict) and cell.get("bytes") is None and "://" in (cell.get("path") or "")
    return datasets.Image().decode_example(cell) if elsewhere else cell
