"""Labels that are a direction: what goes with the columns pitch and yaw."""

import math

import numpy as np
from transformers.utils import logging

from conr_hf.config import ConRConfig
from conr_hf.data_config import GAZE
from conr_hf.imbalance import Bins
from conr_hf.metrics import angular_error, shot_metrics_from_bins
from conr_hf.metrics.shots import sample_shots

logger = logging.get_logger(__name__)


def label_errors(
    predictions: np.ndarray, labels: np.ndarray, bins: Bins, columns: list[str]
) -> dict[str, dict[str, float]]:
    """
    [`~conr_hf.metrics.shot_metrics_from_bins`], and of pitch and yaw `angular_error` too: the mean angle between true
    and predicted direction, in degrees. It is left out where the labels are no radians.

    Args:
        predictions (`np.ndarray` of shape `(N,)` or `(N, T)`): In label units.
        labels (`np.ndarray` like `predictions`): True labels.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        columns (`list[str]`): The label columns.

    Example:
        >>> straight, left = [[0.0, 0.0]] * 2, [[0.0, 0.1]] * 2
        >>> bins = Bins((np.array([-1.0, 1.0]),) * 2, (np.array([500]),) * 2)
        >>> round(label_errors(straight, left, bins, ["pitch", "yaw"])["many"]["angular_error"], 3)
        5.73
    """
    metrics = shot_metrics_from_bins(predictions, labels, bins)
    if columns == GAZE and _in_radians(labels):
        angles = angular_error(predictions, labels)
        rows = {"all": np.ones(len(angles), bool), **sample_shots(labels, bins)}
        for shot, values in metrics.items():
            values["angular_error"] = float(angles[rows[shot]].mean())
    return metrics


def check_directions(labels: dict[str, np.ndarray], args: ConRConfig, has_own_metrics: bool) -> None:
    """
    Warns of pitch and yaw that are no radians.

    Args:
        labels (`dict[str, np.ndarray]`): By the name of their data set, of shape `(N, T)`, in label units.
        args ([`ConRConfig`]): The settings.
        has_own_metrics (`bool`): Whether the user has metrics of their own.

    Raises:
        `ValueError`: for labels that are no radians where `conr_distance` or `metric_for_best_model` need them.
    """
    is_gaze, angles_choose = args.label_columns == GAZE, str(args.metric_for_best_model).endswith("angular_error")
    if angles_choose and not is_gaze and not has_own_metrics:
        raise ValueError(
            f"metric_for_best_model is {args.metric_for_best_model}, but label_columns is {args.label_columns}; the "
            "angle is that of the columns pitch and yaw, in this order."
        )
    if not is_gaze and args.conr_distance != "angular":
        return
    for name, some in labels.items():
        if _in_radians(some):
            continue
        seen = (
            f"{' and '.join(args.label_columns)} of {name} run from {some.min():.1f} to {some.max():.1f}, more than a "
            "half turn: radians are expected; np.radians makes them of degrees."
        )
        if args.conr_distance == "angular":
            raise ValueError(f"conr_distance is angular, and {seen}")
        if angles_choose and not has_own_metrics:
            raise ValueError(f"metric_for_best_model is {args.metric_for_best_model}, and {seen}")
        logger.warning(f"{seen} The angular error is left out.")


def _in_radians(labels: np.ndarray) -> bool:
    return bool(np.abs(labels).max(initial=0.0) <= math.pi)
