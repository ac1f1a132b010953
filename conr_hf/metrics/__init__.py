"""Errors of predictions: by how common their labels are in training, of depth maps, of gaze; they need no trainer."""

from conr_hf.imbalance.bins import THRESHOLDS
from conr_hf.metrics.depth import DepthErrors, depth_metrics
from conr_hf.metrics.for_evaluate import ShotMetrics
from conr_hf.metrics.gaze import angular_error
from conr_hf.metrics.inputs import like_labels
from conr_hf.metrics.intervals import shot_intervals
from conr_hf.metrics.shots import (
    Thresholds,
    constant_median,
    flat,
    sample_shots,
    shot_masks,
    shot_metrics,
    shot_metrics_from_bins,
)

__all__ = [
    "THRESHOLDS",
    "DepthErrors",
    "ShotMetrics",
    "Thresholds",
    "angular_error",
    "constant_median",
    "depth_metrics",
    "flat",
    "like_labels",
    "sample_shots",
    "shot_intervals",
    "shot_masks",
    "shot_metrics",
    "shot_metrics_from_bins",
]
