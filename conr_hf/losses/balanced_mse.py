"""
Balanced MSE: the squared error of a model that is corrected for how labels are distributed in training.

A prediction is taken as the centre of a Gaussian noise over the true label, and divided by the probability that labels
of the training set would give it. The three functions differ in where these labels come from. Predictions, labels and
noise are all divided by the label scale, and each function returns one number a row. The rows of a call may be pixels,
millions of them: nothing is kept of all rows times all candidates, components or bins. There is no second derivative.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from conr_hf.losses.blockwise import Slopes, in_blocks
from conr_hf.losses.pairs import may_look


class Mixture(NamedTuple):
    """
    A Gaussian mixture over labels, as [`make_mixture`] makes it.

    Args:
        weights (`torch.Tensor` of shape `(K,)`): Share of each component.
        means (`torch.Tensor` of shape `(K, T)`): Their centres, in label scales.
        variances (`torch.Tensor` of shape `(K, T)`): Eigenvalues of their covariances, in squared label scales.
        rotations (`torch.Tensor` of shape `(K, T, T)`): Eigenvectors of their covariances, one a column.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    rotations: Tensor


def make_mixture(weights: Tensor, means: Tensor, covariances: Tensor) -> Mixture:
    """
    A mixture in the form that [`gai`] reads: noise adds to a covariance's eigenvalues and leaves its eigenvectors.

    Args:
        weights (`torch.Tensor` of shape `(K,)`): Share of each component, positive, with sum 1.
        means (`torch.Tensor` of shape `(K, T)`): Their centres, in label scales.
        covariances (`torch.Tensor` of shape `(K, T, T)`): Their covariances, in squared label scales, symmetric.

    Returns:
        [`Mixture`], of the dtypes and on the device of the tensors.

    Raises:
        `ValueError`: for tensors that do not fit together, weights that are no shares, and a covariance that is none.

    Example:
        >>> mixture = make_mixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))
        >>> mixture.variances
        tensor([[1., 2.]])
    """
    if means.ndim != 2 or len(means) == 0:
        raise ValueError(f"means has shape {tuple(means.shape)}; it must be (K, T), one row a component.")
    components, dims = means.shape
    if covariances.shape != (components, dims, dims):
        raise ValueError(
            f"covariances has shape {tuple(covariances.shape)}; it must be {(components, dims, dims)}, one matrix for "
            "each row of means."
        )
    _check_shares("weights", weights, components)
    variances, rotations = torch.linalg.eigh(covariances)
    floor = -1e-5 * variances.abs().amax()
    if not (variances >= floor).all():
        k = int((variances >= floor).all(1).int().argmin())
        raise ValueError(
            f"covariances[{k}] has the eigenvalues {variances[k].tolist()}; none may be negative: pass variances and "
            "covariances, not their inverses or roots."
        )
    return Mixture(weights, means, variances.clamp(min=0), rotations)


def bmc(predictions: Tensor, labels: Tensor, candidates: Tensor, noise: Tensor) -> Tensor:
    """
    Balanced MSE of each row by the labels of the batch (batch-based Monte Carlo).

    With p and y a row's prediction and label, c_j the candidates and s the noise, the loss is
    `2 s^2 (|p - y|^2 / (2 s^2) + logsumexp_j(-|p - c_j|^2 / (2 s^2)))`: the cross-entropy of choosing y among the
    candidates. No gradient goes through the factor in front.

    Args:
        predictions (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label scales, of any dtype.
        labels (`torch.Tensor` of the shape of `predictions`): In label scales.
        candidates (`torch.Tensor` of shape `(K,)` or `(K, T)`):
            Labels of all samples of the batch, over all processes, each once, the rows' own among them.
        noise (`torch.Tensor` of shape `()`): Standard deviation of the noise, in label scales, greater than 0.

    Returns:
        `torch.Tensor` of shape `(M,)`: the loss of each row, without unit, not negative, in float64 if predictions or
        labels are float64 and in float32 otherwise. It has a gradient in `predictions` and in `noise`.

    Raises:
        `ValueError`: for tensors that do not fit together, fewer than two candidates, and, in eager mode on CPU, a
            noise that is not greater than 0.

    Source: Ren et al., "Balanced MSE for Imbalanced Visual Regression", CVPR 2022, arXiv 2203.16427 (BMC).

    Example:
        >>> labels = torch.tensor([0.0, 1.0])
        >>> bmc(torch.tensor([0.5, 1.0]), labels, labels, torch.tensor(1.0))
        tensor([1.3863, 0.9482])
    """
    if len(candidates) < 2:
        raise ValueError(
            f"candidates holds {len(candidates)} label; bmc must choose among 2 or more, or its loss is 0 whatever "
            "the prediction. Use a larger batch, or base_loss gai or bni."
        )
    predictions, labels, noise = _prepare(predictions, labels, noise)
    candidates = _columns("candidates", candidates, predictions)
    return _nearness_loss(predictions, labels, candidates, noise.new_zeros(()), noise)


