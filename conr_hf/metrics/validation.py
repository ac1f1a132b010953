"""Checks of predictions against their labels: same shape, and finite."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conr_hf.imbalance import label_columns
from conr_hf.imbalance.bins import FloatArray

Maps = TypeVar("Maps", FloatArray, Tensor)

DIVERGED = "The model may have diverged; try a lower learning rate."


def like_labels(predictions: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor) -> FloatArray:
    """
    Predictions in the shape of the labels: `(N, 1)` from a model with one output becomes `(N,)` where labels are.

    Subtracting `(N,)` from `(N, 1)` would silently give `(N, N)`; all metrics use this instead.

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Predictions.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels.

    Returns:
        `np.ndarray` in the shape of the labels, float64.

    Raises:
        `ValueError`: For shapes that do not fit together, and for NaN or infinite values in either.

    Example:
        >>> like_labels([[1.0], [2.0]], [1, 3])
        array([1., 2.])
    """
    p = label_columns(predictions, "predictions", mend=DIVERGED)
    y = label_columns(labels)
    if p.shape != y.shape:
        raise ValueError(
            f"predictions have shape {np.shape(predictions)} and labels {np.shape(labels)}. "
            "Pass one prediction for each label, with the same label dimensions."
        )
    return p.reshape(np.shape(labels))


def as_float64(values: npt.ArrayLike | Tensor) -> FloatArray:
    """Numbers of any kind, on any device, as a float64 array."""
    return np.asarray(values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values, np.float64)


def as_tensor(values: npt.ArrayLike | Tensor) -> Tensor:
    """A tensor as it is, detached, or numbers of any kind as a float64 one; on a device that has float64."""
    if isinstance(values, Tensor):
        return values.detach().cpu() if values.device.type == "mps" else values.detach()
    return torch.from_numpy(np.asarray(values, np.float64))


def reshaped(values: Maps, labels: Maps, name: str) -> Maps:
    """Maps in the shape of the labels, from which they may differ by axes of length 1 only."""
    if values.squeeze().shape != labels.squeeze().shape:
        raise ValueError(
            f"{name} is of shape {tuple(values.shape)} and labels of {tuple(labels.shape)}. Pass maps of one shape."
        )
    return values.reshape(labels.shape)


def refuse_where(bad: npt.NDArray[np.bool_], values: FloatArray, name: str, mend: str) -> None:
    """Raises a `ValueError` if any of `bad` is true, naming the first one's index and value."""
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}[{', '.join(map(str, place))}] is {values[place]}. {mend}")
