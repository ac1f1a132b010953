"""`load_benchmark`: benchmarks that come with the package, and the field's from where the user has them."""

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, NamedSplit
from datasets.table import InMemoryTable

from conr_hf.data.benchmarks.ellipses import TOP, EllipsesConfig, draw_ellipses
from conr_hf.data.benchmarks.eyes import EyesConfig, draw_eyes
from conr_hf.data.benchmarks.nyud2 import load_nyud2, rooms_folder
from conr_hf.data.benchmarks.registry import BENCHMARKS, Benchmark
from conr_hf.data.benchmarks.synthetic import read_settings
from conr_hf.data.image_paths import with_images
from conr_hf.data.images import image_files
from conr_hf.data.local import SPLITS, load_errors, load_local, split_by_column
from conr_hf.data.streaming import load_stream
from conr_hf.data.tables import TABLES, is_table, read_table

MOST_DEPTH = 10.001  # metres
ALL_SPLITS = ("train", "validation", "test")


def load_benchmark(
    name: str,
    source: str | os.PathLike[str] | None = None,
    *,
    split_file: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    require_splits: bool = True,
    streaming: bool = False,
) -> DatasetDict:
    """
    A benchmark with its training, validation and test splits.

    `"earth-elevation"` and `"earth-elevation-map"` come with the package: they are read into memory, nothing is
    downloaded and nothing is written to a cache. Two are drawn, as `source` says: `"ellipses"` (`"imbalance=100,
    dimensions=1, rows=4000, seed=0"`) and `"eyes"` (`"imbalance=100, rows=4000, seed=0, size=32"`), with the columns
    `pitch` and `yaw`. The others are read from where the user has them, since we know no public copy of them with the
    published splits; without `source` the error says what to download from where, and the licence.

    Args:
        name (`str`): A key of `BENCHMARKS`, for example `"earth-elevation"`: `image` (RGB, 32 x 32 pixels), `label`
            (metres, float32), `latitude` and `longitude` of the tile's centre (degrees, float32). In
            `"earth-elevation-map"` the images have 64 x 64 pixels, and `label` is a map: 32 x 32 numbers, NaN over
            water.
        source (`str` or `os.PathLike`, *optional*):
            A folder with the images and the published file of splits (`agedb.csv`: age,path,split); for UTKFace a
            folder of images alone, whose names begin with the age; for nyud2-dir the folder of `nyu2_train.csv` (see
            [`load_nyud2`] for what it becomes, and where its validation split is from); or
            whatever [`~conr_hf.data.local.load_local`] takes: a folder with metadata, of Parquet files, a table, or an
            id on the Hub.
        split_file (`str` or `os.PathLike`, *optional*):
            A table of labels and splits that lies elsewhere; its paths are those of images in `source`.
        columns (`Mapping[str, str]`, *optional*):
            Columns of the source and what they are: `{"photo": "image", "years": "label"}`. Those of the published
            files are known.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        require_splits (`bool`, *optional*, defaults to `True`):
            `False` takes data without splits too, all rows as `"train"`, from which splits can be made.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the training split as a stream, of Parquet files or the Hub; see
            [`~conr_hf.data.streaming.load_stream`].

    Returns:
        `datasets.DatasetDict` with `"train"`, `"validation"` and `"test"`, with columns `image` and `label` (of
        mpiigaze-dir `pitch` and `yaw`) and whatever else the source has. The `info` of each split holds the
        benchmark's name (`dataset_name`), credit (`citation`), description and licence.

    Raises:
        `ValueError`: For an unknown name, data that are not there or cannot be read, a missing column or split.

    Example:
        >>> tiles = load_benchmark("earth-elevation")
        >>> {split: len(rows) for split, rows in tiles.items()}
        {'train': 5817, 'validation': 159, 'test': 400}
        >>> tiles["test"][0]["image"].size
        (32, 32)
    """
    if name not in BENCHMARKS:
        nearest = difflib.get_close_matches(str(name).lower(), BENCHMARKS, n=1, cutoff=0.0)[0]
        known = ", ".join(BENCHMARKS)
        raise ValueError(f'There is no benchmark "{name}". Known: {known}. Did you mean "{nearest}"?')
    benchmark = BENCHMARKS[name]
    if benchmark.folder is not None:
        if streaming:
            raise ValueError(f"{name} comes with the package and is read into memory; leave streaming out.")
        if source is not None:
            raise ValueError(f'{name} comes with the package; leave its source "{source}" out.')
        folder = Path(__file__).parent / benchmark.folder
        tables = {split: InMemoryTable(pq.read_table(folder / f"{split}.parquet")) for split in ALL_SPLITS}
        splits: dict[str, Any] = {split: Dataset(table, split=NamedSplit(split)) for split, table in tables.items()}
    elif benchmark.drawn:
        if streaming:
            raise ValueError(f"{name} are drawn into memory; leave streaming out.")
        if name == "eyes":
            splits = draw_eyes(read_settings(name, str(source or ""), EyesConfig))
        else:
            splits = draw_ellipses(read_settings(name, str(source or ""), EllipsesConfig))
    else:
        if benchmark.maps and streaming:
            raise ValueError(f"{name} has maps as its labels, which are not streamed; leave streaming out.")
        if source is None:
            raise ValueError(f"{name} does not come with the package. {_how_to_obtain(benchmark)}")
        splits = _rows(benchmark, str(source), split_file, columns or {}, revision, streaming)
        missing = [split for split in ALL_SPLITS if split not in splits]
        if missing and require_splits:
            raise ValueError(
                f'{name}: the data at "{source}" have no split {" and no ".join(missing)}. Name the split of each row '
                f"in a column split ({', '.join(ALL_SPLITS)}), or make balanced splits with conr-hf split and load "
                "those."
            )
    theirs = {ours: f" or {their}" for their, ours in benchmark.columns.items()}
    for rows in splits.values():
        for column in ("image", *benchmark.label_columns):
            if column not in rows.column_names:
                raise ValueError(
                    f'{name}: the data at "{source}" have no column {column}{theirs.get(column, "")}; their columns '
                    f'are {", ".join(rows.column_names)}. Name it with columns={{"theirs": "{column}"}}.'
                )
        rows.info.dataset_name, rows.info.description = name, benchmark.description
        rows.info.citation, rows.info.license = benchmark.credit, benchmark.license
    return DatasetDict(splits)


