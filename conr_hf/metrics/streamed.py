"""Errors of label maps by how common their labels are in training, gathered batch by batch."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins
from conr_hf.imbalance.bins import FLOAT32_EPS, FloatArray, IntArray
from conr_hf.metrics.depth import FIGURES, depth_errors
from conr_hf.metrics.inputs import DIVERGED, as_float64, refuse_where, reshaped
from conr_hf.metrics.shots import shot_masks

_SMALLEST_SPREAD = 1e-13  # of values in their mean; less of it is rounding


class StreamedErrors:
    """
    What [`~conr_hf.metrics.shot_metrics_from_bins`] finds, of more pixels than fit into memory: `update` with each
    batch of maps, then `compute`.

    All pixels with a label count alike, whichever map they are from. Sums and moments per bin are all that is kept.

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
        self._sums: FloatArray = np.zeros((rows, 4 + len(FIGURES)))

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
        y = as_float64(labels)
        p = reshaped(as_float64(predictions), y, "predictions")
        labelled = ~np.isnan(y)
        refuse_where(np.isinf(y), y, "labels", "Write NaN where there is no label.")
        refuse_where(labelled & ~np.isfinite(p), p, "predictions", DIVERGED)
        p, y = p[labelled], y[labelled]
        row = self.bins.index(y)[:, 0]
        row[row < 0] = len(self._sums) - 1
        error, positive = np.abs(p - y), y > 0
        depth = np.zeros((len(FIGURES), len(y)))
        depth[:, positive] = depth_errors(p[positive], y[positive])
        floor = FLOAT32_EPS * float(np.ptp(self.bins.edges[0]))
        parts = [error, error**2, np.log(np.maximum(error, floor)), positive, *depth]
        self._sums += np.stack([self._summed(row, part) for part in parts], axis=1)
        self._moments = _together(np.stack([self._moments, self._moments_of(p, y, row)]))

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
        is_depth = bool(self._sums[:, 3].sum() == n.sum())
        return {shot: self._of(rows, is_depth) for shot, rows in shots.items() if n[rows].any()}

    def of_bins(self) -> tuple[IntArray, FloatArray]:
        """
        Returns:
            For each of the B bins its pixels, `np.ndarray` of shape `(B,)`, int64, and their mean absolute error, in
            label units, float64, NaN where there is none.
        """
        n, total = self._moments[:-1, 0], self._sums[:-1, 0]
        return n.astype(np.int64), np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)

    def _of(self, rows: npt.NDArray[np.bool_], is_depth: bool) -> dict[str, float]:
        moments, sums = self._moments[rows], self._sums[rows]
        n = int(moments[:, 0].sum())
        mae, mse, log, _, *depth = (float(total) for total in sums.sum(axis=0) / n)
        full = moments[:, 0] > 0
        bmae = float((sums[full, 0] / moments[full, 0]).mean())
        found = {"n": n, "mae": mae, "mse": mse, "rmse": mse**0.5, "gm": float(np.exp(log)), "bmae": bmae}
        pearson = _correlation(_together(moments))
        if pearson is not None:
            found["pearson"] = pearson
        return found | (dict(zip(FIGURES, depth, strict=True)) if is_depth else {})

    def _moments_of(self, p: FloatArray, y: FloatArray, row: IntArray) -> FloatArray:
        """
        Of each row: how many pixels, means of predictions and labels, and the sums of squares and products of what
        differs from them: `(B + 1, 6)`.
        """
        n = np.bincount(row, minlength=len(self._sums)).astype(np.float64)
        some = np.maximum(n, 1)
        rough = [self._summed(row, values) / some for values in (p, y)]
        # Sums of as many equal numbers are off by some of their last digits, the means of what remains are not.
        a, b = p - rough[0][row], y - rough[1][row]
        rest = [self._summed(row, values) / some for values in (a, b)]
        squares = [self._summed(row, u * v) for u, v in ((a, a), (b, b), (a, b))]
        less = [n * rest[i] * rest[j] for i, j in ((0, 0), (1, 1), (0, 1))]
        means = [mean + more for mean, more in zip(rough, rest, strict=True)]
        return np.stack([n, *means, *(total - part for total, part in zip(squares, less, strict=True))], axis=1)

    def _summed(self, row: IntArray, values: npt.NDArray[np.generic]) -> FloatArray:
        sums: FloatArray = np.bincount(row, weights=values, minlength=len(self._sums)).astype(np.float64)
        return sums


def _together(parts: FloatArray) -> FloatArray:
    """
    Moments of several parts `(G, ..., 6)` as those of their union `(..., 6)`.

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
