"""Errors of a set of samples, for many weightings of the samples at once."""

import numpy as np
import numpy.typing as npt

from conr_hf.imbalance.bins import FloatArray, IntArray


def errors(p: FloatArray, y: FloatArray, index: IntArray, floor: float, weights: FloatArray) -> dict[str, FloatArray]:
    """
    The metrics of [`~conr_hf.metrics.shot_metrics`], `(R,)` each, for R weightings of the same samples: `weights`,
    `(R, N)` without a row of zeros, are how often each sample counts. NaN where a correlation is undefined.

    Predictions `p`, labels `y` and the labels' bins `index` are `(N, T)`; errors smaller than `floor`, in label units,
    count as that in the geometric mean.
    """
    error = np.abs(p - y)  # (N, T)
    of_sample = error.mean(axis=1)
    dimensions = range(y.shape[1])
    n = weights.sum(axis=1)

    def mean(values: FloatArray) -> FloatArray:
        means: FloatArray = (weights * values).sum(axis=1) / n
        return means

    mse = mean((error**2).mean(axis=1))
    pearson = np.mean([_correlation(p[:, t], y[:, t], weights) for t in dimensions], axis=0)
    ranked = [
        _correlation(average_ranks(p[:, t], weights), average_ranks(y[:, t], weights), weights) for t in dimensions
    ]
    return {
        "n": n,
        "mae": mean(of_sample),
        "mse": mse,
        "rmse": np.sqrt(mse),
        "gm": np.exp(mean(np.log(np.maximum(of_sample, floor)))),
        "bmae": np.mean([_mean_over_bins(error[:, t], index[:, t], weights) for t in dimensions], axis=0),
        "pearson": pearson,
        "spearman": np.where(np.isnan(pearson), np.nan, np.mean(ranked, axis=0)),
    }


def average_ranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """
    Ranks `(R, N)` of values `(N,)` from 1, equal ones sharing the mean of theirs, where each value counts as often as
    its weight, `(R, N)`, says; without meaning where the weight is 0.

    Example:
        >>> average_ranks(np.array([5.0, 3.0, 5.0]), np.ones((1, 3)))
        array([[2.5, 1. , 2.5]])
    """
    _, place = np.unique(values, return_inverse=True)
    tied = _sums(weights, place)
    ranks: FloatArray = np.cumsum(tied, axis=1) - tied + (tied + 1) / 2
    return ranks[:, place]


def _mean_over_bins(error: FloatArray, index: IntArray, weights: FloatArray) -> FloatArray:
    counts, sums = _sums(weights, index), _sums(weights * error, index)
    full = counts > 0
    means: FloatArray = (sums / np.where(full, counts, 1)).sum(axis=1) / full.sum(axis=1)
    return means


def _sums(columns: FloatArray, place: IntArray) -> FloatArray:
    """Columns `(R, N)` of the same place `(N,)` added up: `(R, G)`, the G places in ascending order."""
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=place.min() - 1))
    return np.add.reduceat(columns[:, order], starts, axis=1)


def _correlation(a: FloatArray, b: FloatArray, weights: FloatArray) -> FloatArray:
    """Pearson's, of values of shape `(N,)` or `(R, N)`: `(R,)`, NaN where one of them is constant."""
    (a, constant_a), (b, constant_b) = _standardised(a, weights), _standardised(b, weights)
    constant = constant_a | constant_b
    spread = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    found = np.clip((weights * a * b).sum(axis=1) / np.where(constant, 1, spread), -1, 1)
    return np.where(constant, np.nan, found)


def _standardised(values: FloatArray, weights: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Values less their mean, over the largest of them `(R, N)`, and whether they are all one `(R,)`."""
    there = weights > 0
    low = np.where(there, values, np.inf).min(axis=1)
    high = np.where(there, values, -np.inf).max(axis=1)
    # Rounding can leave a constant column with a spread of a few eps, whose correlation would be noise.
    constant = high - low <= 1e-13 * np.maximum(np.abs(low), np.abs(high))
    mean = (weights * values).sum(axis=1) / weights.sum(axis=1)
    centred = values - mean[:, None]
    largest = np.maximum(high - mean, mean - low)
    return centred / np.where(constant, 1, largest)[:, None], constant
