"""From a stream to a training epoch: the same rows in the same places however many processes and workers read them."""

from collections.abc import Iterator
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from conr_hf.data.columns import Row, label_error, label_values
from conr_hf.data.dataset import SampledExample
from conr_hf.data.images import describe_error, to_image
from conr_hf.data.sampler import SampledIndex

logger = logging.get_logger(__name__)

_AT_ONCE = 32  # rows of a `datasets` stream that are read at once


class StreamingDataset(IterableDataset[SampledExample]):
    """
    A stream as epochs of `count` rows, each beside its place in the epoch.

    Every process, and every worker of it, reads the whole stream and decodes the images of its own batches, so that
    the global order depends on (seed, epoch) alone. Where the processes would get different numbers of batches, rows
    from the start of the epoch follow as repeats. A stream that ends early begins again.

    Args:
        stream (`torch.utils.data.IterableDataset`): Rows with an image and labels, or ready for the model. It must
            give every process and worker all its rows in one order; a seeded one of `datasets` does, and gets the
            epoch, unless `split_dataset_by_node` divided it.
        name (`str`): What messages call it.
        image_column (`str`, *optional*): Column of the image. Unset: the rows are left as they are.
        label_columns (`list[str]`): The T columns of the label.
        count (`int`): Rows of an epoch.
        batch (`int`): Samples of a micro-batch over all processes.
        process (`int`): This process.
        processes (`int`): How many there are.
        drop_last (`bool`): Leave out a last micro-batch that is not full.
        skip_bad_rows (`bool`): Leave out rows whose label is no number, and put the stream's first in the place of
            one whose image cannot be read, with a warning, instead of stopping.
    """

    def __init__(
        self,
        stream: IterableDataset[Any],
        name: str,
        image_column: str | None,
        label_columns: list[str],
        *,
        count: int,
        batch: int,
        process: int,
        processes: int,
        drop_last: bool,
        skip_bad_rows: bool,
    ) -> None:
        self.stream, self.name, self.count, self.batch = _undecoded(stream, image_column), name, count, batch
        self.image_column, self.label_columns = image_column, label_columns
        self.process, self.processes = process, processes
        self.drop_last, self.skip_bad_rows = drop_last, skip_bad_rows
        # Workers that persist see these change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)
        if isinstance(self.stream, datasets.IterableDataset):  # once: two workers would both add to one number
            self.stream.set_epoch(epoch)

    @property
    def skipped(self) -> int:
        """Micro-batches at the beginning of the next iteration whose rows are not given, nor their images decoded."""
        return int(self._skipped)

    @skipped.setter
    def skipped(self, batches: int) -> None:
        self._skipped.fill_(batches)

    def __len__(self) -> int:
        if self.drop_last:
            return self.count // self.batch * self.batch
        return self.count if self.processes == 1 else -(-self.count // self.batch) * self.batch

    def __iter__(self) -> Iterator[SampledExample]:
        epoch, skipped, worker, readable = self.epoch, self.skipped, get_worker_info(), None
        for position, (place, row) in enumerate(self._epoch_of_rows(epoch)):
            batch, sample = divmod(position, self.batch)
            if worker is not None and batch % worker.num_workers != worker.id:
                continue
            if batch < skipped:
                yield SampledIndex(position, epoch, position), None
                continue
            if sample * self.processes // self.batch == self.process:
                try:
                    row = self._decoded(row)
                except Exception as error:  # whatever a decoder raises, the row cannot be used
                    problem = f'column "{self.image_column}": the image cannot be read ({describe_error(error)})'
                    self._refuse(place, epoch, problem, row)
                    logger.warning(f"{self._named(place, epoch, row)}, {problem}; another row takes its place.")
                    row = readable = readable or self._first_readable()
            yield SampledIndex(position, epoch, position), row

    def _epoch_of_rows(self, epoch: int) -> Iterator[tuple[int, Row]]:
        """The rows of the stream that can be used, beside their places in it, and then repeats of the first."""
        first: list[tuple[int, Row]] = []
        position, end = 0, min(self.count, len(self))
        while position < end:
            begun_at = position
            for place, row in enumerate(_rows(self.stream)):
                if (problem := self._label_problem(row)) is not None:
                    self._refuse(place, epoch, problem, row)
                    continue
                if position == end:
                    self._warn_of_more()
                    break
                if position < len(self) - end:
                    first.append((place, row))
                yield place, row
                position += 1
            if position == begun_at:
                raise ValueError(
                    f"{self.name} is a stream that gives no row that can be used. It must start again each time "
                    "it is iterated."
                )
            if position < end:
                logger.warning_once(
                    f"{self.name} ended after {position:,} of {self.count:,} rows and begins again. A stream must "
                    "give all its rows to each process and worker, which share them here."
                )
        for repeat in range(len(self) - end):
            yield first[repeat % len(first)]

    def _warn_of_more(self) -> None:
        if not self.drop_last:
            logger.warning_once(
                f"{self.name} has more rows than the {self.count:,} labels that are known of it; an epoch ends there."
            )

    def _label_problem(self, row: Row) -> str | None:
        cells = dict(zip(self.label_columns, label_values(row, self.label_columns, self.name), strict=True))
        for column, cell in cells.items():
            if (problem := label_error(cell)) is not None:
                return f'column "{column}": {problem}'
        if "sample_weight" in row:
            weight = row["sample_weight"]
            problem = label_error(weight)
            if problem is not None or weight < 0:
                return f'column "sample_weight": {problem or f"{weight} is less than 0"}'
        return None

    def _refuse(self, place: int, epoch: int, problem: str, row: Row) -> None:
        if not self.skip_bad_rows:
            raise ValueError(
                f"{self._named(place, epoch, row)}, {problem}. Mend the data, or leave such rows out with "
                "skip_bad_rows."
            )

    def _named(self, place: int, epoch: int, row: Row) -> str:
        cell = row.get(self.image_column) if self.image_column is not None else None
        path = f' ("{cell["path"]}")' if isinstance(cell, dict) and cell.get("path") else ""
        return f"{self.name}, row {place:,} in the order of epoch {epoch + 1}{path}"

    def _decoded(self, row: Row) -> Row:
        column = self.image_column
        if column is None or "pixel_values" in row or column not in row:
            return row
        return {**row, column: to_image(_fetched(row[column]))}

    def _first_readable(self) -> Row:
        for row in _rows(self.stream):
            try:
                if self._label_problem(row) is None:
                    return self._decoded(row)
            except Exception:  # said where its turn comes
                continue
        raise ValueError(f"{self.name} has no row that can be used: no image of the stream can be read.")


def _undecoded(stream: IterableDataset[Any], column: str | None) -> IterableDataset[Any]:
    """The stream without decoding its images, where it would."""
    if column is None or not isinstance(stream, datasets.IterableDataset):
        return stream
    decodes = isinstance((stream.features or {}).get(column), datasets.Image)
    return stream.cast_column(column, datasets.Image(decode=False)) if decodes else stream


def _rows(stream: IterableDataset[Any]) -> Iterator[Row]:
    """The rows of an epoch. Iterated row by row, a `datasets` stream would divide them among the workers."""
    if not isinstance(stream, datasets.IterableDataset):
        yield from stream
        return
    for block in stream.iter(_AT_ONCE):
        for values in zip(*block.values(), strict=True):
            yield dict(zip(block, values, strict=True))


def _fetched(cell: Any) -> Any:
    """What is not in the row but in a file elsewhere, as the Hub's folders of images are."""
    elsewhere = isinstance(cell, dict) and cell.get("bytes") is None and "://" in (cell.get("path") or "")
    return datasets.Image().decode_example(cell) if elsewhere else cell
