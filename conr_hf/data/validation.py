"""Checks before training: which rows of a data set are valid, and their labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, IterableDataset
from transformers.utils import logging

from conr_hf.data.columns import (
    Row,
    check_column,
    column_names,
    count_labels,
    label_values,
    read_labels,
    unreadable_rows,
)
from conr_hf.data.config import DataConfig
from conr_hf.data.images import format_size
from conr_hf.data.map_statistics import (
    MapStatistics,
    ReadMap,
    has_maps,
    read_maps,
    subsample_evenly,
    zeros_without_meaning,
)
from conr_hf.imbalance import Bins, label_columns
from conr_hf.utils.distributed import gather_objects, rank, world_size

logger = logging.get_logger(__name__)


def check_has_rows(dataset: Dataset[Row], name: str) -> None:
    """Refuses a data set that is a stream, or empty, and a dictionary of several."""
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"{name} is a {type(dataset).__name__} of the splits {', '.join(map(str, dataset))}. Give one of them, as "
            f'in {name}=data["{next(iter(dataset), "train")}"].'
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(f"{name} is a stream; it must have a length and give rows by index.")
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty. Give it at least one row.")


def valid_rows(
    dataset: Dataset[Row],
    name: str,
    args: DataConfig,
    *,
    with_labels: bool,
    with_images: bool,
    show_progress: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Reads labels and images of every row once; several processes share the images.

    Returns the rows that can be used, in order, `(N,)`; and their labels, `(N,)` or `(N, T)`, or `None` without
    `with_labels`. A row that cannot be read is refused; with `skip_bad_rows` only if none can be read.
    """
    count = len(dataset)  # type: ignore[arg-type]
    labels, wrong = read_labels(dataset, args.label_columns, name) if with_labels else (None, {})
    if with_labels:
        wrong = {**invalid_weights(dataset, name), **wrong}
    if with_images:
        check_column(args.image_column, column_names(dataset, name), name, "image_column")
        mine = range(rank(), count, world_size())
        shows = rank() == 0 and show_progress
        unreadable = unreadable_rows(dataset, args.image_column, mine, name, shows, args.image_range)
        for theirs in gather_objects(unreadable):
            wrong = {**theirs, **wrong}
    report_invalid_rows(wrong, count, name, args.skip_bad_rows)
    indices = np.setdiff1d(np.arange(count), np.fromiter(wrong, int))
    return indices, None if labels is None else labels[indices]


def valid_maps(
    dataset: Dataset[Row], name: str, args: DataConfig, *, with_images: bool, show_progress: bool = False
) -> tuple[np.ndarray, MapStatistics]:
    """
    [`valid_rows`] of a data set whose labels are maps: every map is read once, by one of the processes, and
    `with_images` its image too, whose aspect it must have. Returns the rows that can be used, `(N,)`, and the labels
    of their maps.
    """
    if with_images:
        check_column(args.image_column, column_names(dataset, name), name, "image_column")
    count = len(dataset)  # type: ignore[arg-type]
    share = range(rank(), count, world_size())
    mine = read_maps(dataset, share, name, args, with_images, rank() == 0 and show_progress)
    maps = {row: one for row, one in mine.items() if isinstance(one, ReadMap)}
    wrong = {row: one for row, one in mine.items() if isinstance(one, str)}
    parts_valid = gather_objects({row: one.valid for row, one in maps.items()})
    valid = {row: pixels for part in parts_valid for row, pixels in part.items()}
    parts = gather_objects((subsample_evenly(maps, valid), wrong))
    wrong = invalid_weights(dataset, name)
    for _, theirs in parts:
        wrong |= theirs
    report_invalid_rows(wrong, count, name, args.skip_bad_rows)
    maps = {row: one for theirs, _ in parts for row, one in theirs.items() if row not in wrong}
    indices = np.array(sorted(maps))
    kept = [maps[row] for row in indices.tolist()]
    values, counts = np.concatenate([one.values for one in kept]), np.array([len(one.values) for one in kept])
    notice = zeros_without_meaning(values, args.map_invalid) if name == "train_dataset" else None
    if notice is not None and rank() == 0:
        logger.warning(f'{name}, column "{args.label_columns[0]}": {notice}')
    valid_pixels, sizes = np.array([one.valid for one in kept]), np.array([one.size for one in kept])
    return indices, MapStatistics(values, counts, valid_pixels, sizes)


