"""Errors of predictions, over all samples and by how common their labels are in training (many, median, few shots)."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns, make_bins
from conr_hf.imbalance.bins import FLOAT32_EPS, FloatArray, IntArray

THRESHOLDS = (20, 100)


def shot_metrics(
    predictions: npt.ArrayLike | Tensor,
    labels: npt.ArrayLike | Tensor,
    train_labels: npt.ArrayLike | Tensor,
    *,
    bin_width: float | Sequence[float] | None = None,
    edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
    thresholds: tuple[int, int] = THRESHOLDS,
) -> dict[str, dict[str, float]]:
    """
    Errors of predictions, over all samples and over those with common, middling and rare labels.

    A sample's shot follows from the number of training labels in its label's bin (in its rarest coordinate's): many,
    median or few. A label outside all bins is few. With absolute errors meant over the label dimensions:

    - `n`: samples;
    - `mae`, `mse`: mean absolute error, in label units, and mean squared error, in their square;
    - `gm`: geometric mean of the samples' absolute errors, in label units, where errors smaller than the range of the
      bins times 2^-23 (float32's eps), exact zeros among them, count as that;
    - `bmae`: balanced MAE, the mean over bins of the bin's MAE, in label units: over the bins that hold labels of the
      shot, labels outside all bins forming one more, and then over label dimensions;
    - `pearson`: correlation of predictions and labels, meant over label dimensions, without unit; absent where it is
      undefined in a dimension, with a single sample or with constant labels or predictions.

    Source: the protocol of [Delving into Deep Imbalanced Regression](https://huggingface.co/papers/2102.09554);
    balanced MAE from [Balanced MSE](https://huggingface.co/papers/2203.16427).

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)`, `(N, 1)` or `(N, T)`): In label units.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): True labels of the same samples.
        train_labels (`array_like` or `torch.Tensor` of shape `(M,)` or `(M, T)`): Labels of the training set.
        bin_width (`float` or a sequence of T `float`, *optional*): As in [`~conr_hf.imbalance.make_bins`].
        edges (ascending numbers, or a sequence of T such, *optional*): As in [`~conr_hf.imbalance.make_bins`].
        thresholds (`tuple[int, int]`, *optional*, defaults to `(20, 100)`):
            Few shots have fewer training labels than the first number, many have more than the second.

    Returns:
        `dict`: `{"all": {"n", "mae", "mse", "gm", "bmae", "pearson"}, "many": {...}, "median": {...}, "few": {...}}`
        of plain numbers; a shot without samples is absent.

    Raises:
        `ValueError`: For no samples, for lengths or label dimensions that differ, and for NaN or infinite numbers
            (naming the first one's index).

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
    thresholds: tuple[int, int] = THRESHOLDS,
) -> dict[str, dict[str, float]]:
    """
    [`shot_metrics`] where the bins with their training counts are at hand, saved with a model for example.

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)`, `(N, 1)` or `(N, T)`): In label units.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): True labels of the same samples.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        thresholds (`tuple[int, int]`, *optional*, defaults to `(20, 100)`): As in [`shot_metrics`].

    Returns:
        `dict`: As [`shot_metrics`].

    Raises:
        `ValueError`: As [`shot_metrics`].
    """
    y = label_columns(labels)  # (N, T)
    p = like_labels(predictions, labels).reshape(y.shape)
    if len(y) == 0:
        raise ValueError("There are no samples to evaluate. Pass at least one prediction and its label.")
    index = bins.index(y)
    floor = FLOAT32_EPS * float(np.mean([e[-1] - e[0] for e in bins.edges]))
    shots = {"all": np.ones(len(y), dtype=bool), **shot_masks(bins.train_count_of(y), thresholds)}
    return {shot: _errors(p[rows], y[rows], index[rows], floor) for shot, rows in shots.items() if rows.any()}


def shot_masks(
    train_counts: npt.ArrayLike, thresholds: tuple[int, int] = THRESHOLDS
) -> dict[str, npt.NDArray[np.bool_]]:
    """
    Which samples (or bins) are many, median and few shots.

    Args:
        train_counts (`array_like` of any shape): Numbers of training labels.
        thresholds (`tuple[int, int]`, *optional*, defaults to `(20, 100)`):
            Few are below the first number, many above the second, median all others.

    Returns:
        `dict`: `{"many": mask, "median": mask, "few": mask}`, boolean arrays of the counts' shape; every entry is true
        in exactly one of them.

    Raises:
        `ValueError`: When the first threshold is greater than the second.

    Example:
        >>> shot_masks([101, 100, 20, 19])["median"]
        array([False,  True,  True, False])
    """
    low, high = thresholds
    if low > high:
        raise ValueError(f"thresholds are {thresholds}; the first must not be greater. Write ({high}, {low}).")
    counts = np.asarray(train_counts)
    few, many = counts < low, counts > high
    return {"many": many, "median": ~few & ~many, "few": few}


def like_labels(predictions: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor) -> FloatArray:
    """
    Predictions in the shape of the labels: `(N, 1)` from a model with one output becomes `(N,)` where labels are.

    Subtracting `(N,)` from `(N, 1)` would silently give `(N, N)`; all metrics go through here instead.

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Predictions.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels.

    Returns:
        `np.ndarray` in the shape of the labels, float64.

    Raises:
        `ValueError`: For shapes that do not fit together, and for NaN or infinite values in either.

    Example:
        >>> like_labels([[1.0], [2.0]], [1, 3])
        array([1., 2.])
    """
    p = label_columns(predictions, "predictions", mend="The model may have diverged; try a lower learning rate.")
    y = label_columns(labels)
    if p.shape != y.shape:
        raise ValueError(
            f"predictions have shape {np.shape(predictions)} and labels {np.shape(labels)}. "
            "Pass one prediction for each label, with the same label dimensions."
        )
    return p.reshape(np.shape(labels))


def flat(metrics: Mapping[str, Mapping[str, float]], prefix: str = "") -> dict[str, float]:
    """
    The metrics of [`shot_metrics`] in one level, as trainers log them.

    Args:
        metrics (`Mapping`): What [`shot_metrics`] returned.
        prefix (`str`, *optional*, defaults to `""`): Put before every name, `"eval_"` for example.

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
    The baseline that looks at no image: the median training label, of each dimension, for each of `n` samples.

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


class ShotMetrics(evaluate.Metric):  # type: ignore[misc]
    """
    [`shot_metrics`] as an `evaluate.Metric`: `add_batch(predictions=..., references=...)`, then
    `compute(train_labels=...)`, which takes the keyword arguments of [`shot_metrics`] too. Results are named as by
    [`flat`].

    Predictions are kept in memory, where `evaluate` would write them to its cache; with `num_process` greater than 1
    it does, as its processes share them through files.

    Example:
        >>> metric = ShotMetrics()  # doctest: +SKIP
        >>> metric.add_batch(predictions=[31.0, 33.0], references=[30, 30])  # doctest: +SKIP
        >>> metric.compute(train_labels=[30, 30, 31])["few_mae"]  # doctest: +SKIP
        2.0
    """

    def __init__(self, *args: Any, keep_in_memory: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, keep_in_memory=keep_in_memory and kwargs.get("num_process", 1) == 1, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number, numbers = datasets.Value("float64"), datasets.List(datasets.Value("float64"))
        shapes = [(number, number), (numbers, number), (numbers, numbers)]  # (N,), (N, 1) beside (N,), and (N, T)
        return evaluate.MetricInfo(
            description="Errors over all samples and by how many training labels their label's bin holds.",
            citation="Delving into Deep Imbalanced Regression, https://huggingface.co/papers/2102.09554",
            inputs_description="predictions, references; compute: train_labels, bin_width, edges, thresholds.",
            features=[datasets.Features({"predictions": p, "references": r}) for p, r in shapes],
        )

    def _compute(
        self,
        predictions: npt.ArrayLike,
        references: npt.ArrayLike,
        train_labels: npt.ArrayLike | Tensor,
        bin_width: float | Sequence[float] | None = None,
        edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
        thresholds: tuple[int, int] = THRESHOLDS,
    ) -> dict[str, float]:
        return flat(
            shot_metrics(
                predictions, references, train_labels, bin_width=bin_width, edges=edges, thresholds=thresholds
            )
        )


def _errors(p: FloatArray, y: FloatArray, index: IntArray, floor: float) -> dict[str, float]:
    error = np.abs(p - y)  # (N, T)
    metrics: dict[str, float] = {
        "n": len(y),
        "mae": float(error.mean()),
        "mse": float((error**2).mean()),
        "gm": float(np.exp(np.log(np.maximum(error.mean(axis=1), floor)).mean())),
        "bmae": float(np.mean([_mean_over_bins(error[:, t], index[:, t]) for t in range(y.shape[1])])),
    }
    correlations = [_pearson(p[:, t], y[:, t]) for t in range(y.shape[1])]
    if None not in correlations:
        metrics["pearson"] = float(np.mean([c for c in correlations if c is not None]))
    return metrics


def _mean_over_bins(error: FloatArray, index: IntArray) -> float:
    _, place = np.unique(index, return_inverse=True)
    return float((np.bincount(place, weights=error) / np.bincount(place)).mean())


def _pearson(p: FloatArray, y: FloatArray) -> float | None:
    # Rounding can leave a constant column with a spread of a few eps, whose correlation would be noise.
    if any(np.ptp(values) <= 1e-13 * np.abs(values).max() for values in (p, y)):
        return None
    p, y = p - p.mean(), y - y.mean()
    p, y = p / np.abs(p).max(), y / np.abs(y).max()
    return float(np.clip(p @ y / np.sqrt((p @ p) * (y @ y)), -1, 1))
