"""What is in a data set: the distribution of its labels, and its problems."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from conr_hf.data.checked_images import CheckedImage, CheckedImages
from conr_hf.data.columns import (
    cell_of,
    check_column,
    dark_images,
    has_labels,
    label_names,
    label_values,
    read_labels,
    undecoded,
)
from conr_hf.data.config import DataConfig
from conr_hf.data.images import decode_image, describe_error
from conr_hf.data.local import unused_splits
from conr_hf.data.map_statistics import ReadMap, has_maps, read_maps, subsample_evenly, zeros_without_meaning
from conr_hf.data.splits import SPLITS
from conr_hf.data.threads import in_threads
from conr_hf.imbalance import Bins, density_weights, make_bins
from conr_hf.imbalance.bins import FloatArray, suggest_bin_width
from conr_hf.metrics import THRESHOLDS, shot_masks

OUTLIER_Z = 6.0
PROBLEMS = (
    *("unreadable_images", "bad_labels", "duplicates_across", "duplicates_within"),
    *("groups_across", "rows_without_group", "outliers", "unused_splits"),
)


def inspect(
    data: Mapping[str, datasets.Dataset],
    *,
    label_columns: Sequence[str] = ("label",),
    image_column: str = "image",
    group_column: str | None = None,
    bin_width: float | Sequence[float] | None = None,
    map_scale: float = 1.0,
    map_invalid: float | None = None,
    image_range: Sequence[float] | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Reads every label and every image of a data set once, in threads, and reports what it found.

    Rows are counted from 0 in each split. Shots and outliers go by the training labels: those of the split `"train"`,
    or of the first one if there is none. Only duplicates that are equal pixel for pixel, once decoded, are found.
    `group_column` holds what should not be in two splits: a person, a photograph. Without `bin_width`, in label units,
    bins are as wide as [`~conr_hf.imbalance.bins.suggest_bin_width`] has them, as in training. `map_scale`,
    `map_invalid` and `image_range` are as in [`~conr_hf.data.config.DataConfig`].

    Where the labels are maps, labels, bins and shots are those of labelled pixels, of up to 10 million in each split;
    thresholds are 20 and 100 times the pixels of a map, and outliers are not looked for.

    Returns:
        `dict`, ready for JSON. In label units where it is about labels:

        - `training_split`, `label_columns`;
        - `splits`: of each split its `rows`, its `shots` (rows by shot), and of each label column `n`, `min`, `max`,
          `mean`, `std`, `median` and whether all are `whole` numbers;
        - `bins`: as [`~conr_hf.imbalance.Bins`] saves them, with `counts` of each split and label dimension;
        - `imbalance_ratio`: of each label dimension, training labels of the fullest bin per one of the emptiest that
          holds any; `few_share`, the share of training labels with few shots;
        - `suggested`: `bin_width`, `conr_window`, `conr_push_scale` and the smallest and largest `weights` of
          `sqrt_inverse`;
        - `images`: how many there are of each of the `sizes` and `modes`; and `notice`, what to say of those that use
          little of their 16 bits, or `None`;
        - `maps`, of labels that are maps: how many there are of each of the `sizes`, `valid_share`, the mean share of
          labelled pixels, and `notice`, what to say of labels that are 0, or `None`;
        - `problems`, lists: `unreadable_images` and `bad_labels` (split, row, reason), `duplicates_across` and
          `duplicates_within` splits (each a list of split and row), `groups_across` (group, rows by split),
          `rows_without_group`, `outliers` (split, row, column, label, robust z: the distance from the median over
          1.4826 times the median of such distances, if above 6), and `unused_splits` beside one to train on (split,
          rows: how many), whose names mean nothing here.

        A label column that holds T numbers is T label columns here, `label_0` and so on. Splits without any label are
        no problem; they have no figures.

        What goes by training labels is absent if none is a number.
    """
    columns = list(label_columns)
    data = {split: data[split] for split in sorted(data, key=[*SPLITS, *data].index)}
    training = "train" if "train" in data else next(iter(data))
    known = data[training].column_names
    labelled = [split for split, rows in data.items() if split == training or has_labels(rows, columns, split, known)]
    for split, rows in data.items():
        _check(rows, f'split "{split}"', columns if split in labelled else [], image_column, group_column)
    if not any(len(rows) for rows in data.values()):
        raise ValueError("The data has no rows.")
    labels: dict[str, FloatArray] = {}
    problems: dict[str, list[Any]] = {kind: [] for kind in PROBLEMS}
    problems["unused_splits"] = [{"split": split, "rows": count} for split, count in unused_splits(data).items()]
    settings = DataConfig(
        columns,
        map_scale=map_scale,
        map_invalid=map_invalid,
        image_range=None if image_range is None else list(image_range),
    )
    settings.check_data("label")
    maps: dict[str, list[ReadMap]] = {}
    for split in labelled:
        rows, name = data[split], f'split "{split}"'
        if len(rows) and has_maps(rows, columns, name):
            labels[split], maps[split], wrong = _read_maps(rows, name, settings, show_progress)
        else:
            read, wrong = read_labels(rows, columns, name)
            labels[split] = read[:, None] if read.ndim == 1 else read  # (N, T)
        problems["bad_labels"] += [{"split": split, "row": row, "reason": wrong[row]} for row in sorted(wrong)]
    width = labels[training].shape[1]
    labels = {split: labels.get(split, np.full((len(rows), width), np.nan)) for split, rows in data.items()}
    for split, values in labels.items():
        if values.shape[1] != width:
            raise ValueError(
                f'Labels of split "{training}" have {width} numbers, of split "{split}" {values.shape[1]}.'
            )
    columns = label_names(columns, width)
    numbers = {split: values[np.isfinite(values).all(axis=1)] for split, values in labels.items()}
    found: dict[str, Any] = {
        "training_split": training,
        "label_columns": columns,
        "splits": {
            split: {"rows": len(data[split]), "labels": _label_figures(numbers[split], columns)} for split in labels
        },
    }
    if len(numbers[training]):
        few, many = THRESHOLDS
        pixels = len(numbers[training]) / len(maps[training]) if training in maps else 1.0
        found |= _density(numbers, training, bin_width, (few * pixels, many * pixels), found["splits"])
        if not maps:
            problems["outliers"] = _outliers(labels, numbers[training], columns)
    if maps:
        found["maps"] = _map_figures(maps, zeros_without_meaning(numbers[training][:, 0], map_invalid))
    pictures = {
        split: _read_images(rows, image_column, f"images of {split}", image_range, show_progress)
        for split, rows in data.items()
    }
    found["images"] = _image_figures(pictures, problems)
    if group_column is not None:
        _check_groups(data, group_column, problems)
    return {**found, "problems": problems}


