"""Feature distribution smoothing (FDS): features of rare labels borrow their statistics from neighbouring bins."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from conr_hf.imbalance.bins import Bins
from conr_hf.imbalance.density import widest_dtype
from conr_hf.imbalance.kernels import check_kernel

NUMBERS = 2**21  # of the features that are in float64 at once


class FeatureSmoothing:
    """
    Running statistics of the features in every bin, and the features shifted and scaled to smoothed statistics.

    With m and v the running mean and variance of a bin's features, per dimension, and m~ and v~ those smoothed over
    neighbouring bins by the kernel, a feature z of a label in that bin becomes

        z' = (z - m) sqrt(clip(v~ / v, 1/clip, clip)) + m~

    An epoch: `add` for every batch, `smooth` with the statistics of the epochs before, then `end_epoch`. Nothing but
    `end_epoch`, `merge`, `state` and `load` waits for the device or for other processes.

    Bins in which no feature was ever seen keep out: they are not smoothed, and the kernel spans only the others.
    Beyond the first and the last bin the statistics are mirrored, or those of the end bin where there are too few bins
    to mirror.

    Source: feature distribution smoothing of [Delving into Deep Imbalanced
    Regression](https://huggingface.co/papers/2102.09554).

    Args:
        bins ([`Bins`]): Bins of the training labels, of one label dimension (B bins).
        dims (`int`): Dimensions of a feature (D).
        kernel (`array_like` of shape `(K,)`): Smooths along bins, as [`smoothing_kernel`] makes it.
        momentum (`float`, *optional*, defaults to 0.9):
            Share of the old in the running statistics; the first epoch in which a bin is seen counts in full.
        clip (`float`, *optional*, defaults to 10.0): The largest factor between v~ and v, up or down.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the features are.

    Raises:
        `ValueError`: For bins of several label dimensions, a kernel that is none, a momentum outside 0 .. 1 and a clip
            below 1.

    Example:
        >>> from conr_hf.imbalance import make_bins, smoothing_kernel
        >>> labels = torch.tensor([30.0, 30.0, 31.0, 31.0])
        >>> features = torch.tensor([[-1.0], [1.0], [3.0], [5.0]])
        >>> fds = FeatureSmoothing(make_bins(labels), dims=1, kernel=smoothing_kernel("triangular", 3))
        >>> fds.add(features, labels)
        >>> fds.end_epoch()
        >>> fds.smooth(features, labels).T  # both bins' means, 0 and 4, become 2; their variances are equal
        tensor([[1., 3., 1., 3.]])
    """

    def __init__(
        self,
        bins: Bins,
        dims: int,
        kernel: npt.ArrayLike,
        momentum: float = 0.9,
        clip: float = 10.0,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(bins.edges) != 1:
            raise ValueError(
                f"The bins have {len(bins.edges)} label dimensions; features are smoothed along one. Leave feature "
                "smoothing out."
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}; it must be between 0 and 1 (0.9 is the paper's value).")
        if not clip >= 1:
            raise ValueError(f"clip is {clip}; it must be 1 or more (10 is the paper's value for ages).")
        self.dims, self.momentum, self.clip = dims, momentum, clip
        self._kernel = check_kernel(kernel).tolist()
        dtype = widest_dtype(device)
        self._boundaries = torch.tensor(bins.boundaries[0], dtype=dtype, device=device)
        count, half = len(bins.train_counts[0]), len(self._kernel) // 2
        neighbours = np.pad(np.arange(count), half, mode="reflect" if half < count else "edge")
        self._neighbours = torch.from_numpy(neighbours).to(device)
        # Of each bin: how many features, their sum and the sum of their squares. The first and the last row are those
        # of labels outside all bins, and are never read.
        self._sums = torch.zeros(count + 2, 1 + 2 * dims, dtype=dtype, device=device)
        self._seen = torch.zeros(count, 1, dtype=torch.bool, device=device)
        self._mean = torch.zeros(count, dims, dtype=dtype, device=device)
        self._variance = torch.zeros_like(self._mean)
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """
        Adds a batch to the statistics of this epoch, without labels outside all bins and features that are not finite:
        unsmoothed features, `(M, D)`, of which no gradient is kept, and their labels, `(M,)`, in label units.
        """
        places = self._places(features, labels)
        step = max(NUMBERS // self.dims, 1)
        for some, theirs in zip(torch.split(features.detach(), step), torch.split(places, step), strict=True):
            rows = some.to(self._sums.dtype)
            known = torch.where(rows.isfinite().all(1), theirs, 0)
            self._sums.index_add_(0, known, torch.cat([torch.ones_like(rows[:, :1]), rows, rows.square()], 1))

    def smooth(self, features: Tensor, labels: Tensor) -> Tensor:
        """
        The features by which the last layer predicts in training, for unsmoothed features, `(M, D)`, and their labels,
        `(M,)`, in label units.

        Of the same shape, float32 (float64 for such features), and differentiable in the features; `features` itself
        before the first epoch has ended. Unchanged are features of bins never seen and of labels outside all bins, and
        dimensions in which a bin's features do not vary.
        """
        places = self._places(features, labels)
        if self._tables is None:
            return features
        mean, factor, smoothed_mean = self._tables
        smoothed = features - mean[places]
        # In place, as the rows may be pixels: of all of them, backward keeps the factors alone.
        return smoothed.mul_(factor[places]).add_(smoothed_mean[places])

    def merge(self, reduce: Callable[[Tensor], Tensor], keep: bool) -> None:
        """
        Moves the sums of this epoch into the one process that keeps them, so that the checkpoint it writes holds all
        of them; `reduce` sums a tensor over all processes.
        """
        sums = reduce(self._sums)
        self._sums = sums.clone() if keep else torch.zeros_like(sums)

    def end_epoch(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """
        Brings the statistics of this epoch into the running ones, which `smooth` goes by from here on; `reduce` sums a
        tensor over all processes.
        """
        count, total, squares = self._parts(reduce(self._sums))
        mean = total / count.clamp(min=1)
        spread = squares - total * mean
        # What rounding alone can have made is no variance.
        varies = spread > count * torch.finfo(spread.dtype).eps * squares
        variance = torch.where(varies, spread / (count - 1).clamp(min=1), 0)
        old = self._seen.to(mean.dtype) * self.momentum
        self._mean = torch.where(count > 0, old * self._mean + (1 - old) * mean, self._mean)
        self._variance = torch.where(count > 0, old * self._variance + (1 - old) * variance, self._variance)
        self._seen = self._seen | (count > 0)
        self._sums = torch.zeros_like(self._sums)
        self._tables = self._make_tables()

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of what [`~FeatureSmoothing.load`] needs; the sums are those of this process alone."""
        count, total, squares = self._parts(self._sums)
        state = {
            "counts": count,
            "sums": total,
            "squares": squares,
            "seen": self._seen,
            "mean": self._mean,
            "variance": self._variance,
        }
        return {name: value.to("cpu", copy=True).contiguous() for name, value in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on where [`~FeatureSmoothing.state`] was taken, which must be with the same bins and features."""
        if state["mean"].shape != self._mean.shape:
            saved, here = (" x ".join(map(str, shape)) for shape in (state["mean"].shape, self._mean.shape))
            raise ValueError(
                f"The saved feature statistics are of {saved} bins and dimensions, and here there are {here}. Resume "
                "with the model, the training labels and the bin_width of the saved run."
            )
        self._sums = torch.zeros_like(self._sums)
        self._sums[1:-1] = torch.cat([state["counts"], state["sums"], state["squares"]], 1).to(self._sums)
        self._seen = state["seen"].to(self._seen.device, copy=True)
        self._mean = state["mean"].to(self._mean, copy=True)
        self._variance = state["variance"].to(self._variance, copy=True)
        self._tables = self._make_tables() if state["seen"].any() else None

    def _places(self, features: Tensor, labels: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.dims or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features has shape {tuple(features.shape)} and labels {tuple(labels.shape)}; they must be "
                f"(M, {self.dims}) and (M,), one row a feature."
            )
        column = labels.detach().to(self._boundaries.dtype).contiguous()
        return torch.bucketize(column, self._boundaries, right=True)

    def _parts(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, sum and sum of squares of each bin's features."""
        of_bins = sums[1:-1]
        return of_bins[:, :1], of_bins[:, 1 : 1 + self.dims], of_bins[:, 1 + self.dims :]

    def _make_tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, factor and smoothed mean of every bin, float32, where 0, 1 and 0 change nothing."""
        seen = self._seen.to(self._mean.dtype)
        weight, mean, variance = torch.zeros_like(seen), torch.zeros_like(self._mean), torch.zeros_like(self._mean)
        for first, entry in enumerate(self._kernel):
            places = self._neighbours[first : first + len(seen)]
            share = entry * seen[places]
            weight = weight + share
            mean = mean + share * self._mean[places]
            variance = variance + share * self._variance[places]
        known = self._seen & (self._variance > 0)
        ratio = (variance / weight / self._variance).clamp(1 / self.clip, self.clip)
        return (
            _table(torch.where(known, self._mean, 0), outside=0.0),
            _table(torch.where(known, ratio.sqrt(), 1), outside=1.0),
            _table(torch.where(known, mean / weight, 0), outside=0.0),
        )


def _table(of_bins: Tensor, outside: float) -> Tensor:
    return F.pad(of_bins.float(), (0, 0, 1, 1), value=outside)
