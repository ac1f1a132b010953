"""From a stream to a training epoch: the same rows in the same places however many processes and workers read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from conr_hf.data.columns import Row, class_numbers, label_error, label_names, label_values, with_numbers
from conr_hf.data.dataset import SampledExample
from conr_hf.data.images import describe_error, to_image
from conr_hf.data.sampler import SampledIndex

logger = logging.get_logger(__name__)

_AT_ONCE = 32  # rows of a `datasets` stream that are read at once


@dataclass(eq=False)
class StreamingDataset(IterableDataset[SampledExample]):
    """
    A stream as epochs of `count` rows, each beside its place in the epoch.

    Every process, and every worker of it, reads the whole stream and decodes the images of its own batches, so that
    the global order depends on (seed, epoch) alone. Where the processes would get different numbers of batches, rows
    from the start of the epoch follow as repeats. A stream that ends early begins again.

    The stream has rows with an image and labels, or ready for the model. It must give every process and worker all its
    rows in one order; a seeded one of `datasets` does, and gets the epoch, unless `split_dataset_by_node` divided it.
    Without an `image_column` its rows are left as they are. `batch` counts the samples of a micro-batch over all
    processes; `drop_last` leaves out a last one that is not full. `skip_bad_rows` leaves out rows whose label is no
    number, and puts the stream's first in the place of one whose image cannot be read, with a warning, instead of
    stopping.
    """

    stream: IterableDataset[Any]
    name: str  # what messages call it
    image_column: str | None
    label_columns: list[str]
    count: int
    batch: int
    process: int  # this one, of all `processes`
    processes: int
    drop_last: bool
    skip_bad_rows: bool
    image_range: Sequence[float] | None = None  # as in `to_image`

    def __post_init__(self) -> None:
        self._classes = {} if self.image_column is None else class_numbers(self.stream, self.label_columns, self.name)
        self.stream = _undecoded(self.stream, self.image_column)
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
                    named = self._refuse(place, epoch, problem, row)
                    logger.warning(f"{named}, {problem}; another row takes its place.")
                    row = readable = readable or self._first_readable()
            yield SampledIndex(position, epoch, position), row

    def _epoch_of_rows(self, epoch: int) -> Iterator[tuple[int, Row]]:
        """The rows of the stream that can be used, beside their places in it, and then repeats of the first."""
        first: list[tuple[int, Row]] = []
        position, end = 0, min(self.count, len(self))
        while position < end:
            begun_at = position
            for place, row in enumerate(_rows(self.stream)):
                row = with_numbers(row, self._classes)
                if (problem := self._label_problem(row)) is not None:
                    self._refuse(place, epoch, problem, row)
                    continue
                if position == end:
                    if not self.drop_last:
                        logger.warning_once(
                            f"{self.name} has more rows than the {self.count:,} labels that are known of it; an epoch "
                            "ends there."
                        )
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

    def _label_problem(self, row: Row) -> str | None:
        cells = label_values(row, self.label_columns, self.name)
        for column, cell in zip(label_names(self.label_columns, len(cells)), cells, strict=True):
            if (problem := label_error(cell)) is not None:
                return f'column "{column}": {problem}'
        if "sample_weight" in row:
            weight = row["sample_weight"]
            if (problem := label_error(weight)) is not None or weight < 0:
                return f'column "sample_weight": {problem or f"{weight} is less than 0"}'
        return None

    def _refuse(self, place: int, epoch: int, problem: str, row: Row) -> str:
        """Refuses a row, unless it may be left out; then returns how messages name it."""
        cell = row.get(self.image_column) if self.image_column is not None else None
        path = f' ("{cell["path"]}")' if isinstance(cell, dict) and cell.get("path") else ""
        named = f"{self.name}, row {place:,} in the order of epoch {epoch + 1}{path}"
        if not self.skip_bad_rows:
            raise ValueError(f"{named}, {problem}. Mend the data, or leave such rows out with skip_bad_rows.")
        return named

    def _decoded(self, row: Row) -> Row:
        column = self.image_column
        if column is None or "pixel_values" in row or column not in row:
            return row
        cell = row[column]
        # What is not in the row but in a file elsewhere, as the Hub's folders of images are.
        if isinstance(cell, dict) and cell.get("bytes") is None and "://" in (cell.get("path") or ""):
            cell = datasets.Image().decode_example(cell)
        return {**row, column: to_image(cell, image_range=self.image_range)}

    def _first_readable(self) -> Row:
        for row in _rows(self.stream):
            row = with_numbers(row, self._classes)
            try:
                if self._label_problem(row) is None:
                    return self._decoded(row)
            except Exception:  # said where its turn comes
                continue
        raise ValueError(f"{self.name} has no row that can be used: no image of the stream can be read.")


def _undecoded(stream: IterableDataset[Any], column: str | None) -> IterableDataset[Any]:
    """The stream without decoding its images, where it would; those of other columns nobody needs."""
    if column is None or not isinstance(stream, datasets.IterableDataset):
        return stream
    unopened: Any = stream
    for name, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            unopened = unopened.cast_column(name, datasets.Image(decode=False))
    return unopened


def _rows(stream: IterableDataset[Any]) -> Iterator[Row]:
    """The rows of an epoch. Iterated row by row, a `datasets` stream would divide them among the workers."""
    if not isinstance(stream, datasets.IterableDataset):
        yield from stream
        return
    for block in stream.iter(_AT_ONCE):
        for values in zip(*block.values(), strict=True):
            yield dict(zip(block, values, strict=True))
