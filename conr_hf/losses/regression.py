"""
Per-row regression losses of residuals that are already divided by the label scale.

They return one number a row, so that the caller decides how rows are weighted and averaged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def l1(residuals: Tensor) -> Tensor:
    """
    Absolute error of each row.

    Args:
        residuals (`torch.Tensor` of shape `(M,)` or `(M, T)`): Prediction minus label, divided by the label scale.

    Returns:
        `torch.Tensor` of shape `(M,)`: the mean over the label dimensions, without unit, in float64 if the residuals
        are float64 and in float32 otherwise.

    Example:
        >>> l1(torch.tensor([[1.0, -3.0], [0.0, 0.5]]))
        tensor([2.0000, 0.2500])
    """
    return _mean_over_labels(_full_precision(residuals).abs())


def mse(residuals: Tensor) -> Tensor:
    """
    Squared error of each row.

    Args:
        residuals (`torch.Tensor` of shape `(M,)` or `(M, T)`): Prediction minus label, divided by the label scale.

    Returns:
        `torch.Tensor` of shape `(M,)`: the mean over the label dimensions, without unit, in float64 if the residuals
        are float64 and in float32 otherwise.

    Example:
        >>> mse(torch.tensor([[1.0, -3.0], [0.0, 0.5]]))
        tensor([5.0000, 0.1250])
    """
    return _mean_over_labels(_full_precision(residuals).square())


def huber(residuals: Tensor, delta: float = 1.0) -> Tensor:
    """
    Huber's loss of each row: half the squared error up to `delta`, linear beyond it.

    Args:
        residuals (`torch.Tensor` of shape `(M,)` or `(M, T)`): Prediction minus label, divided by the label scale.
        delta (`float`, *optional*, defaults to 1.0): Where the loss becomes linear, in label scales.

    Returns:
        `torch.Tensor` of shape `(M,)`: the mean over the label dimensions, without unit, in float64 if the residuals
        are float64 and in float32 otherwise.

    Raises:
        `ValueError`: if `delta` is not greater than 0.

    Source: Huber, "Robust Estimation of a Location Parameter", 1964.

    Example:
        >>> huber(torch.tensor([0.5, -3.0]), delta=1.0)
        tensor([0.1250, 2.5000])
    """
    if not delta > 0:
        raise ValueError(f"delta is {delta}; it must be greater than 0 (1 is one label scale).")
    residuals = _full_precision(residuals)
    return _mean_over_labels(F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none", delta=delta))


def _full_precision(residuals: Tensor) -> Tensor:
    return residuals if residuals.dtype == torch.float64 else residuals.float()


def _mean_over_labels(losses: Tensor) -> Tensor:
    if losses.ndim not in (1, 2):
        raise ValueError(f"residuals has shape {tuple(losses.shape)}; it must be (M,) or (M, T), one row a sample.")
    return losses if losses.ndim == 1 else losses.mean(1)
