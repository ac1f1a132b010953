"""
Per-row regression losses of residuals that are already divided by the label scale.

They return one number a row, so that the caller decides how rows are weighted and averaged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from conr_hf.losses.validation import check_range


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


def focal_l1(residuals: Tensor, beta: float, gamma: float = 1.0) -> Tensor:
    """
    Focal-R: absolute error of each row, small errors counted less.

    Each error `|r|` is multiplied by `(2 sigmoid(beta |r|) - 1)^gamma`, which grows from 0 to 1 with it. The gradient
    goes through this factor too.

    Args:
        residuals (`torch.Tensor` of shape `(M,)` or `(M, T)`): Prediction minus label, divided by the label scale.
        beta (`float`): How fast the factor grows with the error, per label scale, greater than 0.
        gamma (`float`, *optional*, defaults to 1.0): Power of the factor, not negative; 0 is [`l1`].

    Returns:
        `torch.Tensor` of shape `(M,)`: the mean over the label dimensions, without unit, in float64 if the residuals
        are float64 and in float32 otherwise.

    Raises:
        `ValueError`: if `beta` is not greater than 0 or `gamma` is negative.

    Source: Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021, arXiv 2102.09554 (Focal-R).

    Example:
        >>> focal_l1(torch.tensor([[1.0, -3.0], [0.0, 0.5]]), beta=2.0)
        tensor([1.8734, 0.1155])
    """
    residuals = _full_precision(residuals)
    return _mean_over_labels(residuals.abs() * _focal_factor(residuals, beta, gamma))


def focal_mse(residuals: Tensor, beta: float, gamma: float = 1.0) -> Tensor:
    """
    Focal-R: squared error of each row, small errors counted less.

    Each squared error is multiplied by `(2 sigmoid(beta |r|) - 1)^gamma`, which grows from 0 to 1 with `|r|`. The
    gradient goes through this factor too.

    Args:
        residuals (`torch.Tensor` of shape `(M,)` or `(M, T)`): Prediction minus label, divided by the label scale.
        beta (`float`): How fast the factor grows with the error, per label scale, greater than 0.
        gamma (`float`, *optional*, defaults to 1.0): Power of the factor, not negative; 0 is [`mse`].

    Returns:
        `torch.Tensor` of shape `(M,)`: the mean over the label dimensions, without unit, in float64 if the residuals
        are float64 and in float32 otherwise.

    Raises:
        `ValueError`: if `beta` is not greater than 0 or `gamma` is negative.

    Source: Yang et al., "Delving into Deep Imbalanced Regression", ICML 2021, arXiv 2102.09554 (Focal-R).

    Example:
        >>> focal_mse(torch.tensor([[1.0, -3.0], [0.0, 0.5]]), beta=2.0)
        tensor([4.8585, 0.0578])
    """
    residuals = _full_precision(residuals)
    return _mean_over_labels(residuals.square() * _focal_factor(residuals, beta, gamma))


def _focal_factor(residuals: Tensor, beta: float, gamma: float) -> Tensor:
    check_range("beta", beta, ", per label scale")
    check_range("gamma", gamma, " (1 is the paper's value)", or_zero=True)
    # 2 sigmoid(x) - 1, without the rounding of a difference. Not quite 0, where a power below 1 has no slope.
    factor = (residuals.abs() * (beta / 2)).tanh().clamp(min=torch.finfo(residuals.dtype).tiny)
    return factor**gamma


def _full_precision(residuals: Tensor) -> Tensor:
    return residuals if residuals.dtype == torch.float64 else residuals.float()


def _mean_over_labels(losses: Tensor) -> Tensor:
    if losses.ndim not in (1, 2):
        raise ValueError(f"residuals has shape {tuple(losses.shape)}; it must be (M,) or (M, T), one row a sample.")
    return losses if losses.ndim == 1 else losses.mean(1)
