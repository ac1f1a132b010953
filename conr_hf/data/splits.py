"""Validation and test sets that hold rare labels like common ones, from any labelled data set."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from conr_hf.data.columns import check_column, read_labels
from conr_hf.imbalance import Bins, make_bins
from conr_hf.imbalance.bins import FloatArray, IntArray

SPLITS = ("train", "validation", "test")


def dir_split(
    dataset: datasets.Dataset,
    label: str | Sequence[str],
    *,
    group: str | None = None,
    id_column: str | None = None,
    cap: int = 30,
    share: float = 1 / 3,
    bin_width: float | Sequence[float] | None = None,
    edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
    seed: int = 42,
) -> datasets.DatasetDict:
    """
    Splits a data set so that validation and test hold rare labels like common ones, and training their long tail.

    Of a label bin with n rows, validation and test get `min(floor(n * share), cap)` each, its quota, and training the
    rest. With several label dimensions a row counts in the bin of its rarest coordinate. Labels outside given `edges`
    have a quota of 0.

    With `group` no group is in two splits, and quotas are met as nearly as whole groups allow. All groups start in
    training. They are visited again and again, those with the rarest bins first and in a seeded order otherwise, and
    each is moved where it lowers the sum, over validation and test and all bins, of (rows - quota)^2 / max(quota, 1)
    most; it ends when no group's move lowers it. So a group that carries a bin further above its quota than it was
    below stays out, unless that is outweighed in its other bins. [`split_counts`] reports the result.

    Source: the protocol of AgeDB-DIR (`cap` 30) and IMDB-WIKI-DIR (`cap` 150), [Delving into Deep Imbalanced
    Regression](https://huggingface.co/papers/2102.09554).

    Args:
        dataset (`datasets.Dataset`): All rows.
        label (`str` or a sequence of T `str`): Column of the label, or of each label dimension.
        group (`str`, *optional*): Column of what must not be in two splits: a person, a photograph, a block of a map.
        id_column (`str`, *optional*):
            Column that identifies rows; of an image column, the path. Rows are put in its order first, so that the
            same rows in another order are split in the same way. Unset: rows are taken as they come.
        cap (`int`, *optional*, defaults to 30): The most rows of a bin in validation, and in test.
        share (`float`, *optional*, defaults to 1/3): The largest share of a bin in validation, and in test.
        bin_width (`float` or a sequence of T `float`, *optional*): As in [`~conr_hf.imbalance.make_bins`].
        edges (ascending numbers, or a sequence of T such, *optional*): As in [`~conr_hf.imbalance.make_bins`].
        seed (`int`, *optional*, defaults to 42): The same seed gives the same splits.

    Returns:
        `datasets.DatasetDict` with `"train"`, `"validation"` and `"test"`, their rows in the order of the ids, or as
        they came.

    Raises:
        `ValueError`: For a missing column, a label that is not a finite number, an id that is missing or not unique
            and a missing group (naming the row), for a cap or share out of range, and where a split would be empty.

    Example:
        >>> ages = datasets.Dataset.from_dict({"age": [30] * 300 + [70] * 9})
        >>> {split: len(rows) for split, rows in dir_split(ages, "age").items()}
        {'train': 243, 'validation': 33, 'test': 33}
    """
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}; it must be one datasets.Dataset. Join splits with "
            "datasets.concatenate_datasets."
        )
    if cap < 1:
        raise ValueError(f"cap is {cap}; it must be 1 or more (30 is AgeDB-DIR's).")
    if not 0 < share <= 0.5:
        raise ValueError(f"share is {share}; it must be greater than 0 and at most 0.5 (1/3 is the published one).")
    order = np.arange(len(dataset)) if id_column is None else _by_id(key_cells(dataset, id_column, "id_column"))
    labels = _labels(dataset, label)[order]
    bins = make_bins(labels, bin_width, edges)
    places = _rarest_bins(labels, bins)
    quotas = _quotas(places, bins, cap, share)
    random = np.random.default_rng(seed)
    if group is None:
        split = _split_rows(places, quotas, random)
    else:
        cells = key_cells(dataset, group, "group")
        # Groups as numbers from 0, in the order in which they first appear.
        groups, _ = pd.factorize(np.array(cells, dtype=object)[order])
        split = _split_groups(places, groups, quotas, random)
    for number, name in enumerate(SPLITS):
        if not (split == number).any():
            raise ValueError(_empty(name, len(order), share, group))
    return datasets.DatasetDict({name: dataset.select(order[split == number]) for number, name in enumerate(SPLITS)})


def stratified_folds(labels: npt.ArrayLike | Tensor, bins: Bins, folds: int, seed: int) -> IntArray:
    """
    The fold of each row, `(N,)`, int64, from 0 to `folds` - 1, so that each fold holds the same share of every bin to
    within a row, and the same number of rows to within one. With several label dimensions a row counts in the bin of
    its rarest coordinate. Labels are `(N,)` or `(N, T)`; the same seed gives the same folds.
    """
    places, random = _rarest_bins(labels, bins), np.random.default_rng(seed)
    shuffled = random.permutation(len(places))
    by_bin = shuffled[np.argsort(places[shuffled], kind="stable")]
    found = np.empty(len(places), dtype=np.int64)
    found[by_bin] = (np.arange(len(places)) + random.integers(folds)) % folds
    return found


class BinCount(NamedTuple):
    """How the rows of one bin of a label dimension, between `low` and `high` in label units, were split."""

    dimension: int
    low: float
    high: float
    quota: int  # how many of its rows validation and test should hold each
    rows: dict[str, int]  # how many every split holds


def split_counts(
    splits: datasets.DatasetDict,
    label: str | Sequence[str],
    *,
    cap: int = 30,
    share: float = 1 / 3,
    bin_width: float | Sequence[float] | None = None,
    edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
) -> list[BinCount]:
    """
    Every bin that holds rows, its quota and what the splits hold of it; the arguments are those of [`dir_split`].

    Example:
        >>> ages = datasets.Dataset.from_dict({"age": [30] * 300 + [70] * 9})
        >>> split_counts(dir_split(ages, "age"), "age")[1]
        BinCount(dimension=0, low=70.0, high=71.0, quota=3, rows={'train': 3, 'validation': 3, 'test': 3})
    """
    parts = {name: _labels(rows, label) for name, rows in splits.items()}
    labels = np.concatenate(list(parts.values()))
    bins = make_bins(labels, bin_width, edges)
    places = _rarest_bins(labels, bins)
    quotas = _quotas(places, bins, cap, share)
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    by_split = dict(zip(parts, np.split(places, ends), strict=True))
    counts = {name: np.bincount(part, minlength=len(quotas)) for name, part in by_split.items()}
    first = _first_places(bins)
    found = []
    for place in np.unique(places[places > 0]):
        dimension = int(np.searchsorted(first, place, side="right")) - 1
        low, high = bins.edges[dimension][place - first[dimension] :][:2]
        rows = {name: int(of_bins[place]) for name, of_bins in counts.items()}
        found.append(BinCount(dimension, float(low), float(high), int(quotas[place]), rows))
    return found


def is_balanced(counts: Sequence[BinCount], cap: int) -> bool:
    """
    Whether validation and test hold rare labels like common ones, as far as these can: at least half of their quotas
    are those of bins where the cap acts, and which are therefore held equally often. Where it acts nowhere, each bin
    gives its share, and validation and test have the long tail of the data.
    """
    return 2 * sum(count.quota for count in counts if count.quota == cap) >= sum(count.quota for count in counts)


def advised_cap(counts: Sequence[BinCount], share: float) -> int | None:
    """The greatest cap that balances validation and test and leaves training half of the rows; `None` without one."""
    sizes = np.array([sum(count.rows.values()) for count in counts])
    uncapped = np.floor(sizes * share + 1e-9).astype(np.int64)
    for cap in range(int(uncapped.max(initial=0)), 0, -1):
        quotas = np.minimum(uncapped, cap)
        if 4 * quotas.sum() <= sizes.sum() and 2 * quotas[quotas == cap].sum() >= quotas.sum():
            return cap
    return None


def _labels(dataset: datasets.Dataset, label: str | Sequence[str]) -> FloatArray:
    columns = [label] if isinstance(label, str) else list(label)
    for column in columns:
        check_column(column, dataset.column_names, "dataset", "label")
    labels, wrong = read_labels(dataset, columns, "dataset")
    if wrong:
        row = min(wrong)
        more = f" {len(wrong) - 1:,} more labels cannot be used." if len(wrong) > 1 else ""
        raise ValueError(f"dataset, row {row:,}, {wrong[row]}.{more} Correct it, or leave the row out.")
    return labels


def key_cells(dataset: datasets.Dataset, column: str, option: str) -> list[Any]:
    """The cells of a column, named by `option`, that identifies rows or groups; of an image column, the paths."""
    check_column(column, dataset.column_names, "dataset", option)
    rows = dataset.with_format(None).select_columns(column)
    if isinstance(rows.features[column], datasets.Image):
        paths = rows.cast_column(column, datasets.Image(decode=False))[column]
        cells = [None if image is None else image["path"] for image in paths]
    elif isinstance(rows.features[column], datasets.Value | datasets.ClassLabel):
        cells = list(rows[column])
    else:
        raise ValueError(f'Column "{column}" holds no text or numbers. Name another column as {option}.')
    for row, cell in enumerate(cells):
        if cell is None or cell != cell:  # NaN
            raise ValueError(f'dataset, row {row:,}: column "{column}" ({option}) is empty. Fill it, or drop the row.')
    return cells


def _by_id(ids: list[Any]) -> IntArray:
    order = sorted(range(len(ids)), key=ids.__getitem__)
    for first, second in itertools.pairwise(order):
        if ids[first] == ids[second]:
            raise ValueError(
                f'dataset, rows {first:,} and {second:,} have the same id "{ids[first]}"; ids must be unique. Name '
                "another id_column, or drop one of the rows."
            )
    return np.array(order, dtype=np.int64)


def _rarest_bins(labels: npt.ArrayLike | Tensor, bins: Bins) -> IntArray:
    """The bin of each row's rarest coordinate, `(N,)`: numbered from 1 through all dimensions, 0 outside the edges."""
    index = bins.index(labels)  # (N, T)
    rarest = bins.train_counts_of(labels).argmin(axis=1)
    place = index[np.arange(len(index)), rarest]
    return np.where(place < 0, 0, place + _first_places(bins)[rarest])


def _first_places(bins: Bins) -> IntArray:
    """The number of each dimension's first bin, and last the number of places, `(T + 1,)`."""
    return np.cumsum([1, *(len(counts) for counts in bins.train_counts)])


def _quotas(places: IntArray, bins: Bins, cap: int, share: float) -> IntArray:
    sizes = np.bincount(places, minlength=_first_places(bins)[-1])
    # 0.29 * 100 is 28.999999999999996.
    quotas = np.minimum(np.floor(sizes * share + 1e-9), cap).astype(np.int64)
    quotas[0] = 0
    return quotas


def _split_rows(places: IntArray, quotas: IntArray, random: np.random.Generator) -> IntArray:
    shuffled = random.permutation(len(places))
    by_bin = shuffled[np.argsort(places[shuffled], kind="stable")]
    sorted_places = places[by_bin]
    rank = np.arange(len(places)) - np.searchsorted(sorted_places, sorted_places)
    quota = quotas[sorted_places]
    split = np.zeros(len(places), dtype=np.int64)
    split[by_bin] = np.where(rank < quota, 1, np.where(rank < 2 * quota, 2, 0))
    return split


def _split_groups(places: IntArray, groups: IntArray, quotas: IntArray, random: np.random.Generator) -> IntArray:
    (of_group, bins), counts = np.unique(np.stack([groups, places]), axis=1, return_counts=True)
    starts = np.flatnonzero(np.diff(of_group)) + 1
    holdings = list(zip(np.split(bins, starts), np.split(counts, starts), strict=True))
    sizes = np.bincount(places, minlength=len(quotas))
    rarest = [sizes[of_bins].min() for of_bins, _ in holdings]
    visits = sorted(random.permutation(len(holdings)).tolist(), key=rarest.__getitem__)

    weights = 1 / np.maximum(quotas, 1)
    held = np.zeros((2, len(quotas)), dtype=np.int64)  # of validation and test
    home = np.zeros(len(holdings), dtype=np.int64)
    moved = True
    while moved:
        moved = False
        for number in visits:
            of_bins, rows = holdings[number]
            old = home[number]
            if old > 0:
                held[old - 1, of_bins] -= rows
            above = held[:, of_bins] - quotas[of_bins]  # (2, bins of the group)
            change = [0.0, *((2 * above + rows) * rows * weights[of_bins]).sum(axis=1)]
            best = int(np.argmin(change))
            # More than rounding: the sum falls at every move, so the moves come to an end.
            new = best if change[best] < change[old] - 1e-9 else old
            if new > 0:
                held[new - 1, of_bins] += rows
            moved |= bool(new != old)
            home[number] = new
    split: IntArray = home[groups]
    return split


def _empty(split: str, rows: int, share: float, group: str | None) -> str:
    if split == "train":
        return f'Of {rows:,} rows none is left for "train". Set a smaller share or cap.'
    enough = math.ceil(1 / share - 1e-9)
    whole = f', and groups of "{group}" that are no larger than that' if group is not None else ""
    return (
        f'No row of {rows:,} falls to "{split}": at share {share:.3g} that takes a bin with {enough} rows '
        f"or more{whole}. Set a greater bin_width."
    )