def gai(predictions: Tensor, labels: Tensor, mixture: Mixture, noise: Tensor) -> Tensor:
    """
    Balanced MSE of each row by a Gaussian mixture of the training labels (GMM-based analytical integration).

    With p and y a row's prediction and label, s the noise and `pi_k`, `mu_k`, `V_k` the mixture, the loss is
    `2 s^2 (|p - y|^2 / (2 s^2) + T/2 log s^2 + logsumexp_k(log pi_k + log N(p; mu_k, V_k + s^2 I)))`, where N goes
    without its power of 2 pi. No gradient goes through the factor in front.

    Args:
        predictions (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label scales, of any dtype.
        labels (`torch.Tensor` of the shape of `predictions`): In label scales.
        mixture ([`Mixture`]): Of the training labels in label scales, on the device of the predictions.
        noise (`torch.Tensor` of shape `()`): Standard deviation of the noise, in label scales, greater than 0.

    Returns:
        `torch.Tensor` of shape `(M,)`: the loss of each row, without unit, in float64 if predictions or labels are
        float64 and in float32 otherwise. It may be negative. It has a gradient in `predictions` and in `noise`.

    Raises:
        `ValueError`: for tensors that do not fit together, and, in eager mode on CPU, a noise that is not greater
            than 0.

    Source: Ren et al., "Balanced MSE for Imbalanced Visual Regression", CVPR 2022, arXiv 2203.16427 (GAI).

    Example:
        >>> mixture = make_mixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
        >>> gai(torch.tensor([1.0]), torch.tensor([2.0]), mixture, torch.tensor(1.0))
        tensor([-0.1931])
    """
    predictions, labels, noise = _prepare(predictions, labels, noise)
    weights, means, variances, rotations = (part.to(predictions.dtype) for part in mixture)
    means = _columns("mixture.means", means, predictions)

    def of_block(predictions: Tensor, labels: Tensor, noise: Tensor) -> Slopes:
        variance = noise.square()
        spreads = variances + variance  # (K, T)
        offsets = _turned(predictions[:, None] - means, rotations.mT)  # (M, K, T)
        # T/2 log s2 - 1/2 sum log(v + s2) in one, so that no large logarithms cancel.
        normalisers = torch.log1p(variances / variance).sum(1)  # (K,)
        distances = (offsets.square() / spreads).sum(2)  # (M, K)
        logits = weights.log() - (normalisers + distances) / 2
        shares = logits.softmax(1)
        residuals = predictions - labels
        losses = residuals.square().sum(1) + 2 * variance * logits.logsumexp(1)
        pulls = _turned(offsets / spreads, rotations)
        slopes = 2 * (residuals - variance * (shares[:, :, None] * pulls).sum(1))
        # Of -(normalisers + distances) / 2, times 2 s^2; the error's own goes into its division by s^2.
        nearer = 2 * noise * ((variances / spreads).sum(1) + variance * (offsets / spreads).square().sum(2))
        return losses, slopes, (shares * nearer).sum(1) - 2 * residuals.square().sum(1) / noise

    return in_blocks(of_block, predictions, labels, noise, means.numel())


