"""Errors per shot for the `evaluate` library."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, make_bins
from conr_hf.metrics.shots import Thresholds, flat, shot_metrics_from_bins


class ShotMetrics(evaluate.Metric):  # type: ignore[misc]
    """
    [`~conr_hf.metrics.shot_metrics`] as an `evaluate.Metric`: `add` or `add_batch(predictions=..., references=...)`,
    then `compute` with the training labels or the bins made from them. Results are named as by
    [`~conr_hf.metrics.flat`].

    `evaluate.combine` passes all arguments of `compute` to every metric, which others do not accept: pass the bins to
    this class instead.

    Nothing is downloaded. Predictions are kept in memory; only with `num_process` greater than 1 they are written to
    `cache_dir`, through which the processes share them, and empty lock files are left there.

    Args:
        bins ([`~conr_hf.imbalance.Bins`], *optional*): Bins of the training labels. Unset: an argument of `compute`.
        thresholds (`tuple`, *optional*, defaults to those of the bins): As in [`~conr_hf.metrics.shot_metrics`].
        keep_in_memory (`bool`, *optional*, defaults to `True`): As in `evaluate.Metric`; not with several processes.
        **kwargs: Other arguments of `evaluate.Metric`.

    `compute` takes, beside `predictions` and `references`, either `train_labels`, with `bin_width` or `edges`, as in
    [`~conr_hf.metrics.shot_metrics`], or `bins`; and other `thresholds`.

    Example:
        >>> metric = ShotMetrics()
        >>> metric.add_batch(predictions=[31.0, 33.0], references=[30, 30])
        >>> metric.compute(train_labels=[30, 30, 31])["few_mae"]
        2.0
        >>> both = evaluate.combine({"a": ShotMetrics(make_bins([30])), "b": ShotMetrics(make_bins([30] * 50))})
        >>> found = both.compute(predictions=[31.0], references=[30])
        >>> found["few_mae"], found["median_mae"], found["a_mae"], found["b_mae"]
        (1.0, 1.0, 1.0, 1.0)
    """

    def __init__(
        self,
        bins: Bins | None = None,
        thresholds: Thresholds | None = None,
        *,
        keep_in_memory: bool = True,
        **kwargs: Any,
    ) -> None:
        self.bins, self.thresholds = bins, thresholds
        super().__init__(keep_in_memory=keep_in_memory and kwargs.get("num_process", 1) == 1, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number, numbers = datasets.Value("float64"), datasets.List(datasets.Value("float64"))
        shapes = [(number, number), (numbers, number), (numbers, numbers)]  # (N,), (N, 1) beside (N,), and (N, T)
        return evaluate.MetricInfo(
            description="Errors over all samples and by how many training labels their label's bin holds.",
            citation="Delving into Deep Imbalanced Regression, https://huggingface.co/papers/2102.09554",
            inputs_description="predictions, references; compute: train_labels, bins, bin_width, edges, thresholds.",
            features=[datasets.Features({"predictions": p, "references": r}) for p, r in shapes],
        )

    def _build_data_dir(self) -> str:
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _finalize(self) -> None:
        if self.writer is None:
            raise ValueError("There are no samples to evaluate. Add some, or pass predictions and references.")
        super()._finalize()

    def _compute(
        self,
        predictions: npt.ArrayLike,
        references: npt.ArrayLike,
        train_labels: npt.ArrayLike | Tensor | None = None,
        bins: Bins | None = None,
        bin_width: float | Sequence[float] | None = None,
        edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
        thresholds: Thresholds | None = None,
    ) -> dict[str, float]:
        if train_labels is not None and bins is not None:
            raise ValueError("Both train_labels and bins are given. Leave one of them out.")
        if train_labels is not None:
            bins = make_bins(train_labels, bin_width, edges)
        elif bin_width is not None or edges is not None:
            raise ValueError("bin_width and edges are for bins of train_labels, which are missing. Pass them too.")
        bins = self.bins if bins is None else bins
        if bins is None:
            raise ValueError("Shots need the training labels. Pass compute train_labels or bins, or ShotMetrics bins.")
        thresholds = self.thresholds if thresholds is None else thresholds
        return flat(shot_metrics_from_bins(predictions, references, bins, thresholds))
