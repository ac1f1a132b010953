"""The label distribution as a Gaussian mixture, for Balanced MSE."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance.bins import FloatArray, label_columns

MOST_LABELS = 100_000


def fit_mixture(
    labels: npt.ArrayLike | Tensor, components: int, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """
    Fits a Gaussian mixture with full covariances to the training labels.

    It is fitted to standardised labels, so that the label unit does not matter. Of more than 100,000 labels, such as
    those of pixels, it is fitted to as many, evenly spaced among the sorted ones (by their first dimension, then the
    next): their quantiles.

    Args:
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Training labels, in any unit.
        components (`int`): Gaussians (K). With fewer distinct labels, as many as these.
        seed (`int`): Of the fit's start; the same seed gives the same mixture.

    Returns:
        A tuple of three float64 `np.ndarray`: the weights of shape `(K,)`, with sum 1, the means of shape `(K, T)`, in
        the unit of the labels, and the covariances of shape `(K, T, T)`, in its square.

    Raises:
        `ValueError`: For fewer than one component or two labels, and for NaN or infinite labels.

    Source: Ren et al., "Balanced MSE for Imbalanced Visual Regression", CVPR 2022, arXiv 2203.16427 (GAI).
    """
    from sklearn.mixture import GaussianMixture

    if components < 1:
        raise ValueError(f"components is {components}; it must be 1 or more (8 suits ages).")
    columns = label_columns(labels)  # (N, T)
    if len(columns) < 2:
        raise ValueError(f"There are {len(columns)} training labels. A mixture needs two or more.")
    if len(columns) > MOST_LABELS:
        one = columns.shape[1] == 1
        ordered = np.sort(columns, axis=0) if one else columns[np.lexsort(columns.T[::-1])]
        columns = ordered[((np.arange(MOST_LABELS) + 0.5) * (len(ordered) / MOST_LABELS)).astype(np.int64)]
    centre, scale = columns.mean(0), columns.std(0)
    scale = np.where(scale > 0, scale, 1)
    distinct = len(np.unique(columns, axis=0))
    fitted = GaussianMixture(min(components, distinct), random_state=seed).fit((columns - centre) / scale)
    weights = np.asarray(fitted.weights_, dtype=np.float64)
    return weights, centre + scale * fitted.means_, fitted.covariances_ * scale[:, None] * scale
