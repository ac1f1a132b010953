"""
Errors of predictions: by how common their labels are in training, of depth maps, of gaze; they need no trainer.

`ShotMetrics` is loaded on first use, as the `evaluate` library loads transformers, which takes seconds.
"""

from typing import TYPE_CHECKING, Any

from conr_hf.imbalance.bins import THRESHOLDS
from conr_hf.metrics.bootstrap import shot_intervals
from conr_hf.metrics.depth import DepthErrors, depth_metrics
from conr_hf.metrics.fit import fit
from conr_hf.metrics.gaze import angular_error
from conr_hf.metrics.shots import (
    SHOTS,
    Thresholds,
    constant_median,
    flat,
    sample_shots,
    shot_masks,
    shot_metrics,
    shot_metrics_from_bins,
)
from conr_hf.metrics.streaming import StreamedErrors
from conr_hf.metrics.validation import like_labels

if TYPE_CHECKING:
    from conr_hf.metrics.hf_evaluate import ShotMetrics

__all__ = [
    "SHOTS",
    "THRESHOLDS",
    "DepthErrors",
    "ShotMetrics",
    "StreamedErrors",
    "Thresholds",
    "angular_error",
    "constant_median",
    "depth_metrics",
    "fit",
    "flat",
    "like_labels",
    "sample_shots",
    "shot_intervals",
    "shot_masks",
    "shot_metrics",
    "shot_metrics_from_bins",
]


def __getattr__(name: str) -> Any:
    if name != "ShotMetrics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from conr_hf.metrics.hf_evaluate import ShotMetrics

    return ShotMetrics
