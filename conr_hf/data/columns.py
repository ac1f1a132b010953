"""The rows of a data set: their labels, checked, and which of them can be read."""

import difflib
import math
import os
import warnings
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers.utils import logging

from conr_hf.data.images import decode_image, describe_error, to_image
from conr_hf.data.label_maps import is_map, truncate
from conr_hf.utils.distributed import rank

logger = logging.get_logger(__name__)

Row = Mapping[str, Any]
T = TypeVar("T")


def column_names(dataset: Dataset[Any]) -> list[str]:
    """Names of the columns of a data set's rows, of a plain `datasets.Dataset` without reading a row."""
    if isinstance(dataset, IterableDataset):
        if isinstance(dataset, datasets.IterableDataset) and dataset.column_names is not None:
            return list(dataset.column_names)
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError("The stream has no rows. Give it at least one.")
        return list(first)
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        return list(dataset.column_names)
    return list(dataset[0])


def read_labels(dataset: Dataset[Any], columns: Sequence[str], name: str) -> tuple[np.ndarray, dict[int, str]]:
    """
    The labels of every row, `(N,)`, or `(N, T)` for T > 1 columns, float64, in label units, NaN where there is no
    number; and what is wrong with those that are not finite numbers, by row. A missing column is refused.

    Of a `datasets.Dataset` only the label columns are read; of any other data set, or one with a transform, every row,
    because only then are its labels known; a stream is read once from its first row to its last. Rows ready for the
    model may have their labels as `labels`. Messages call the data set `name`, for example `"train_dataset"`.
    """
    numbers = array("d")
    wrong: dict[int, str] = {}
    for index, row in enumerate(_label_rows(dataset, columns)):
        for dimension, cell in enumerate(label_values(row, columns, name)):
            problem = label_error(cell)
            numbers.append(float(cell) if problem is None else math.nan)
            if problem is not None:
                wrong[index] = f'column "{columns[dimension]}": {problem}'
    labels = np.array(numbers).reshape(-1, len(columns))
    return labels[:, 0] if len(columns) == 1 else labels, wrong


