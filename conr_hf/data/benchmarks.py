"""Benchmarks that come with the package, ready to train on without a network."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, DatasetInfo, Features, NamedSplit
from datasets.table import InMemoryTable


@dataclass(frozen=True)
class Benchmark:
    """
    What a benchmark measures, and where it comes from.

    Args:
        name (`str`): The name that [`load_benchmark`] takes.
        target (`str`): What its label is.
        unit (`str`): Unit of the label and of `bin_width`.
        bin_width (`float`): Width of the label bins behind density weights and shots.
        credit (`str`): Credit line, to be shown with the images and results.
        description (`str`): What it is, in a sentence or two.
        license (`str`): Terms of use.
        folder (`str`): Folder with its Parquet files, beside this module.
    """

    name: str
    target: str
    unit: str
    bin_width: float
    credit: str
    description: str
    license: str
    folder: str


BENCHMARKS: dict[str, Benchmark] = {
    "earth-elevation": Benchmark(
        name="earth-elevation",
        target="elevation",
        unit="m",
        bin_width=200.0,
        credit="NASA Earth Observatory, Blue Marble; elevation: GEBCO_08 via NASA Visible Earth",
        description=(
            "Satellite tiles of 32 x 32 pixels with the mean height of the ground in their middle, in metres. Low "
            "ground is common and high ground rare in the training split, as on Earth."
        ),
        license="NASA images are free to use; credit NASA Earth Observatory and NASA Visible Earth.",
        folder="earth_elevation",
    ),
}


def load_benchmark(name: str) -> DatasetDict:
    """
    A benchmark with its training, validation and test splits.

    The Parquet files of the package are read into memory: nothing is downloaded and nothing is written to a cache.

    Args:
        name (`str`): A key of `BENCHMARKS`, for example `"earth-elevation"`: `image` (RGB, 32 x 32 pixels), `label`
            (metres, float32), `latitude` and `longitude` of the tile's centre (degrees, float32).

    Returns:
        `datasets.DatasetDict` with `"train"`, `"validation"` and `"test"`. The `info` of each split holds the
        benchmark's name (`dataset_name`), credit (`citation`), description and licence.

    Raises:
        `ValueError`: For an unknown name.

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
    folder = Path(__file__).parent / benchmark.folder
    return DatasetDict(
        {split: _read(folder / f"{split}.parquet", split, benchmark) for split in ("train", "validation", "test")}
    )


def benchmark_of(dataset: object, labels: np.ndarray) -> Benchmark | None:
    """
    The benchmark that a data set's labels are from, unchanged.

    Args:
        dataset: Any data set.
        labels (`np.ndarray` of shape `(N,)` or `(N, T)`): Its labels.
    """
    if not isinstance(dataset, Dataset) or dataset.info.dataset_name not in BENCHMARKS:
        return None
    benchmark = BENCHMARKS[dataset.info.dataset_name]
    # The name outlives map(): labels in another unit, or another column, are not the benchmark's.
    return benchmark if np.isin(labels, load_benchmark(benchmark.name)["train"]["label"]).all() else None


def _read(path: Path, split: str, benchmark: Benchmark) -> Dataset:
    table = pq.read_table(path)
    info = DatasetInfo(
        description=benchmark.description,
        citation=benchmark.credit,
        license=benchmark.license,
        features=Features.from_arrow_schema(table.schema),
        dataset_name=benchmark.name,
    )
    return Dataset(InMemoryTable(table), info=info, split=NamedSplit(split))