def invalid_weights(dataset: Dataset[Row], name: str) -> dict[int, str]:
    """What is wrong with the weights of a data set's rows, by row; nothing where they have none."""
    if "sample_weight" not in column_names(dataset):
        return {}
    weights, wrong = read_labels(dataset, ["sample_weight"], name)
    negative = np.flatnonzero(weights < 0).tolist()
    return {**wrong, **{row: f'column "sample_weight": {weights[row]} is less than 0' for row in negative}}


def check_one_size(maps: MapStatistics, indices: np.ndarray, name: str) -> None:
    """Refuses maps of an evaluation set, which are put side by side, that are not of one size."""
    others = np.flatnonzero((maps.sizes != maps.sizes[0]).any(axis=1))
    if len(others):
        first, other = format_size(maps.sizes[0]), format_size(maps.sizes[others[0]])
        raise ValueError(
            f"{name}, rows {indices[0]:,} and {indices[others[0]]:,}: their maps have {first} and {other} pixels, but "
            "the maps of an evaluation set must be of one size. Scale them to one, or make a set for each size."
        )


def check_columns(stream: IterableDataset[Row], name: str, args: DataConfig, *, with_image: bool) -> None:
    """Refuses a stream without a label column or, `with_image`, an image to read, and one whose labels are maps."""
    names = column_names(stream, name)
    has_maps(stream, args.label_columns, name)
    if not all(column in names for column in args.label_columns) and "labels" not in names:
        label_values(dict.fromkeys(names), args.label_columns, name)
    if with_image and "pixel_values" not in names:
        check_column(args.image_column, names, name, "image_column")


def streamed_labels(stream: IterableDataset[Row], name: str, args: DataConfig) -> np.ndarray:
    """The labels, `(N,)` or `(N, T)`, float64, of a stream's usable rows, in one pass by the first process."""
    read = read_labels(stream, args.label_columns, name) if rank() == 0 else (np.empty(0), {})
    labels, wrong = gather_objects(read)[0]
    if len(labels) == 0:
        raise ValueError(f"{name} is a stream without rows. Give it at least one.")
    report_invalid_rows(wrong, len(labels), name, args.skip_bad_rows)
    return np.delete(labels, list(wrong), axis=0)


def report_invalid_rows(wrong: dict[int, str], count: int, name: str, skip_bad_rows: bool) -> None:
    """Refuses rows that cannot be used; if they may be left out and others remain, a warning names them."""
    if wrong and not skip_bad_rows:
        first = min(wrong)
        more = len(wrong) - 1
        others = f" {more:,} more row{'s' * (more > 1)} cannot be used." if more else ""
        raise ValueError(
            f"{name}, row {first:,}, {wrong[first]}.{others} Mend the data, or leave such rows out with skip_bad_rows."
        )
    if len(wrong) == count:
        raise ValueError(f"{name} has no row that can be used; row 0, {wrong[0]}.")
    if wrong and rank() == 0:
        named = "; ".join(f"row {row:,}, {wrong[row]}" for row in sorted(wrong)[:20])
        logger.warning(f"{name}: {len(wrong):,} of {count:,} rows left out: {named}{'; ...' * (len(wrong) > 20)}")


def check_train_labels(train_labels: npt.ArrayLike | Bins, args: DataConfig, stream: Any) -> None:
    """Refuses `train_labels` that cannot be the labels of a stream's rows, or their bins."""
    if not isinstance(stream, IterableDataset):
        raise ValueError("train_labels is for a stream; the labels of other data sets are read. Leave it out.")
    columns = count_labels(stream, args.label_columns, "train_dataset")
    if isinstance(train_labels, Bins):
        if len(train_labels.edges) != 1 or columns != 1:
            raise ValueError("train_labels is a histogram, which tells of one label column. Give the labels, (N, T).")
        if args.bin_width is not None:
            raise ValueError(f"bin_width is {args.bin_width}, but train_labels has bins. Leave one of them out.")
        if train_labels.train_counts[0].sum() == 0:
            raise ValueError("train_labels counts no label. Give the training labels' counts.")
        return
    labels = label_columns(train_labels, "train_labels")
    if len(labels) == 0 or labels.shape[1] != columns:
        raise ValueError(
            f"train_labels has shape {labels.shape} and label_columns names {columns}. Give a label for each row."
        )


def labels_of(train_labels: npt.ArrayLike | Bins) -> np.ndarray:
    """The labels, or in their place as many at the middle of each bin."""
    if not isinstance(train_labels, Bins):
        labels = label_columns(train_labels)
        return labels[:, 0] if labels.shape[1] == 1 else labels
    (edges,), (counts,) = train_labels.edges, train_labels.train_counts
    return np.repeat((edges[:-1] + edges[1:]) / 2, counts)
