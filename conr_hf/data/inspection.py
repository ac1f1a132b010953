"""What is in a data set: the distribution of its labels, and its problems."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from conr_hf.data.columns import cell_of, check_column, in_threads, label_values, read_labels, undecoded
from conr_hf.data.images import describe_error, to_image
from conr_hf.data.map_statistics import has_maps
from conr_hf.data.splits import SPLITS
from conr_hf.imbalance import Bins, density_weights, make_bins
from conr_hf.imbalance.bins import FloatArray, suggest_bin_width
from conr_hf.metrics import THRESHOLDS, shot_masks

OUTLIER_Z = 6.0
PROBLEMS = (
    *("unreadable_images", "bad_labels", "duplicates_across", "duplicates_within"),
    *("groups_across", "rows_without_group", "outliers"),
)


def inspect(
    data: Mapping[str, datasets.Dataset],
    *,
    label_columns: Sequence[str] = ("label",),
    image_column: str = "image",
    group_column: str | None = None,
    bin_width: float | Sequence[float] | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Reads every label and every image of a data set once, in threads, and reports what it found.

    Rows are counted from 0 in each split. Shots and outliers go by the training labels: those of the split `"train"`,
    or of the first one if there is none. Only duplicates that are equal pixel for pixel, once decoded, are found.
    `group_column` holds what should not be in two splits: a person, a photograph. Without `bin_width`, in label units,
    bins are as wide as [`~conr_hf.imbalance.bins.suggest_bin_width`] has them, as in training.

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
        - `images`: how many there are of each of the `sizes` and `modes`;
        - `problems`, lists: `unreadable_images` and `bad_labels` (split, row, reason), `duplicates_across` and
          `duplicates_within` splits (each a list of split and row), `groups_across` (group, rows by split),
          `rows_without_group`, and `outliers` (split, row, column, label, robust z: the distance from the median over
          1.4826 times the median of such distances, if above 6).

        What goes by training labels is absent if none is a number.
    """
    columns = list(label_columns)
    data = {split: data[split] for split in sorted(data, key=[*SPLITS, *data].index)}
    for split, rows in data.items():
        _check(rows, f'split "{split}"', columns, image_column, group_column)
    if not any(len(rows) for rows in data.values()):
        raise ValueError("The data has no rows.")
    training = "train" if "train" in data else next(iter(data))
    labels: dict[str, FloatArray] = {}
    problems: dict[str, list[Any]] = {kind: [] for kind in PROBLEMS}
    for split, rows in data.items():
        read, wrong = read_labels(rows, columns, f'split "{split}"')
        labels[split] = read.reshape(len(rows), len(columns))  # (N, T)
        problems["bad_labels"] += [{"split": split, "row": row, "reason": wrong[row]} for row in sorted(wrong)]
    known = {split: values[np.isfinite(values).all(axis=1)] for split, values in labels.items()}
    found: dict[str, Any] = {
        "training_split": training,
        "label_columns": columns,
        "splits": {
            split: {"rows": len(values), "labels": _label_figures(known[split], columns)}
            for split, values in labels.items()
        },
    }
    if len(known[training]):
        found |= _density(known, training, bin_width, found["splits"])
        problems["outliers"] = _outliers(labels, known[training], columns)
    pictures = {
        split: _read_images(rows, image_column, f"images of {split}", show_progress) for split, rows in data.items()
    }
    found["images"] = _image_figures(pictures, problems)
    if group_column is not None:
        _check_groups(data, group_column, problems)
    return {**found, "problems": problems}


class _Picture(NamedTuple):
    size: str
    mode: str
    digest: bytes


def _check(
    rows: datasets.Dataset, name: str, label_columns: list[str], image_column: str, group_column: str | None
) -> None:
    label_values(dict.fromkeys(rows.column_names), label_columns, name)
    if len(rows) and has_maps(rows, label_columns, name):
        raise ValueError(
            f'{name}: the labels in column "{label_columns[0]}" are maps, which are not inspected. Training checks '
            "every map before it starts."
        )
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
    known: dict[str, FloatArray], training: str, bin_width: float | Sequence[float] | None, splits: dict[str, Any]
) -> dict[str, Any]:
    """What follows from the bins of the training labels; the shots of every split are put into `splits`."""
    suggested = [suggest_bin_width(values) for values in known[training].T]
    bins = make_bins(known[training], suggested if bin_width is None else bin_width)
    for split, labels in known.items():
        masks = shot_masks(bins.train_count_of(labels))
        splits[split]["shots"] = {shot: int(mask.sum()) for shot, mask in masks.items()}
    label_range = float(np.ptp(known[training], axis=0).mean())
    weights = density_weights(known[training], bins, "sqrt_inverse")
    return {
        "bins": {**bins.to_dict(), "counts": {split: _bin_counts(labels, bins) for split, labels in known.items()}},
        "imbalance_ratio": [float(counts.max() / counts[counts > 0].min()) for counts in bins.train_counts],
        "few_share": splits[training]["shots"]["few"] / len(known[training]),
        "thresholds": list(THRESHOLDS),
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


def _read_images(rows: datasets.Dataset, column: str, name: str, show_progress: bool) -> list[_Picture | str]:
    """Every image, or why it cannot be read."""
    rows = rows.with_format(None).select_columns(column)
    stored = undecoded(rows, [column])

    def read(index: int) -> _Picture | str:
        try:
            cell = cell_of(rows, stored[index], index, column)
            image = to_image(cell)
            mode = _mode(cell, image)
        except Exception as error:  # whatever a decoder raises, the image cannot be read
            return describe_error(error)
        size = f"{image.width} x {image.height}"
        return _Picture(size, mode, hashlib.blake2b(size.encode() + image.tobytes(), digest_size=16).digest())

    return list(in_threads(read, rows, range(len(rows)), name, show_progress))


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
    return {"sizes": dict(sizes.most_common()), "modes": dict(modes.most_common())}


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
