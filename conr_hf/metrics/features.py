"""Metrics of features: whether they are ordered as the labels, and whether rare samples lie among frequent ones."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns
from conr_hf.imbalance.bins import FloatArray, IntArray
from conr_hf.metrics import sample_shots, shot_masks, shot_metrics_from_bins

MOST_PAIRS = 200_000
K = 5  # neighbours


def distance_pairs(
    features: npt.ArrayLike, labels: npt.ArrayLike | Tensor, *, most: int = MOST_PAIRS, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """
    Label distance and feature distance of pairs of samples, `(P,)` each: all pairs, or `most` random ones, some of
    them perhaps twice, if there are more. Labels, `(N,)` or `(N, T)`, are compared by their mean absolute difference,
    in label units; features, `(N, D)`, by their cosine distance, 0 to 2, which does not depend on their scale.

    Example:
        >>> distance_pairs([[1, 0], [2, 0], [0, 1]], [10, 13, 30])
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
    similarity = np.empty(len(first))
    for at in range(0, len(first), 8192):
        some = slice(at, at + 8192)
        similarity[some] = np.einsum("nd,nd->n", unit[first[some]], unit[second[some]])
    return np.abs(y[first] - y[second]).mean(axis=1), 1 - similarity


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """Spearman's rank correlation of values `(P,)`, ties sharing their mean rank; `None` where one is constant."""
    from scipy.stats import spearmanr

    values, others = np.asarray(first), np.asarray(second)
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(others) == 0:
        return None
    return float(spearmanr(values, others).statistic)


def nearest(features: npt.ArrayLike, among: npt.ArrayLike | None = None) -> IntArray:
    """
    The 5 samples of `among`, `(M, D)`, that are nearest to each of the features, `(N, D)`, by cosine distance: their
    indices, `(N, 5)`, nearest first. Without `among`, the neighbours of each sample among the others.
    """
    from sklearn.neighbors import NearestNeighbors

    theirs = np.asarray(features if among is None else among, np.float32)
    index = NearestNeighbors(n_neighbors=min(K, len(theirs) - (among is None)), metric="cosine").fit(theirs)
    ours = None if among is None else np.asarray(features, np.float32)  # None: each sample is left out of its own
    found: IntArray = index.kneighbors(ours, return_distance=False)
    return found


def knn_error(
    bins: Bins, labels: npt.ArrayLike | Tensor, of_neighbours: npt.ArrayLike | Tensor, neighbours: IntArray
) -> dict[str, float]:
    """
    MAE, for "all" and by shot, of the mean label of each sample's neighbours: how well the features predict the label
    without the head. `neighbours`, `(N, K)`, indexes `of_neighbours`, the labels of the candidates.
    """
    predicted = label_columns(of_neighbours)[neighbours].mean(axis=1)
    metrics = shot_metrics_from_bins(predicted, label_columns(labels), bins)
    return {shot: values["mae"] for shot, values in metrics.items()}


def rare_among_frequent(
    bins: Bins, labels: npt.ArrayLike | Tensor, train_labels: npt.ArrayLike | Tensor, neighbours: IntArray
) -> dict[str, float]:
    """
    How many rare samples lie among frequent ones: `"samples"`, the few-shot samples; `"share"` of them with most of
    their `neighbours` among the training samples many-shot, absent where there are none; and `"training_share"`, the
    share of many-shot samples among the training samples.
    """
    rare, frequent = sample_shots(labels, bins)["few"], sample_shots(train_labels, bins)["many"]
    result: dict[str, float] = {"samples": int(rare.sum()), "training_share": float(frequent.mean())}
    if rare.any():
        result["share"] = float((frequent[neighbours[rare]].mean(axis=1) > 0.5).mean())
    return result


def neighbour_bins(
    bins: Bins, labels: npt.ArrayLike | Tensor, train_labels: npt.ArrayLike | Tensor, neighbours: IntArray
) -> list[dict[str, Any]]:
    """
    Which frequent labels each rare one lies among: for every few-shot bin that has samples, in the order of dimensions
    and labels, the bins of their nearest training samples.

    Each has its `"dimension"`; `"bin"`, its two edges in label units, or `None` for labels outside all bins;
    `"training_samples"` in it; `"samples"`; `"many_share"`, the share of their neighbours in many-shot bins; and
    `"neighbours"`, the three commonest bins of these with `"bin"`, `"training_samples"` and `"share"`.
    """
    index, theirs = bins.index(labels), bins.index(train_labels)
    table = []
    for t, (edges, counts) in enumerate(zip(bins.edges, bins.train_counts, strict=True)):
        known = np.append(counts, 0)  # index -1, outside all bins, has none
        masks = shot_masks(known, bins.thresholds)
        for i in np.unique(index[masks["few"][index[:, t]], t]):
            inside = index[:, t] == i
            found = theirs[neighbours[inside], t].ravel()
            where, times = np.unique(found, return_counts=True)
            commonest = np.argsort(-times, kind="stable")[:3]
            near = [{**_bin(edges, known, where[c]), "share": float(times[c] / len(found))} for c in commonest]
            numbers = {"samples": int(inside.sum()), "many_share": float(masks["many"][found].mean())}
            table.append({"dimension": t, **_bin(edges, known, i), **numbers, "neighbours": near})
    return table


def _bin(edges: FloatArray, counts: IntArray, i: int) -> dict[str, Any]:
    ends = None if i < 0 else [float(edges[i]), float(edges[i + 1])]
    return {"bin": ends, "training_samples": int(counts[i])}