def label_values(row: Row, columns: Sequence[str], name: str) -> list[Any]:
    """The T label cells of a row, or its map, from its label columns or, in one ready for the model, from `labels`."""
    if all(column in row for column in columns):
        return [row[column] for column in columns]
    if "labels" in row:
        array = np.asarray(row["labels"])
        cells = array.reshape(-1).tolist()
        if len(cells) == len(columns):
            return list(cells)
        if len(columns) == 1 and is_map(row["labels"]):
            return [row["labels"]]
        found = f"has the shape {array.shape}" if array.ndim > 1 else f"holds {len(cells)} numbers"
        raise ValueError(f'{name}: "labels" {found}, but label_columns names {len(columns)}.')
    missing = next(column for column in columns if column not in row)
    near = difflib.get_close_matches(missing, list(row), n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    raise ValueError(
        f'{name} has no column "{missing}"; its columns are {", ".join(row)}. '
        f"Name the column of the label with label_columns.{hint}"
    )


def check_column(column: str, columns: Sequence[str], name: str, option: str) -> None:
    """Refuses a data set whose `columns` lack the one that the option names."""
    if column not in columns:
        raise ValueError(
            f'{name} has no column "{column}"; its columns are {", ".join(columns)}. Name one of them with {option}.'
        )


def unreadable_rows(
    dataset: Dataset[Any],
    image_column: str,
    rows: Sequence[int],
    name: str,
    show_progress: bool = True,
    image_range: Sequence[float] | None = None,
) -> dict[int, str]:
    """
    Reads the images of `rows` in threads, and returns by row why one cannot be read. Warns where none of them uses
    more than a quarter of its 16 bits.
    """
    stored = undecoded(dataset, [image_column])

    def read(index: int) -> str | int | None:
        try:
            return decode_image(cell_of(dataset, stored[index], index, image_column), image_range).largest
        except Exception as error:  # whatever a decoder raises, the row cannot be used
            return f'column "{image_column}": the image cannot be read ({describe_error(error)})'

    found = list(in_threads(read, dataset, rows, name, show_progress))
    warning = dark_images([largest for largest in found if not isinstance(largest, str)])
    if warning is not None and rank() == 0:
        logger.warning(f'{name}, column "{image_column}": {warning}')
    return {row: why for row, why in zip(rows, found, strict=True) if isinstance(why, str)}


def dark_images(largest: Sequence[int | None]) -> str | None:
    """What to say of images that have 16 bits and use less than a quarter of their range, by their largest numbers."""
    wide = [number for number in largest if number is not None]
    if not wide or max(wide) >= 2**14:
        return None
    bits = max(max(wide), 1).bit_length()
    return (
        f"the images have 16 bits, but no number above {max(wide):,} of 65,535, so models see them almost black. If "
        f"they hold {bits} bits, set image_range to 0 {2**bits - 1}, or else to the numbers of black and white."
    )


def image_at(dataset: Dataset[Any], index: int, column: str, **options: Any) -> Image.Image:
    """The image of a row, read with the options of [`~conr_hf.data.images.to_image`]."""
    return to_image(cell_of(dataset, undecoded(dataset, [column])[index], index, column), **options)


def undecoded(dataset: Dataset[Any], columns: Sequence[str]) -> Dataset[Any]:
    """
    A data set that does not decode the images of `columns`, so that one too large is refused before it is, and none
    loses what Pillow cannot hold. Its rows are plain, whatever format was set.
    """
    unopened: Any = dataset
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        if dataset.format["type"] is not None:
            unopened = dataset.with_format(None, columns=dataset.format["columns"])
        for column in columns:
            feature = dataset.features.get(column)
            if isinstance(feature, datasets.Image) and feature.mode is None:
                unopened = unopened.cast_column(column, datasets.Image(decode=False))
    return unopened


def cell_of(dataset: Dataset[Any], row: Row, index: int, column: str) -> Any:
    """A cell of an [`undecoded`] row; of the decoded one where it lies in an archive, which `datasets` can open."""
    cell = row[column]
    in_archive = isinstance(cell, dict) and cell["bytes"] is None and "://" in (cell["path"] or "")
    return dataset[index][column] if in_archive else cell


def in_threads(
    read: Callable[[int], T], dataset: Dataset[Any], rows: Sequence[int], name: str, show_progress: bool
) -> Iterator[T]:
    """What `read` gives for each row, in order, in threads only if the data set is known to allow them."""
    threads = isinstance(dataset, datasets.Dataset)  # one of the user's own may hold a file or a database open
    with ThreadPoolExecutor(os.cpu_count() if threads else 1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused instead
        found = pool.map(read, rows) if threads else map(read, rows)
        yield from tqdm(found, f"Reading {name}", len(rows), leave=False, disable=not show_progress)


def _label_rows(dataset: Dataset[Any], columns: Sequence[str]) -> Iterator[Row]:
    plain: datasets.Dataset | datasets.IterableDataset | None = None  # where columns can be read alone
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        plain = dataset.with_format(None)
    elif isinstance(dataset, datasets.IterableDataset) and dataset.column_names is not None:
        plain = dataset
    if plain is not None:
        present = [column for column in [*columns, "labels"] if column in plain.column_names]
        if not all(column in present for column in columns) and "labels" not in present:
            return iter([dict.fromkeys(plain.column_names)])
        dataset = plain.select_columns(present)
    if isinstance(dataset, datasets.Dataset) and plain is not None:
        return iter(dataset)
    if isinstance(dataset, IterableDataset):
        return iter(tqdm(dataset, "Reading labels", leave=False))
    count = len(dataset)  # type: ignore[arg-type]
    return (dataset[index] for index in tqdm(range(count), "Reading labels", leave=False))


def label_error(cell: Any) -> str | None:
    """What keeps a label from being a finite number."""
    if cell is None:
        return "the label is missing"
    if is_map(cell):
        return "the label is a map, not one number"
    if isinstance(cell, np.ndarray | torch.Tensor) and cell.ndim > 2:
        return f"the label has the shape {tuple(cell.shape)}; a map has one number for every pixel, (height, width)"
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return f"{truncate(cell)} is not a number"
    return None if math.isfinite(number) else f"the label is {number}"
