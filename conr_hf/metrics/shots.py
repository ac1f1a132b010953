"""Errors of predictions, over all samples and by how common their labels are in training (many, median, few shots)."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns, make_bins
from conr_hf.imbalance.bins import FLOAT32_EPS, THRESHOLDS, FloatArray, IntArray
from conr_hf.metrics.errors import errors
from conr_hf.metrics.validation import like_labels

# Shots as people read them; results have them under their keys.
SHOTS = {"all": "all", "many": "many-shot", "median": "median-shot", "few": "few-shot"}

Thresholds = tuple[npt.ArrayLike, npt.ArrayLike]
Masks = dict[str, npt.NDArray[np.bool_]]


def shot_metrics(
    predictions: npt.ArrayLike | Tensor,
    labels: npt.ArrayLike | Tensor,
    train_labels: npt.ArrayLike | Tensor,
    *,
    bin_width: float | Sequence[float] | None = None,
    edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
    thresholds: Thresholds = THRESHOLDS,
) -> dict[str, dict[str, float]]:
    """
    Errors of predictions, over all samples and over those with common, less common and rare labels.

    The number of training labels in a label's bin (that of its rarest coordinate) decides its shot: many, median or
    few. A label outside all bins is few. With errors averaged over the label dimensions:

    - `n`: samples;
    - `mae`, `mse`, `rmse`: mean absolute error, in label units, mean squared error, in their square, and its root;
    - `gm`: geometric mean of the samples' absolute errors, in label units, where errors smaller than the range of the
      bins times 2^-23 (float32's eps), exact zeros among them, count as that;
    - `bmae`: balanced MAE, the mean over bins of the bin's MAE, in label units: over the bins that hold labels of the
      shot, labels outside all bins forming one more, and then over label dimensions;
    - `pearson`, `spearman`: correlation of predictions and labels, and of their ranks, equal values sharing the mean
      of theirs; averaged over label dimensions, without unit; absent where undefined in a dimension, with a single
      sample or with constant labels or predictions.

    Source: the protocol of [Delving into Deep Imbalanced Regression](https://huggingface.co/papers/2102.09554);
    balanced MAE from [Balanced MSE](https://huggingface.co/papers/2203.16427).

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)`, `(N, 1)` or `(N, T)`): In label units.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): True labels of the same samples.
        train_labels (`array_like` or `torch.Tensor` of shape `(M,)` or `(M, T)`): Labels of the training set.
        bin_width (`float` or a sequence of T `float`, *optional*): As in [`~conr_hf.imbalance.make_bins`].
        edges (ascending numbers, or a sequence of T such, *optional*): As in [`~conr_hf.imbalance.make_bins`].
        thresholds (`tuple`, *optional*, defaults to `(20, 100)`):
            Few shots have fewer training labels than the first number, many have more than the second. Any two
            numbers, or an array of one for each bin in place of a number (for bins of different widths).

    Returns:
        `dict`: `{"all": {"n", "mae", "mse", "rmse", "gm", "bmae", "pearson", "spearman"}, "many": {...},
        "median": {...}, "few": {...}}` of plain numbers; a shot without samples is absent.

    Raises:
        `ValueError`: For no samples, for lengths or label dimensions that differ, for NaN or infinite numbers (naming
            the first one's index), and for thresholds that are not two, do not ascend or do not fit the bins.

    Example:
        >>> train_ages = [30] * 150 + [70] * 5
        >>> result = shot_metrics(predictions=[31.0, 33.0, 60.0], labels=[30, 30, 70], train_labels=train_ages)
        >>> {shot: (m["n"], round(m["mae"], 2)) for shot, m in result.items()}
        {'all': (3, 4.67), 'many': (2, 2.0), 'few': (1, 10.0)}
    """
    return shot_metrics_from_bins(predictions, labels, make_bins(train_labels, bin_width, edges), thresholds)


def shot_metrics_from_bins(
    predictions: npt.ArrayLike | Tensor,
    labels: npt.ArrayLike | Tensor,
    bins: Bins,
    thresholds: Thresholds | None = None,
) -> dict[str, dict[str, float]]:
    """
    [`shot_metrics`] from existing bins with their training counts, saved with a model for example.

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)`, `(N, 1)` or `(N, T)`): In label units.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): True labels of the same samples.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        thresholds (`tuple`, *optional*, defaults to those of the bins): As in [`shot_metrics`].

    Returns:
        `dict`: As [`shot_metrics`].

    Raises:
        `ValueError`: As [`shot_metrics`].
    """
    p, y, index, floor, shots = prepared(predictions, labels, bins, thresholds)
    result = {}
    for shot, rows in shots.items():
        n = int(rows.sum())
        found = errors(p[rows], y[rows], index[rows], floor, np.ones((1, n)))
        result[shot] = {name: float(value[0]) for name, value in found.items() if not np.isnan(value[0])} | {"n": n}
    return result


def sample_shots(labels: npt.ArrayLike | Tensor, bins: Bins, thresholds: Thresholds | None = None) -> Masks:
    """
    Which samples are many-, median- and few-shot: few if any coordinate of the label is, many if all are.

    Args:
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): In label units.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        thresholds (`tuple`, *optional*, defaults to those of the bins): As in [`shot_metrics`].

    Returns:
        `dict`: `{"many": mask, "median": mask, "few": mask}`, boolean arrays of shape `(N,)`; every sample is in
        exactly one of them, in few if its label is outside all bins.

    Raises:
        `ValueError`: As [`shot_masks`], for NaN or infinite labels, and for other label dimensions than the bins'.

    Example:
        >>> bins = make_bins([30] * 150 + [70] * 5)
        >>> sample_shots([30, 70, 99], bins)["few"]
        array([False,  True,  True])
    """
    index = bins.index(labels)
    thresholds = bins.thresholds if thresholds is None else thresholds
    of_bins = [shot_masks(counts, thresholds) for counts in bins.train_counts]
    # The index of a label outside all bins is -1: the entry put last.
    few = np.any([np.append(masks["few"], True)[index[:, t]] for t, masks in enumerate(of_bins)], axis=0)
    many = np.all([np.append(masks["many"], False)[index[:, t]] for t, masks in enumerate(of_bins)], axis=0)
    return {"many": many, "median": ~few & ~many, "few": few}


def shot_masks(train_counts: npt.ArrayLike, thresholds: Thresholds = THRESHOLDS) -> Masks:
    """
    Which bins (or samples) are many-, median- and few-shot, by the number of their training labels.

    Args:
        train_counts (`array_like` of any shape): Numbers of training labels.
        thresholds (`tuple`, *optional*, defaults to `(20, 100)`):
            Few are below the first number, many above the second, median all others. An array of the counts' shape has
            a threshold for each of them.

    Returns:
        `dict`: `{"many": mask, "median": mask, "few": mask}`, boolean arrays of the counts' shape; every entry is true
        in exactly one of them.

    Raises:
        `ValueError`: For other than two thresholds, a first one greater than the second, and arrays of another shape.

    Example:
        >>> shot_masks([101, 100, 20, 19])["median"]
        array([False,  True,  True, False])
        >>> shot_masks([20, 20], thresholds=([10, 30], 100))["few"]
        array([False,  True])
    """
    if len(thresholds) != 2:
        raise ValueError(f"thresholds are {thresholds}. Pass two: few are below the first, many above the second.")
    counts = np.asarray(train_counts)
    low, high = (np.asarray(threshold, dtype=np.float64) for threshold in thresholds)
    for threshold in (low, high):
        if threshold.ndim > 0 and threshold.shape != counts.shape:
            raise ValueError(
                f"thresholds are an array of shape {threshold.shape} and there are {counts.size} bins. "
                "Pass a number, or one for each bin."
            )
    low, high = np.broadcast_to(low, counts.shape), np.broadcast_to(high, counts.shape)
    if not (low <= high).all():
        place = tuple(np.argwhere(~(low <= high))[0])
        a, b = low[place], high[place]
        raise ValueError(f"thresholds are ({a:g}, {b:g}); the first must not be greater. Write ({b:g}, {a:g}).")
    few, many = counts < low, counts > high
    return {"many": many, "median": ~few & ~many, "few": few}


def few_share(bins: Bins) -> float:
    """
    The share of training labels with few shots, from 0 to 1; of several label dimensions the largest, as a label is
    few-shot if one of its coordinates is.

    Example:
        >>> round(few_share(make_bins([30] * 150 + [70] * 50, thresholds=(60, 100))), 2)
        0.25
    """
    few = [counts[shot_masks(counts, bins.thresholds)["few"]].sum() for counts in bins.train_counts]
    return max(float(n / counts.sum()) for n, counts in zip(few, bins.train_counts, strict=True))


def flat(metrics: Mapping[str, Mapping[str, float]], prefix: str = "") -> dict[str, float]:
    """
    The metrics of [`shot_metrics`] as a flat dictionary, as trainers log them.

    Args:
        metrics (`Mapping`): The result of [`shot_metrics`].
        prefix (`str`, *optional*, defaults to `""`): Prefix of every name, `"eval_"` for example.

    Returns:
        `dict`: The `"all"` metrics under their names, those of a shot under `<shot>_<name>`.

    Example:
        >>> flat({"all": {"n": 3, "mae": 1.5}, "few": {"n": 1, "mae": 4.0}}, prefix="eval_")
        {'eval_n': 3, 'eval_mae': 1.5, 'eval_few_n': 1, 'eval_few_mae': 4.0}
    """
    return {
        f"{prefix}{'' if shot == 'all' else shot + '_'}{name}": value
        for shot, values in metrics.items()
        for name, value in values.items()
    }


def constant_median(train_labels: npt.ArrayLike | Tensor, n: int) -> FloatArray:
    """
    The baseline that ignores the image: the median training label, of each dimension, for each of `n` samples.

    Args:
        train_labels (`array_like` or `torch.Tensor` of shape `(M,)` or `(M, T)`): Labels of the training set.
        n (`int`): Number of samples to predict.

    Returns:
        `np.ndarray` of shape `(n,)` or `(n, T)`, as the labels, in label units, float64.

    Raises:
        `ValueError`: For no labels, and for NaN or infinite ones.

    Example:
        >>> constant_median([30, 31, 80], 2)
        array([31., 31.])
    """
    columns = label_columns(train_labels, "train_labels")
    if len(columns) == 0:
        raise ValueError("train_labels is empty. A median needs at least one training label.")
    repeated = np.tile(np.median(columns, axis=0), (n, 1))
    return repeated[:, 0] if len(np.shape(train_labels)) == 1 else repeated


def prepared(
    predictions: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, bins: Bins, thresholds: Thresholds | None
) -> tuple[FloatArray, FloatArray, IntArray, float, Masks]:
    """
    The inputs of errors per shot: predictions, labels and bin indices, `(N, T)` each, the floor of errors in the
    geometric mean, and a mask for each shot that has samples, `"all"` first.
    """
    y = label_columns(labels)
    p = like_labels(predictions, labels).reshape(y.shape)
    if len(y) == 0:
        raise ValueError("There are no samples to evaluate. Pass at least one prediction and its label.")
    floor = FLOAT32_EPS * float(np.mean([e[-1] - e[0] for e in bins.edges]))
    shots = {"all": np.ones(len(y), dtype=bool), **sample_shots(y, bins, thresholds)}
    return p, y, bins.index(y), floor, {shot: rows for shot, rows in shots.items() if rows.any()}