class _Picture(NamedTuple):
    size: str
    mode: str
    digest: bytes
    largest: int | None  # number, of 16 bits


def _check(
    rows: datasets.Dataset, name: str, label_columns: list[str], image_column: str, group_column: str | None
) -> None:
    if label_columns:
        label_values(dict.fromkeys(rows.column_names), label_columns, name)
    for option, column in (("image_column", image_column), ("group_column", group_column)):
        if column is not None:
            check_column(column, rows.column_names, name, option)


def _label_figures(labels: FloatArray, columns: list[str]) -> dict[str, Any]:
    if len(labels) == 0:
        return {}
    found: dict[str, Any] = {}
    for column, values in zip(columns, labels.T, strict=True):
        figures = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()}
        figures = {name: float(figure) for name, figure in (*figures.items(), ("median", np.median(values)))}
        found[column] = {"n": len(values), **figures, "whole": bool((values == np.rint(values)).all())}
    return found


def _density(
    known: dict[str, FloatArray],
    training: str,
    bin_width: float | Sequence[float] | None,
    thresholds: tuple[float, float],
    splits: dict[str, Any],
) -> dict[str, Any]:
    """What follows from the bins of the training labels; the shots of every split are put into `splits`."""
    suggested = [suggest_bin_width(values) for values in known[training].T]
    bins = make_bins(known[training], suggested if bin_width is None else bin_width, thresholds=thresholds)
    for split, labels in known.items():
        masks = shot_masks(bins.train_count_of(labels), thresholds)
        splits[split]["shots"] = {shot: int(mask.sum()) for shot, mask in masks.items()}
    label_range = float(np.ptp(known[training], axis=0).mean())
    weights = density_weights(known[training], bins, "sqrt_inverse")
    return {
        "bins": {**bins.to_dict(), "counts": {split: _bin_counts(labels, bins) for split, labels in known.items()}},
        "imbalance_ratio": [float(counts.max() / counts[counts > 0].min()) for counts in bins.train_counts],
        "few_share": splits[training]["shots"]["few"] / len(known[training]),
        "thresholds": list(thresholds),
        "suggested": {
            "bin_width": suggested,
            "conr_window": 0.01 * label_range,  # as ConRConfig derives both
            "conr_push_scale": 1 / label_range if label_range > 0 else 0.0,
            "weights": {"min": float(weights.min()), "max": float(weights.max())},
        },
    }


def _bin_counts(labels: FloatArray, bins: Bins) -> list[list[int]]:
    columns = zip(bins.index(labels).T, bins.train_counts, strict=True)
    return [np.bincount(index[index >= 0], minlength=len(counts)).tolist() for index, counts in columns]