def benchmark_of(dataset: object, labels: np.ndarray) -> Benchmark | None:
    """
    The benchmark that a data set's labels are from, unchanged.

    Args:
        dataset: Any data set.
        labels (`np.ndarray` of shape `(N,)` or `(N, T)`): Its labels; of maps those of pixels.
    """
    if not isinstance(dataset, Dataset | datasets.IterableDataset) or dataset.info.dataset_name not in BENCHMARKS:
        return None
    benchmark = BENCHMARKS[dataset.info.dataset_name]
    # The name outlives map(): labels in another unit, or another column, are not the benchmark's.
    if benchmark.folder is not None:
        rows = load_benchmark(benchmark.name)["train"].select_columns("label")
        known = np.array(rows.with_format("numpy")[:]["label"], np.float32)
        own = np.isin(labels, np.unique(known[~np.isnan(known)]))
    elif benchmark.name == "ellipses":
        own = (labels >= 0) & (labels <= TOP)
    elif benchmark.maps:
        own = (labels > 0) & (labels <= MOST_DEPTH)
    elif benchmark.unit == "years":
        own = np.isin(labels, np.arange(201))
    else:
        own = np.abs(labels) <= math.pi
    same_columns = labels.reshape(len(labels), -1).shape[1] == len(benchmark.label_columns)
    return benchmark if same_columns and own.all() else None


def _how_to_obtain(benchmark: Benchmark) -> str:
    return (
        f'{benchmark.obtain} Name that folder: load_benchmark("{benchmark.name}", FOLDER), or --benchmark_source '
        f"FOLDER. {benchmark.license}"
    )


