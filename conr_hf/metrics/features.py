"""Metrics of features: whether they are ordered as the labels, and whether rare samples lie among frequent ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns
from conr_hf.imbalance.bins import FloatArray, IntArray
from conr_hf.metrics import shot_masks, shot_metrics_from_bins

MOST_PAIRS = 200_000
K = 5


def distance_pairs(
    features: npt.ArrayLike, labels: npt.ArrayLike | Tensor, *, most: int = MOST_PAIRS, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """
    Label distance and feature distance of pairs of samples: all pairs, or `most` random ones if there are more.

    Args:
        features (`array_like` of shape `(N, D)`): Features at the head.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels, in label units.
        most (`int`, *optional*, defaults to 200,000): Largest number of pairs.
        seed (`int`, *optional*, defaults to 0): Seed of the draw, which may hold a pair twice.

    Returns:
        Two `np.ndarray` of shape `(P,)`, float64: mean absolute differences of the labels, in label units, and cosine
        distances of the features, between 0 and 2, which no scale of the features changes.

    Example:
        >>> label_distance, feature_distance = distance_pairs([[1, 0], [2, 0], [0, 1]], [10, 13, 30])
        >>> label_distance, feature_distance
        (array([ 3., 20., 17.]), array([0., 1., 1.]))
    """
    from sklearn.preprocessing import normalize

    unit = normalize(np.asarray(features, np.float32))
    y = label_columns(labels)
    count = len(y)
    if count * (count - 1) // 2 <= most:
        first, second = np.triu_indices(count, 1)
    else:
        random = np.random.default_rng(seed)
        first = random.integers(0, count, most)
        second = (first + random.integers(1, count, most)) % count  # never the sample itself
    similarity = np.concatenate(
        [
            np.einsum("nd,nd->n", unit[first[at : at + 8192]], unit[second[at : at + 8192]])
            for at in range(0, len(first), 8192)
        ]
        or [np.empty(0)]
    )
    return np.abs(y[first] - y[second]).mean(axis=1), 1 - similarity.astype(np.float64)


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """
    Spearman's rank correlation, ties having the mean of their ranks; `None` where one of the two is constant.

    Args:
        first, second (`array_like` of shape `(P,)`): Values of the same pairs.

    Example:
        >>> round(rank_correlation([1, 2, 3, 4], [10, 30, 30, 99]), 4)
        0.9487
    """
    from scipy.stats import spearmanr

    values, others = np.asarray(first), np.asarray(second)
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(others) == 0:
        return None
    return float(spearmanr(values, others).statistic)


def nearest(features: npt.ArrayLike, among: npt.ArrayLike | None = None, k: int = K) -> IntArray:
    """
    The nearest neighbours of each sample by the cosine distance of features, nearest first.

    Args:
        features (`array_like` of shape `(N, D)`): Features at the head.
        among (`array_like` of shape `(M, D)`, *optional*):
            Features of the candidates. Unset: `features` themselves, each sample left out of its own neighbours.
        k (`int`, *optional*, defaults to 5): Number of neighbours; at most all candidates are returned.

    Returns:
        `np.ndarray` of shape `(N, min(k, M))`, int64: indices into `among`; unset, `(N, min(k, N - 1))` into
        `features`.

    Example:
        >>> nearest([[1, 0], [3, 1], [0, 2]], k=1).ravel()
        array([1, 0, 1])
    """
    from sklearn.neighbors import NearestNeighbors

    theirs = np.asarray(features if among is None else among, np.float32)
    index = NearestNeighbors(n_neighbors=min(k, len(theirs) - (among is None)), metric="cosine").fit(theirs)
    ours = None if among is None else np.asarray(features, np.float32)  # None: each sample is left out of its own
    found: IntArray = index.kneighbors(ours, return_distance=False)
    return found


def knn_error(
    bins: Bins, labels: npt.ArrayLike | Tensor, of_neighbours: npt.ArrayLike | Tensor, neighbours: IntArray
) -> dict[str, float]:
    """
    MAE, over all samples and by shot, of the mean label of each sample's neighbours: how well the features predict the
    label without the head.

    Args:
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels, in label units.
        of_neighbours (`array_like` or `torch.Tensor` of shape `(M,)` or `(M, T)`): Labels that `neighbours` indexes.
        neighbours (`np.ndarray` of shape `(N, K)`, int64): The result of [`nearest`].

    Returns:
        `dict`: MAE in label units for "all", "many", "median" and "few"; a shot without samples is absent.

    Raises:
        `ValueError`: As [`~conr_hf.metrics.shot_metrics`].
    """
    predicted = label_columns(of_neighbours)[neighbours].mean(axis=1)
    metrics = shot_metrics_from_bins(predicted, label_columns(labels), bins)
    return {shot: values["mae"] for shot, values in metrics.items()}


def rare_among_frequent(
    bins: Bins,
    labels: npt.ArrayLike | Tensor,
    train_labels: npt.ArrayLike | Tensor,
    neighbours: IntArray,
    thresholds: tuple[float, float] | None = None,
) -> dict[str, float]:
    """
    How many rare samples lie among frequent ones: few-shot samples most of whose nearest training samples are
    many-shot.

    Args:
        bins, labels: As in [`knn_error`].
        train_labels (`array_like` or `torch.Tensor` of shape `(M,)` or `(M, T)`): Labels that `neighbours` indexes.
        neighbours (`np.ndarray` of shape `(N, K)`, int64): The result of [`nearest`] among the training samples.
        thresholds (`tuple[float, float]`, *optional*, defaults to those of the bins):
            As in [`~conr_hf.metrics.shot_metrics`].

    Returns:
        `dict`: `"samples"`, the few-shot samples; `"share"` of them that lie among many-shot ones, absent where there
        are none; and `"training_share"`, the share of many-shot samples among the training samples.
    """
    thresholds = bins.thresholds if thresholds is None else thresholds
    rare = shot_masks(bins.train_count_of(labels), thresholds)["few"]
    frequent = shot_masks(bins.train_count_of(train_labels), thresholds)["many"]  # (M,)
    result: dict[str, float] = {"samples": int(rare.sum()), "training_share": float(frequent.mean())}
    if rare.any():
        result["share"] = float((frequent[neighbours[rare]].mean(axis=1) > 0.5).mean())
    return result


def neighbour_bins(
    bins: Bins,
    labels: npt.ArrayLike | Tensor,
    train_labels: npt.ArrayLike | Tensor,
    neighbours: IntArray,
    thresholds: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:
    """
    Which frequent labels each rare one lies among: for every few-shot bin that has samples, the bins in which their
    nearest training samples are.

    Args:
        bins, labels, train_labels, neighbours, thresholds: As in [`rare_among_frequent`].

    Returns:
        A `dict` for each few-shot bin, in the order of dimensions and labels: `"dimension"`; `"bin"`, its two edges in
        label units, or `None` for labels outside all bins; `"training_samples"` in it; `"samples"`; `"many_share"`,
        the share of their neighbours in many-shot bins; and `"neighbours"`, the three commonest bins of these with
        `"bin"`, `"training_samples"` and `"share"`.
    """
    thresholds = bins.thresholds if thresholds is None else thresholds
    index, theirs = bins.index(labels), bins.index(train_labels)
    table = []
    for t, (edges, counts) in enumerate(zip(bins.edges, bins.train_counts, strict=True)):
        known = np.append(counts, 0)  # index -1, outside all bins, has none
        masks = shot_masks(known, thresholds)
        for i in sorted(set(index[:, t].tolist())):
            if not masks["few"][i]:
                continue
            inside = index[:, t] == i
            found = theirs[neighbours[inside], t].ravel()
            where, times = np.unique(found, return_counts=True)
            commonest = np.argsort(-times, kind="stable")[:3]
            table.append(
                {
                    "dimension": t,
                    "bin": _edges(edges, i),
                    "training_samples": int(known[i]),
                    "samples": int(inside.sum()),
                    "many_share": float(masks["many"][found].mean()),
                    "neighbours": [
                        {
                            "bin": _edges(edges, int(where[c])),
                            "training_samples": int(known[where[c]]),
                            "share": float(times[c] / len(found)),
                        }
                        for c in commonest
                    ],
                }
            )
    return table


def _edges(edges: FloatArray, index: int) -> Sequence[float] | None:
    return None if index < 0 else [float(edges[index]), float(edges[index + 1])]
