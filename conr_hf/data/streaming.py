"""Data sets that are read from their first row to their last: remote ones, or those too large for the memory."""

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from conr_hf.data.columns import label_error
from conr_hf.data.local import check_path, choose_configuration, load_errors, name_splits
from conr_hf.data.tables import read_table
from conr_hf.imbalance import Bins

_NO_STREAM = "which are read one by one as they are needed: leave streaming out"


def load_stream(
    path: str, image_column: str = "image", revision: str | None = None, *, data_config: str | None = None
) -> dict[str, Any]:
    """
    Opens a data set whose training split is read as a stream: of that no more than a row is read in advance.

    The path is a folder of Parquet files, named by their split; a Parquet file; or an id on the Hub, of a branch, tag
    or commit; `data_config` is one of its configurations, where it has several. The files themselves hold the images.
    Returns `"train"`, a `datasets.IterableDataset` in the order of
    the files (see its `shuffle`), with images as they are stored; and the other splits, a `datasets.Dataset` each,
    read into memory.
    """
    location = Path(path)
    if location.is_dir() and not any(location.rglob("*.parquet")):
        raise ValueError(f'data "{path}" holds no Parquet file but images in files of their own, {_NO_STREAM}.')
    if location.is_file() and location.suffix.lower() != ".parquet":
        raise ValueError(
            f'data "{path}" is a table of paths, {_NO_STREAM}. Streams are made of Parquet files or a data set on '
            "the Hub."
        )
    check_path(path)
    with load_errors(path):
        opened = _open(path, revision, data_config)
        if len(opened) == 1 and "split" in (next(iter(opened.values())).column_names or []):
            raise ValueError(
                "its rows name their split in a column, by which a stream cannot be divided. Save each split in a "
                "file of its own (train.parquet, validation.parquet, test.parquet), or leave streaming out"
            )
        splits = {name: _with_images(rows, image_column) for name, rows in name_splits(opened).items()}
        return {name: rows if name == "train" else materialize(rows) for name, rows in splits.items()}


def label_stream(
    path: str, columns: list[str], revision: str | None = None, *, data_config: str | None = None
) -> datasets.IterableDataset:
    """The label columns of a training split, of Parquet files without reading what else they hold."""
    with load_errors(path):
        return name_splits(_open(path, revision, data_config, columns))["train"].select_columns(columns)


def _open(
    path: str, revision: str | None, data_config: str | None, columns: list[str] | None = None
) -> datasets.IterableDatasetDict:
    """The splits of a data set, of Parquet files with these columns alone, which no other is read for."""
    only: dict[str, Any] = {} if columns is None else {"columns": columns}
    location = Path(path)
    if location.is_file():
        return datasets.load_dataset("parquet", data_files=path, streaming=True, **only)
    if location.is_dir() and choose_configuration(location, data_config) is None:
        return datasets.load_dataset("parquet", data_dir=path, streaming=True, **only)
    builder = datasets.load_dataset_builder(path, data_config, revision=revision)
    if isinstance(builder, Json):
        raise ValueError(
            "its files are JSON, in which a stream would round numbers and read some texts as numbers: leave "
            "streaming out, or save them as Parquet"
        )
    only = only if isinstance(builder, Parquet) else {}
    return datasets.load_dataset(path, data_config, revision=revision, streaming=True, **only)


def _with_images(rows: datasets.IterableDataset, column: str) -> datasets.IterableDataset:
    """The images as they are stored, so that one that is not needed is not decoded."""
    feature = (rows.features or {}).get(column)
    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view"):
        raise ValueError(f'its column "{column}" holds paths, {_NO_STREAM}')
    if feature is None:
        return rows
    stored = rows.cast_column(column, datasets.Image(decode=False))
    for row in stored.take(1):
        _check_stored(row, column)
    return stored.map(_check_stored, fn_kwargs={"column": column}, features=stored.features)


def _check_stored(row: dict[str, Any], column: str) -> dict[str, Any]:
    """The row, whose image must be in it or elsewhere on the Hub."""
    cell = row[column]
    if cell is not None and cell["bytes"] is None and "://" not in (cell["path"] or "://"):
        raise ValueError(f'its column "{column}" holds paths ("{cell["path"]}"), {_NO_STREAM}')
    return row


def materialize(stream: datasets.IterableDataset) -> datasets.Dataset:
    """All rows of a stream, in memory; images that were left as they are stored are decoded on access."""
    rows = datasets.Dataset.from_list(list(stream), features=datasets.Features(stream.features))
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image())
    return rows


def read_histogram(file: str) -> Bins:
    """
    Bins and counts of training labels from a CSV file with columns `low`, `high` and `count`, one row a bin; where a
    bin does not begin at the end of the one before it, no label lies between them. A refusal names the row.
    """
    if Path(file).suffix != ".csv":
        raise ValueError(f'label_histogram is "{file}"; it must be a CSV file with columns low, high and count.')
    with load_errors(file):
        rows = read_table(Path(file))
        for column in ("low", "high", "count"):
            if column not in rows.column_names:
                raise ValueError(f'it has no column "{column}"; its columns are {", ".join(rows.column_names)}')
        edges: list[float] = []
        counts: list[int] = []
        for row, (low, high, count) in enumerate(zip(rows["low"], rows["high"], rows["count"], strict=True)):
            numbers = all(label_error(cell) is None for cell in (low, high, count))
            if not numbers or float(count) != int(count) or count < 0:
                raise ValueError(
                    f"row {row}: low is {low}, high {high} and count {count}; they must be numbers, and count a whole "
                    "one from 0 on"
                )
            follows = bool(edges) and math.isclose(low, edges[-1], rel_tol=1e-9)
            if not low < high or (edges and low < edges[-1] and not follows):
                raise ValueError(f"row {row}: the bin {low} .. {high} must ascend, after the bin before it")
            if edges and not follows:
                counts.append(0)
            edges += [float(high)] if follows else [float(low), float(high)]
            counts.append(int(count))
        if not any(counts):
            raise ValueError("it counts no label")
        return Bins((np.array(edges),), (np.array(counts),))