def _rows(
    benchmark: Benchmark,
    source: str,
    split_file: str | os.PathLike[str] | None,
    columns: Mapping[str, str],
    revision: str | None,
    streaming: bool,
) -> dict[str, Any]:
    """The rows of each split there is, their columns named as ours and their images found."""
    location = Path(source)
    rooms = rooms_folder(location) if benchmark.name == "nyud2-dir" else None
    if rooms is not None:
        with load_errors(source):
            return load_nyud2(rooms)
    table = None if streaming else _table(benchmark, location, split_file)
    if table is not None:
        with load_errors(str(table)):
            rows = _renamed(read_table(table), benchmark, columns)
            if benchmark.name == "utkface" and "image" in rows.column_names and "label" not in rows.column_names:
                rows = rows.add_column("label", [_age(name) for name in rows["image"]])
            return dict(split_by_column(with_images(rows, "image", _root(rows, location))))
    by_name = benchmark.name == "utkface" and location.is_dir() and not streaming
    if by_name and not any(is_table(file) for file in location.rglob("*")):
        with load_errors(source):
            return dict(split_by_column(_named_by_age(location)))
    their_image = next((theirs for theirs, ours in columns.items() if ours == "image"), "image")
    try:
        loaded = (load_stream if streaming else load_local)(source, their_image, revision)
    except ValueError as error:
        raise ValueError(f"{error} {_how_to_obtain(benchmark)}") from error
    renamed = {split: _renamed(rows, benchmark, columns) for split, rows in loaded.items()}
    return {
        split: rows if isinstance(rows.features.get("image"), datasets.Image) else with_images(rows, "image", location)
        for split, rows in renamed.items()
    }


def _table(benchmark: Benchmark, location: Path, split_file: str | os.PathLike[str] | None) -> Path | None:
    """The table of images, labels and splits, if the source has one."""
    if split_file is not None:
        table = Path(split_file)
        if not is_table(table):
            raise ValueError(f'split_file "{split_file}" is no table this reads; it must end in {", ".join(TABLES)}.')
        return table
    if location.is_file() and is_table(location):
        return location
    published = location / str(benchmark.split_file)
    return published if published.is_file() else None


def _root(rows: Dataset, location: Path) -> Path:
    """The folder that paths are relative to: also where the table lies among the images, in the folder they name."""
    folder = location if location.is_dir() else location.parent
    feature = rows.features.get("image")
    first = rows[0]["image"] if isinstance(feature, datasets.Value) else None
    beside = isinstance(first, str) and not (folder / first).exists() and (folder.parent / first).exists()
    return folder.parent if beside else folder


def _renamed(rows: Dataset, benchmark: Benchmark, columns: Mapping[str, str]) -> Dataset:
    for theirs, ours in columns.items():
        if theirs not in rows.column_names:
            raise ValueError(f'there is no column "{theirs}"; the columns are {", ".join(rows.column_names)}.')
        if ours != theirs:
            rows = rows.remove_columns([ours] if ours in rows.column_names else []).rename_column(theirs, ours)
    for theirs, ours in benchmark.columns.items():
        if theirs in rows.column_names and ours not in rows.column_names:
            rows = rows.rename_column(theirs, ours)
    return rows


def _named_by_age(folder: Path) -> Dataset:
    """UTKFace as it comes: images whose names begin with the age, perhaps in a folder for each split."""
    files = image_files(folder.rglob("*"))
    if not files:
        raise ValueError("it holds no image")
    rows = Dataset.from_dict({"image": [str(file) for file in files], "label": [_age(file.name) for file in files]})
    splits = [SPLITS.get(file.relative_to(folder).parts[0].lower()) for file in files]
    if all(splits):
        rows = rows.add_column("split", splits)
    return rows.cast_column("image", datasets.Image())


def _age(name: str) -> int:
    age = re.match(r"\d+(?=_)", Path(name).name)
    if age is None:
        raise ValueError(f'the name "{name}" does not begin with an age, as 26_0_1_20170116174525125.jpg does')
    return int(age.group())
