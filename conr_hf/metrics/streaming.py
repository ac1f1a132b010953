"""Errors of label maps by how common their labels are in training, accumulated batch by batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conr_hf.imbalance import Bins
from conr_hf.imbalance.bins import FLOAT32_EPS, FloatArray, IntArray
from conr_hf.metrics.depth import FIGURES, depth_errors
from conr_hf.metrics.shots import shot_masks
from conr_hf.metrics.validation import DIVERGED, as_float64, as_tensor, refuse_where, reshaped

# Pixels that are processed at once: on a CPU they fit into the cache of a core.
PIXELS_CPU, PIXELS_GPU = 2**16, 2**22
_SMALLEST_SPREAD = 1e-13  # relative to the mean; less is rounding error


class StreamedErrors:
    """
    [`~conr_hf.metrics.shot_metrics_from_bins`] for more pixels than fit into memory: `update` with each batch of maps,
    then `compute`.

    All pixels with a label count alike, whichever map they are from. Only sums and moments per bin are kept. Tensors
    are processed on their device, in float64.

    Args:
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training pixels, of one label dimension.

    Raises:
        `ValueError`: For bins of several label dimensions.

    Example:
        >>> from conr_hf.imbalance import make_bins
        >>> errors = StreamedErrors(make_bins([30.0] * 150 + [70.0] * 5))
        >>> errors.update([[31.0, 33.0]], [[30.0, 30.0]])
        >>> errors.update([[60.0, 99.0]], [[70.0, np.nan]])
        >>> {shot: (m["n"], round(m["mae"], 2)) for shot, m in errors.compute().items()}
        {'all': (3, 4.67), 'many': (2, 2.0), 'few': (1, 10.0)}
    """

    def __init__(self, bins: Bins) -> None:
        if len(bins.edges) != 1:
            raise ValueError(
                f"The bins have {len(bins.edges)} label dimensions and maps have one. Make the bins from the training "
                "maps' pixels."
            )
        self.bins = bins
        rows = len(bins.train_counts[0]) + 1  # the last one is of the labels outside all bins
        self._moments: FloatArray = np.zeros((rows, 6))
        self._sums: FloatArray = np.zeros((rows, 3 + len(FIGURES)))
        self._is_depth = True

    def update(self, predictions: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor) -> None:
        """
        Counts a batch.

        Args:
            predictions (`array_like` or `torch.Tensor` of any shape): In label units.
            labels (`array_like` or `torch.Tensor`):
                True labels, NaN where there is none, in the shape of the predictions; axes of length 1, as in
                `(B, 1, H, W)` beside `(B, H, W)`, may be there or not.

        Raises:
            `ValueError`: For shapes that do not fit together, infinite labels, and predictions that are NaN or
                infinite where there is a label (naming the first one's index). Nothing of such a batch is counted.
        """
        y, p = as_tensor(labels), as_tensor(predictions)
        p = reshaped(p, y, "predictions").to(y.device)
        if bool((y.isinf() | ~(y.isnan() | p.isfinite())).any()):
            refuse_where(y.isinf().cpu().numpy(), as_float64(y), "labels", "Write NaN where there is no label.")
            refuse_where((~y.isnan() & ~p.isfinite()).cpu().numpy(), as_float64(p), "predictions", DIVERGED)
        step = max(PIXELS_CPU if y.device.type == "cpu" else PIXELS_GPU, len(self._sums))
        for some, theirs in zip(torch.split(p.flatten(), step), torch.split(y.flatten(), step), strict=True):
            labelled = (~theirs.isnan()).nonzero().squeeze(1)
            self._count(some.index_select(0, labelled).double(), theirs.index_select(0, labelled).double())

    def compute(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            `dict`: As [`~conr_hf.metrics.shot_metrics`], with pixels as samples and without `spearman`; and where all
            labels are greater than 0, the `abs_rel`, `log10`, `delta1`, `delta2` and `delta3` of
            [`~conr_hf.metrics.depth_metrics`].

        Raises:
            `ValueError`: If no pixel had a label.
        """
        n = self._moments[:, 0]
        if not n.any():
            raise ValueError("There are no pixels to evaluate: every label is NaN. Pass maps with labels.")
        of_bins = shot_masks(self.bins.train_counts[0], self.bins.thresholds)
        shots = {"all": np.ones(len(n), dtype=bool)}
        shots |= {shot: np.append(mask, shot == "few") for shot, mask in of_bins.items()}
        return {shot: self._of(rows) for shot, rows in shots.items() if n[rows].any()}

    def fit(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: As [`~conr_hf.metrics.fit`], of pixels, but with `None` for the best constant, which is not known.
        """
        n, _, _, p, y, _ = (float(moment) for moment in _together(self._moments))
        r2 = 1 - float(self._sums[:, 1].sum()) / y if y > 0 else None
        stds = {"prediction_std": [max(p / n, 0.0) ** 0.5], "label_std": [max(y / n, 0.0) ** 0.5]}
        return {**stds, "r2": [r2], "best_constant": [None], "best_constant_mae": None}

    def of_bins(self) -> tuple[IntArray, FloatArray]:
        """
        Returns:
            For each of the B bins its pixels, `np.ndarray` of shape `(B,)`, int64, and their mean absolute error, in
            label units, float64, NaN where there is none.
        """
        n, total = self._moments[:-1, 0], self._sums[:-1, 0]
        return n.astype(np.int64), np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)

    def _of(self, rows: npt.NDArray[np.bool_]) -> dict[str, float]:
        moments, sums = self._moments[rows], self._sums[rows]
        n = int(moments[:, 0].sum())
        mae, mse, log, *depth = (float(total) for total in sums.sum(axis=0) / n)
        full = moments[:, 0] > 0
        bmae = float((sums[full, 0] / moments[full, 0]).mean())
        found = {"n": n, "mae": mae, "mse": mse, "rmse": mse**0.5, "gm": float(np.exp(log)), "bmae": bmae}
        pearson = _correlation(_together(moments))
        if pearson is not None:
            found["pearson"] = pearson
        return found | (dict(zip(FIGURES, depth, strict=True)) if self._is_depth else {})

    def _count(self, p: Tensor, y: Tensor) -> None:
        boundaries = torch.tensor(self.bins.boundaries[0], device=y.device)
        outside = len(self._sums) - 1
        row = torch.bucketize(y, boundaries, right=True) - 1  # -1 below the bins, B above them
        row = torch.where(row < 0, outside, row)
        error, positive = (p - y).abs(), y > 0
        floor = FLOAT32_EPS * float(np.ptp(self.bins.edges[0]))
        # A label that is not positive is no depth; `compute` then leaves depth errors out.
        depth = depth_errors(p, torch.where(positive, y, 1))
        parts = [error, error.square(), error.clamp(min=floor).log(), *depth]
        self._is_depth &= bool(positive.all())
        self._sums += self._summed(row, parts).cpu().numpy()
        self._moments = _together(np.stack([self._moments, self._moments_of(p, y, row).cpu().numpy()]))

    def _moments_of(self, p: Tensor, y: Tensor, row: Tensor) -> Tensor:
        """
        For each row: number of pixels, means of predictions and labels, and the sums of squares and of products of
        their deviations: `(B + 1, 6)`.
        """
        # Relative to some pixel of the same row: exactly 0 where all are equal, and small where the mean is large.
        like = [torch.zeros(len(self._sums), dtype=values.dtype, device=row.device) for values in (p, y)]
        like = [some.scatter_(0, row, values) for some, values in zip(like, (p, y), strict=True)]
        a, b = p - like[0].index_select(0, row), y - like[1].index_select(0, row)
        a_sum, b_sum, aa, bb, ab = self._summed(row, [a, b, a * a, b * b, a * b]).unbind(1)
        n = torch.bincount(row, minlength=len(self._sums)).double()
        u, v = a_sum / n.clamp(min=1), b_sum / n.clamp(min=1)
        return torch.stack([n, like[0] + u, like[1] + v, aa - a_sum * u, bb - b_sum * v, ab - a_sum * v], 1)

    def _summed(self, row: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """The sums of each of the parts over the pixels of each row: `(B + 1, len(parts))`, float64."""
        sums = torch.zeros(len(parts), len(self._sums), dtype=torch.float64, device=row.device)
        for total, part in zip(sums, parts, strict=True):
            total.scatter_add_(0, row, part.double())
        return sums.T


def _together(parts: FloatArray) -> FloatArray:
    """
    Moments of the union `(..., 6)` from those of several parts `(G, ..., 6)`.

    Source: Chan, Golub and LeVeque, ["Algorithms for Computing the Sample
    Variance"](https://doi.org/10.1080/00031305.1983.10483115), 1983.
    """
    n, p, y = parts[..., 0], parts[..., 1], parts[..., 2]
    total = n.sum(axis=0)
    some = np.maximum(total, 1)
    p_mean, y_mean = (n * p).sum(axis=0) / some, (n * y).sum(axis=0) / some
    p, y = p - p_mean, y - y_mean
    between = np.stack([n * p * p, n * y * y, n * p * y], axis=-1).sum(axis=0)
    means = np.stack([total, p_mean, y_mean], axis=-1)
    return np.concatenate([means, parts[..., 3:].sum(axis=0) + between], axis=-1)


def _correlation(moments: FloatArray) -> float | None:
    """Pearson's, `None` where predictions or labels are constant."""
    n, p, y, pp, yy, py = (float(moment) for moment in moments)
    if any(max(square / n, 0) <= (_SMALLEST_SPREAD * mean) ** 2 for square, mean in ((pp, p), (yy, y))):
        return None
    return float(np.clip(py / (pp * yy) ** 0.5, -1, 1))