def bni(predictions: Tensor, labels: Tensor, centres: Tensor, frequencies: Tensor, noise: Tensor) -> Tensor:
    """
    Balanced MSE of each row by bins of the training labels (bin-based numerical integration).

    With p and y a row's prediction and label, c_b and f_b the bins' centres and frequencies and s the noise, the loss
    is `2 s^2 (|p - y|^2 / (2 s^2) + logsumexp_b(log f_b - |p - c_b|^2 / (2 s^2)))`. No gradient goes through the
    factor in front.

    Args:
        predictions (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label scales, of any dtype.
        labels (`torch.Tensor` of the shape of `predictions`): In label scales.
        centres (`torch.Tensor` of shape `(B,)` or `(B, T)`): Of the bins, in label scales.
        frequencies (`torch.Tensor` of shape `(B,)`): Shares of the training labels, positive, with sum 1.
        noise (`torch.Tensor` of shape `()`): Standard deviation of the noise, in label scales, greater than 0.

    Returns:
        `torch.Tensor` of shape `(M,)`: the loss of each row, without unit, in float64 if predictions or labels are
        float64 and in float32 otherwise. It may be negative. It has a gradient in `predictions` and in `noise`.

    Raises:
        `ValueError`: for tensors that do not fit together, and, in eager mode on CPU, for frequencies that are no
            shares and a noise that is not greater than 0.

    Source: Ren et al., "Balanced MSE for Imbalanced Visual Regression", CVPR 2022, arXiv 2203.16427 (BNI).

    Example:
        >>> centres, frequencies = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
        >>> bni(torch.tensor([0.5]), torch.tensor([0.0]), centres, frequencies, torch.tensor(1.0))
        tensor([0.])
    """
    predictions, labels, noise = _prepare(predictions, labels, noise)
    centres = _columns("centres", centres, predictions)
    _check_shares("frequencies", frequencies, len(centres))
    return _nearness_loss(predictions, labels, centres, frequencies.to(predictions.dtype).log(), noise)


def _nearness_loss(predictions: Tensor, labels: Tensor, centres: Tensor, log_weights: Tensor, noise: Tensor) -> Tensor:
    """`2 s^2 (|p - y|^2 / (2 s^2) + logsumexp_b(log_weights_b - |p - c_b|^2 / (2 s^2)))` of shape `(M,)`."""

    def of_block(predictions: Tensor, labels: Tensor, noise: Tensor) -> Slopes:
        variance = noise.square()
        errors = (predictions - labels).square().sum(1, keepdim=True)  # (M, 1)
        nearer = errors - (predictions[:, None] - centres).square().sum(2)  # (M, B)
        logits = log_weights + nearer / (2 * variance)
        shares = logits.softmax(1)
        slopes = 2 * (shares[:, :, None] * (centres - labels[:, None])).sum(1)
        return 2 * variance * logits.logsumexp(1), slopes, -2 / noise * (shares * nearer).sum(1)

    return in_blocks(of_block, predictions, labels, noise, centres.numel())


def _turned(offsets: Tensor, rotations: Tensor) -> Tensor:
    """Vectors of shape `(M, K, T)`, each times its component's matrix; of one dimension as they are."""
    if offsets.shape[2] == 1:
        return offsets
    with torch.autocast(offsets.device.type, enabled=False):
        return torch.einsum("mku,ktu->mkt", offsets, rotations)


def _prepare(predictions: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and labels of shape `(M, T)` and the noise, in the dtype that the loss is computed in."""
    if predictions.ndim not in (1, 2):
        raise ValueError(
            f"predictions has shape {tuple(predictions.shape)}; it must be (M,) or (M, T), one row a sample."
        )
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; it must be that of predictions, {tuple(predictions.shape)}: "
            "reshape one of them."
        )
    if noise.ndim != 0:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; it must be one number, a tensor of shape ().")
    if may_look(noise) and not noise > 0:
        raise ValueError(f"noise is {noise.item()}; it must be greater than 0, in label scales.")
    dtype = torch.float64 if torch.float64 in (predictions.dtype, labels.dtype) else torch.float32
    if predictions.ndim == 1:
        predictions, labels = predictions[:, None], labels[:, None]
    return predictions.to(dtype), labels.to(dtype), noise.to(dtype)


def _columns(name: str, values: Tensor, predictions: Tensor) -> Tensor:
    """Labels of shape `(K,)` or `(K, T)` as `(K, T)`, in the dtype of the predictions."""
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or len(columns) == 0 or columns.shape[1] != predictions.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; it must be one row a label, with the label dimensions of "
            f"predictions, {predictions.shape[1]}."
        )
    return columns.to(predictions.dtype)


def _check_shares(name: str, shares: Tensor, count: int) -> None:
    if shares.shape != (count,):
        raise ValueError(f"{name} has shape {tuple(shares.shape)}; it must be {(count,)}, one number each.")
    if may_look(shares) and not ((shares > 0).all() and abs(shares.double().sum() - 1) < 1e-4):
        raise ValueError(
            f"{name} has sum {shares.sum().item()} and smallest entry {shares.min().item()}; the entries must be "
            "greater than 0 with sum 1: leave out empty ones and divide by the sum."
        )