def _outliers(labels: dict[str, FloatArray], train: FloatArray, columns: list[str]) -> list[dict[str, Any]]:
    median = np.median(train, axis=0)
    spread = 1.4826 * np.median(np.abs(train - median), axis=0)
    found = []
    for split, values in labels.items():
        # Where more than half of the labels are equal the spread is 0, and there are no outliers.
        z = np.divide(values - median, spread, out=np.zeros_like(values), where=spread > 0)
        for row, t in np.argwhere(np.abs(z) > OUTLIER_Z):
            place = {"split": split, "row": int(row), "column": columns[t]}
            found.append({**place, "label": float(values[row, t]), "robust_z": float(z[row, t])})
    return sorted(found, key=lambda outlier: -abs(outlier["robust_z"]))


def _read_maps(
    rows: datasets.Dataset, name: str, settings: DataConfig, show_progress: bool
) -> tuple[FloatArray, list[ReadMap], dict[int, str]]:
    """Labels of pixels, `(P, 1)`, the maps they are from, and why others cannot be read, by row."""
    rows = rows.with_format(None).select_columns(settings.label_columns)
    read = read_maps(rows, range(len(rows)), name, settings, with_images=False, show_progress=show_progress)
    maps = {row: one for row, one in read.items() if isinstance(one, ReadMap)}
    kept = list(subsample_evenly(maps, {row: one.valid for row, one in maps.items()}).values())
    values = np.concatenate([np.empty(0), *(one.values for one in kept)])
    return values[:, None], kept, {row: one for row, one in read.items() if isinstance(one, str)}


def _map_figures(maps: dict[str, list[ReadMap]], notice: str | None) -> dict[str, Any]:
    every = [one for of_split in maps.values() for one in of_split]
    sizes = Counter(f"{width} x {height}" for height, width in (one.size for one in every))
    shares = [one.valid / (one.size[0] * one.size[1]) for one in every]
    return {
        "sizes": dict(sizes.most_common()),
        "valid_share": float(np.mean(shares)) if shares else 0.0,
        "notice": notice,
    }


def _read_images(
    rows: datasets.Dataset, column: str, name: str, image_range: Sequence[float] | None, show_progress: bool
) -> list[_Picture | str]:
    """Every image, or why it cannot be read. Training need not check again those that can."""
    rows = rows.with_format(None).select_columns(column)
    stored = undecoded(rows, [column])
    every = range(len(rows))
    checked = CheckedImages(stored, column, every, image_range, f"Looking up {name}", show_progress)
    good: dict[int, CheckedImage] = {}

    def read(index: int) -> _Picture | str:
        try:
            cell = cell_of(rows, stored[index], index, column)
            image, largest = decode_image(cell, image_range)
            mode = _mode(cell, image)
        except Exception as error:  # whatever a decoder raises, the image cannot be read
            return describe_error(error)
        good[index] = CheckedImage((image.height, image.width), largest)
        size = f"{image.width} x {image.height}"
        return _Picture(size, mode, hashlib.blake2b(size.encode() + image.tobytes(), digest_size=16).digest(), largest)

    try:
        return list(in_threads(read, rows, every, f"Reading {name}", show_progress))
    finally:  # also where the user ends it
        checked.keep(good)


def _mode(cell: Any, image: Image.Image) -> str:
    """PIL's mode of an image as it is stored."""
    if isinstance(cell, dict):
        with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]) as stored:
            return stored.mode
    return cell.mode if isinstance(cell, Image.Image) else image.mode


def _image_figures(pictures: dict[str, list[_Picture | str]], problems: dict[str, list[Any]]) -> dict[str, Any]:
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    places: dict[bytes, list[dict[str, Any]]] = {}
    for split, of_split in pictures.items():
        for row, picture in enumerate(of_split):
            if isinstance(picture, str):
                problems["unreadable_images"].append({"split": split, "row": row, "reason": picture})
                continue
            sizes[picture.size] += 1
            modes[picture.mode] += 1
            places.setdefault(picture.digest, []).append({"split": split, "row": row})
    for equal in places.values():
        if len({place["split"] for place in equal}) > 1:
            problems["duplicates_across"].append(equal)
        elif len(equal) > 1:
            problems["duplicates_within"].append(equal)
    read = [picture for of_split in pictures.values() for picture in of_split if isinstance(picture, _Picture)]
    notice = dark_images([picture.largest for picture in read])
    return {"sizes": dict(sizes.most_common()), "modes": dict(modes.most_common()), "notice": notice}


def _check_groups(data: Mapping[str, datasets.Dataset], column: str, problems: dict[str, list[Any]]) -> None:
    rows_of: dict[str, Counter[str]] = {}
    for split, rows in data.items():
        for row, group in enumerate(rows.with_format(None).select_columns(column)[column]):
            if group is None:
                problems["rows_without_group"].append({"split": split, "row": row})
            else:
                rows_of.setdefault(str(group), Counter())[split] += 1
    problems["groups_across"] = [
        {"group": group, "rows": dict(counts)} for group, counts in rows_of.items() if len(counts) > 1
    ]
