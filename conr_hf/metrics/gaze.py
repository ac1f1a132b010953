"""Errors of gaze: the angle between predicted and true direction."""

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins
from conr_hf.imbalance.bins import FloatArray
from conr_hf.metrics.shots import sample_shots, shot_metrics_from_bins
from conr_hf.metrics.validation import like_labels

GAZE = ["pitch", "yaw"]  # label columns that are a direction


def angular_error(predictions: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor) -> FloatArray:
    """
    Angles between predicted and true directions of gaze.

    (pitch p, yaw y) is the unit vector (-cos p sin y, -sin p, -cos p cos y), as in MPIIGaze. The angle is
    taken from cross and dot product together, which is exact for small angles and opposite directions too, where the
    arc cosine of the dot product loses half of the digits.

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N, 2)`): Pitch and yaw, in radians.
        labels (`array_like` or `torch.Tensor` of shape `(N, 2)`): True pitch and yaw of the same samples, in radians.

    Returns:
        `np.ndarray` of shape `(N,)`, float64: angles in degrees, 0 to 180.

    Raises:
        `ValueError`: For other shapes, for NaN or infinite angles, and for labels beyond a full turn, as degrees are.

    Source: Zhang et al., ["Appearance-Based Gaze Estimation in the Wild"](https://arxiv.org/abs/1504.02863).

    Example:
        >>> angular_error([[0.0, 0.0], [0.1, 0.0]], [[0.0, np.pi / 2], [0.1, 0.0]])
        array([90.,  0.])
    """
    p = like_labels(predictions, labels)
    if p.ndim != 2 or p.shape[1] != 2:
        raise ValueError(f"labels have shape {np.shape(labels)}. Gaze is pitch and yaw: pass shape (N, 2).")
    y = like_labels(labels, labels)
    turned = np.argwhere(np.abs(y) > 2 * np.pi)
    if len(turned):
        row, column = turned[0]
        raise ValueError(
            f"labels[{row}, {column}] is {y[row, column]}, more than a turn. "
            "Pass radians; np.radians makes them of degrees."
        )
    a, b = _direction(p), _direction(y)
    across = np.linalg.norm(np.cross(a, b), axis=1)
    angles: FloatArray = np.degrees(np.arctan2(across, (a * b).sum(axis=1)))
    return angles


def _direction(angles: FloatArray) -> FloatArray:
    pitch, yaw = angles.T
    return np.stack([-np.cos(pitch) * np.sin(yaw), -np.sin(pitch), -np.cos(pitch) * np.cos(yaw)], axis=1)


def label_errors(
    predictions: np.ndarray, labels: np.ndarray, bins: Bins, columns: list[str]
) -> dict[str, dict[str, float]]:
    """
    [`~conr_hf.metrics.shot_metrics_from_bins`], and for pitch and yaw in radians also `angular_error`, the mean angle
    between true and predicted direction, in degrees. `columns` are the names of the label columns.
    """
    metrics = shot_metrics_from_bins(predictions, labels, bins)
    if columns == GAZE and in_radians(labels):
        angles = angular_error(predictions, labels)
        rows = {"all": np.ones(len(angles), bool), **sample_shots(labels, bins)}
        for shot, values in metrics.items():
            values["angular_error"] = float(angles[rows[shot]].mean())
    return metrics


def in_radians(labels: np.ndarray) -> bool:
    return bool(np.abs(labels).max(initial=0.0) <= math.pi)
