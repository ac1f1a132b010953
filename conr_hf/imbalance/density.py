"""Weights from label density: the rarer a label among the training labels, the more it weighs."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conr_hf.imbalance.bins import Bins, FloatArray, IntArray
from conr_hf.imbalance.kernels import check_kernel

DensityMethod = Literal["none", "inverse", "sqrt_inverse"]


def density_weights(
    labels: npt.ArrayLike | Tensor,
    bins: Bins,
    method: DensityMethod,
    kernel: npt.ArrayLike | None = None,
    train_labels: npt.ArrayLike | Tensor | None = None,
) -> FloatArray:
    """
    One weight per label, with mean 1 over the training labels.

    With n the number of training labels in a bin, the weight of its labels is proportional to 1 / v, where

    - `"none"`: v = 1;
    - `"inverse"`: v = n, clipped to 5 .. 1000;
    - `"sqrt_inverse"`: v = sqrt(n).

    A kernel smooths v over neighbouring bins (label distribution smoothing, LDS), in units of its middle entry; beyond
    the first and the last bin v counts as 0. With `"none"` it changes nothing.

    A v below 1, in bins without training labels, counts as 1, so that no weight is infinite. Labels outside all bins
    weigh like a single training label, unsmoothed. Several label dimensions are weighed, and smoothed, one by one; a
    label weighs what its rarest coordinate does.

    Source: re-weighting and label distribution smoothing of [Delving into Deep Imbalanced
    Regression](https://huggingface.co/papers/2102.09554).

    Args:
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels to weigh, in label units.
        bins ([`Bins`]): Bins with the training counts.
        method (`str`): `"none"`, `"inverse"` or `"sqrt_inverse"`.
        kernel (`array_like` of shape `(K,)`, *optional*):
            Smooths along bins, as [`smoothing_kernel`] makes it. Unset: no smoothing.
        train_labels (`array_like` or `torch.Tensor` of shape `(M,)` or `(M, T)`, *optional*):
            The labels over which the mean weight is 1. Unset: `labels`, which then are the training labels.

    Returns:
        `np.ndarray` of shape `(N,)`, float64: weights without unit, greater than 0.

    Raises:
        `ValueError`: For an unknown method, a kernel that is none, for no training labels, and for labels that do not
            fit the bins.

    Example:
        >>> from conr_hf.imbalance import make_bins
        >>> ages = [30, 30, 30, 30, 71]
        >>> density_weights(ages, make_bins(ages), "sqrt_inverse")
        array([0.83333333, 0.83333333, 0.83333333, 0.83333333, 1.66666667])
    """
    return _look_up(labels, bins, _tables(labels if train_labels is None else train_labels, bins, method, kernel))


@dataclass(frozen=True, eq=False)
class LabelDensity:
    """
    The weights of [`density_weights`] as tables of tensors, to look up batch by batch.

    Args:
        boundaries (`tuple` of T `torch.Tensor` of shape `(B + 1,)`): Bin boundaries, in label units, float64.
        tables (`tuple` of T `torch.Tensor` of shape `(B + 2,)`):
            Weight of every bin, float32; the first and the last entry are those of labels outside all bins.
    """

    boundaries: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]

    def to(self, device: torch.device | str) -> "LabelDensity":
        """The same tables on `device`, once, so that `weights` copies nothing from the host to it."""
        dtype = widest_dtype(device)
        return LabelDensity(
            tuple(b.to(device=device, dtype=dtype) for b in self.boundaries), tuple(t.to(device) for t in self.tables)
        )

    def weights(self, labels: Tensor) -> Tensor:
        """
        Weights, `(N,)`, float32, of a batch of labels, `(N,)` or `(N, T)`, in label units, of any dtype, on their
        device. NaN labels weigh like those outside all bins; label dimensions that are not those of the bins are
        refused.

        Never waits for the device, if the tables are on it (see `to`); elsewhere they are copied on each call.
        """
        columns = labels.detach()[:, None] if labels.ndim == 1 else labels.detach()  # (N, T)
        if columns.ndim != 2 or columns.shape[1] != len(self.tables):
            raise ValueError(
                f"The labels have shape {tuple(labels.shape)} and the bins {len(self.tables)} label dimensions. "
                "Pass (N,), or (N, T) with one column per dimension."
            )
        here = self if self.tables[0].device == labels.device else self.to(labels.device)
        result = torch.zeros(len(columns), device=labels.device)
        for t, (boundaries, table) in enumerate(zip(here.boundaries, here.tables, strict=True)):
            places = torch.bucketize(columns[:, t].to(boundaries.dtype).contiguous(), boundaries, right=True)
            # The rarest coordinate is the one that weighs most.
            result = torch.maximum(result, table[places])
        return result


def make_density(
    train_labels: npt.ArrayLike | Tensor, bins: Bins, method: DensityMethod, kernel: npt.ArrayLike | None = None
) -> LabelDensity:
    """
    Looks up [`density_weights`] for batches of tensors.

    Args:
        train_labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`):
            Training labels, in label units; the mean weight over them is 1.
        bins ([`Bins`]): Bins with the training counts.
        method (`str`): `"none"`, `"inverse"` or `"sqrt_inverse"`.
        kernel (`array_like` of shape `(K,)`, *optional*):
            Smooths along bins, as [`smoothing_kernel`] makes it. Unset: no smoothing.

    Returns:
        [`LabelDensity`], on the CPU.

    Raises:
        `ValueError`: As [`density_weights`].

    Example:
        >>> from conr_hf.imbalance import make_bins
        >>> ages = torch.tensor([30.0, 30.0, 30.0, 30.0, 71.0])
        >>> make_density(ages, make_bins(ages, 1), "sqrt_inverse").weights(torch.tensor([71.0, 30.0, 31.0]))
        tensor([1.6667, 0.8333, 1.6667])
    """
    tables = [torch.from_numpy(t.astype(np.float32)) for t in _tables(train_labels, bins, method, kernel)]
    return LabelDensity(tuple(torch.from_numpy(b.copy()) for b in bins.boundaries), tuple(tables))


def _tables(
    train_labels: npt.ArrayLike | Tensor, bins: Bins, method: DensityMethod, kernel: npt.ArrayLike | None
) -> list[FloatArray]:
    """Weights per dimension: outside all bins, in each of the B bins, and outside again; the mean weight is 1."""
    if method not in get_args(DensityMethod):
        known = ", ".join(f'"{m}"' for m in get_args(DensityMethod))
        raise ValueError(f'"{method}" is no way of weighing labels. Choose one of {known}.')
    window = np.ones(1) if kernel is None else check_kernel(kernel)
    half = len(window) // 2
    window = window / window[half]
    tables = []
    for counts in bins.train_counts:
        values = _values(counts, method)
        if method != "none":
            values = np.convolve(values, window)[half : half + len(values)]
        values = np.pad(values, 1, constant_values=_values(np.ones(1, dtype=np.int64), method)[0])
        tables.append(1 / np.maximum(values, 1))
    relative = _look_up(train_labels, bins, tables)
    if len(relative) == 0:
        raise ValueError("There are no training labels. Weights need at least one to have mean 1 over them.")
    scale = 1 / float(relative.mean())
    return [scale * table for table in tables]


def _values(counts: IntArray, method: DensityMethod) -> FloatArray:
    """What the weights are the inverse of (v)."""
    if method == "none":
        return np.ones(len(counts))
    return np.clip(counts, 5.0, 1000.0) if method == "inverse" else np.sqrt(counts)


def widest_dtype(device: torch.device | str) -> torch.dtype:
    """Float64, but float32 on Metal, which has no other; bin boundaries rounded to it stay inside their tolerance."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _look_up(labels: npt.ArrayLike | Tensor, bins: Bins, tables: list[FloatArray]) -> FloatArray:
    index = bins.index(labels)
    weights: FloatArray = np.stack([table[index[:, t] + 1] for t, table in enumerate(tables)]).max(axis=0)
    return weights
