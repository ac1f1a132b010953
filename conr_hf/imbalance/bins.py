"""Bins over the label range, with the training counts that make a label common or rare."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_BINS = 1_000_000
FLOAT32_EPS = float(np.finfo(np.float32).eps)
THRESHOLDS: tuple[float, float] = (20, 100)


def label_columns(
    labels: npt.ArrayLike | Tensor, name: str = "labels", mend: str = "Correct it, or leave that sample out."
) -> FloatArray:
    """
    Labels of any numeric kind as one float64 array with a column per label dimension.

    Args:
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels, in label units, on any device.
        name (`str`, *optional*, defaults to `"labels"`): What error messages call them.
        mend (`str`, *optional*): What the message about a NaN or infinite value advises.

    Returns:
        `np.ndarray` of shape `(N, T)`, float64 (`(N, 1)` for labels of shape `(N,)`).

    Raises:
        `ValueError`: For other shapes, and for NaN or infinite values (naming the first one's index).

    Example:
        >>> label_columns([20, 41, 63]).shape
        (3, 1)
    """
    values = labels.detach().cpu().double().numpy() if isinstance(labels, Tensor) else labels
    try:
        columns = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be read as numbers ({error}). Pass numbers of shape (N,) or (N, T)."
        ) from error
    if columns.ndim not in (1, 2) or (columns.ndim == 2 and columns.shape[1] == 0):
        raise ValueError(f"{name} has shape {columns.shape}. Pass shape (N,), or (N, T) for T label dimensions.")
    if not np.isfinite(columns).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(columns))[0])
        where = ", ".join(map(str, place))
        raise ValueError(f"{name}[{where}] is {columns[place]}. {mend}")
    return columns[:, None] if columns.ndim == 1 else columns


@dataclass(frozen=True, eq=False)
class Bins:
    """
    Bins over each label dimension and the number of training labels in every one of them.

    Bin `i` holds the labels `edges[i] <= label < edges[i + 1]`; the last bin also holds its upper edge. Labels that
    lie less than `tolerance` below an edge count as on it, so that 0.3 stored as float32 or computed as `3 * 0.1`
    falls where 3 would. Several label dimensions are binned one by one, because joint bins would be mostly empty, and
    a label is as rare as its rarest coordinate.

    Args:
        edges (`tuple` of T `np.ndarray`): Ascending, finite bin edges, in label units; `B + 1` of them for B bins.
        train_counts (`tuple` of T `np.ndarray`): Training labels in each bin; B of them.
        tolerance (`tuple` of T `float`, *optional*):
            Absolute tolerance in label units; 4 float32 eps times the largest absolute training label where
            `make_bins` made the bins. Unset: the same of the edges. At any edge it is never more than a sixteenth of
            the narrower bin beside it, which is the rounding of a float32 label in the millionth bin.
        thresholds (`tuple[float, float]`, *optional*, defaults to `(20, 100)`):
            Labels of a bin are few below the first and many above the second number of training labels in it.

    Raises:
        `ValueError`: For edges that do not ascend, for lengths that do not fit together, and for thresholds that are
            not two or do not ascend.

    Example:
        >>> bins = Bins((np.array([0.0, 10.0, 20.0]),), (np.array([7, 2]),))
        >>> bins.index([3, 10, 20, 21]).ravel()
        array([ 0,  1,  1, -1])
        >>> bins.train_count_of([3, 10, 20, 21])
        array([7, 2, 2, 0])
    """

    edges: tuple[FloatArray, ...]
    train_counts: tuple[IntArray, ...]
    tolerance: tuple[float, ...] | None = None
    thresholds: tuple[float, float] = THRESHOLDS
    # B + 1 numbers per dimension: `searchsorted(boundaries, label, side="right")` is 0 below the bins, 1 .. B in them
    # and B + 1 above, in numpy and torch.
    boundaries: tuple[FloatArray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        edges = tuple(np.array(e, dtype=np.float64) for e in self.edges)
        counts = tuple(np.array(c, dtype=np.int64) for c in self.train_counts)
        if not edges or len(counts) != len(edges):
            raise ValueError(
                f"Bins got edges for {len(edges)} label dimensions and training counts for {len(counts)}. "
                "Pass one array of each per dimension."
            )
        for e, c in zip(edges, counts, strict=True):
            if e.ndim != 1 or len(e) < 2 or not np.isfinite(e).all() or not (np.diff(e) > 0).all():
                raise ValueError(
                    f"Bin edges must be at least two finite numbers in ascending order; got {_short(e)}. "
                    "For an open end write a number that no label exceeds."
                )
            if c.shape != (len(e) - 1,):
                raise ValueError(f"{len(e)} bin edges need {len(e) - 1} training counts; got shape {c.shape}.")
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = tuple(4 * FLOAT32_EPS * float(np.abs(e).max()) for e in edges)
        if len(tolerance) != len(edges):
            raise ValueError(f"Bins got {len(tolerance)} tolerances for {len(edges)} label dimensions. Pass one each.")
        thresholds = tuple(float(t) for t in self.thresholds)
        if len(thresholds) != 2 or not thresholds[0] <= thresholds[1]:
            raise ValueError(
                f"Bins got thresholds {thresholds}. Pass two: few are below the first, many above the second."
            )
        boundaries = tuple(_boundaries(e, t) for e, t in zip(edges, tolerance, strict=True))
        for array in (*edges, *counts, *boundaries):
            array.setflags(write=False)
        tolerance = tuple(float(t) for t in tolerance)
        kept = {"edges": edges, "train_counts": counts, "tolerance": tolerance, "thresholds": thresholds}
        vars(self).update(kept, boundaries=boundaries)  # the dataclass is frozen

    def index(self, labels: npt.ArrayLike | Tensor) -> IntArray:
        """
        The bin of every label.

        Args:
            labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels, in label units.

        Returns:
            `np.ndarray` of shape `(N, T)`, int64: bin numbers from 0, and -1 outside all bins.

        Raises:
            `ValueError`: For NaN or infinite labels, and when the label dimensions are not those of the bins.
        """
        places = self._places(labels)
        for t, e in enumerate(self.edges):
            places[places[:, t] == len(e), t] = 0
        return places - 1

    def train_counts_of(self, labels: npt.ArrayLike | Tensor) -> IntArray:
        """Training labels in the bin of every coordinate of every label, 0 outside all bins: shape `(N, T)`, int64."""
        places = self._places(labels)
        return np.stack([np.pad(c, 1)[places[:, t]] for t, c in enumerate(self.train_counts)], axis=1)

    def train_count_of(self, labels: npt.ArrayLike | Tensor) -> IntArray:
        """Training labels in every label's bin, of its rarest coordinate; 0 outside all bins: shape `(N,)`, int64."""
        counts: IntArray = self.train_counts_of(labels).min(axis=1)
        return counts

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists for JSON; [`~Bins.from_dict`] reads them."""
        return {
            "edges": [e.tolist() for e in self.edges],
            "train_counts": [c.tolist() for c in self.train_counts],
            "tolerance": list(self.tolerance or ()),
            "thresholds": list(self.thresholds),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, list[Any]]) -> "Bins":
        """Bins from what [`~Bins.to_dict`] returned; `"tolerance"` and `"thresholds"` may be left out."""
        tolerance: Any = saved.get("tolerance")
        few, many = saved.get("thresholds", THRESHOLDS)
        return cls(tuple(saved["edges"]), tuple(saved["train_counts"]), tolerance, (few, many))

    def _places(self, labels: npt.ArrayLike | Tensor) -> IntArray:
        columns = label_columns(labels)
        if columns.shape[1] != len(self.edges):
            raise ValueError(
                f"The labels have {columns.shape[1]} dimensions and the bins {len(self.edges)}. "
                "Make the bins from training labels of the same shape."
            )
        places = [np.searchsorted(b, columns[:, t], side="right") for t, b in enumerate(self.boundaries)]
        return np.stack(places, axis=1).astype(np.int64)


def make_bins(
    train_labels: npt.ArrayLike | Tensor,
    bin_width: float | Sequence[float] | None = None,
    edges: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
    thresholds: tuple[float, float] = THRESHOLDS,
) -> Bins:
    """
    Bins over the range of the training labels, with their counts.

    Bins of one width lie on its multiples: a label is in bin `floor(label / width)`, with the tolerance that [`Bins`]
    describes, and the bins run from the smallest training label's to the largest one's.

    Args:
        train_labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Training labels, in label units.
        bin_width (`float` or a sequence of T `float`, *optional*):
            Width of the bins, in label units; a single number serves every dimension. Unset: as
            [`suggest_bin_width`] has it for each dimension.
        edges (ascending numbers, or a sequence of T such, *optional*):
            Bin edges, in label units, in place of `bin_width`; a single list serves every dimension.
        thresholds (`tuple[float, float]`, *optional*, defaults to `(20, 100)`): As in [`Bins`].

    Returns:
        [`Bins`], with no training label outside them unless `edges` leave it out.

    Raises:
        `ValueError`: For no labels, NaN labels, both `bin_width` and `edges`, a width that is not greater than 0, and
            one that makes more than 1,000,000 bins.

    Example:
        >>> bins = make_bins([0.1, 0.2, 0.3, 0.3], bin_width=0.1)
        >>> bins.train_counts
        (array([1, 1, 2]),)
        >>> make_bins([18, 30, 30, 71]).edges[0][:4]  # of so few labels most are few-shot in any bins
        array([15., 20., 25., 30.])
    """
    columns = label_columns(train_labels, "train_labels")
    if len(columns) == 0:
        raise ValueError("train_labels is empty. Bins need at least one training label.")
    if bin_width is not None and edges is not None:
        raise ValueError(f"Both bin_width={bin_width} and edges are given. Leave one of them out.")
    dimensions = columns.shape[1]
    tolerance = tuple(4 * FLOAT32_EPS * float(m) for m in np.abs(columns).max(axis=0))
    if edges is not None:
        all_edges = _edges_per_dimension(edges, dimensions)
    else:
        widths = _widths_per_dimension(bin_width, columns)
        all_edges = [_edges_of_width(columns[:, t], widths[t], tolerance[t]) for t in range(dimensions)]
    empty = Bins(tuple(all_edges), tuple(np.zeros(len(e) - 1, dtype=np.int64) for e in all_edges), tolerance)
    index = empty.index(columns)
    counts = tuple(
        np.bincount(index[index[:, t] >= 0, t], minlength=len(e) - 1).astype(np.int64)
        for t, e in enumerate(empty.edges)
    )
    return Bins(empty.edges, counts, tolerance, thresholds)


def suggest_bin_width(labels: npt.ArrayLike | Tensor) -> float:
    """
    The width of bins that nobody gave, in inspection, splitting and training alike: a round number, in label units.

    The narrowest of 1, 2, 5, 10, 20 ... or their decimal fractions, from a hundredth of the range up, with which no
    more than half of the labels lie in bins of fewer than 20; but no wider than a tenth of the range, and of whole
    labels at least 1. It is 1 where all labels are equal.

    Args:
        labels (`array_like` or `torch.Tensor` of shape `(N,)`): Labels of one dimension, in label units.

    Example:
        >>> suggest_bin_width([20 + i % 61 for i in range(2000)])  # 61 ages with 33 people each
        1.0
        >>> suggest_bin_width([20 + i % 61 for i in range(300)])  # with 5 people each
        5.0
    """
    values = label_columns(labels)[:, 0]
    span = float(np.ptp(values))
    if span == 0:
        return 1.0
    finest = max(span / 100, 1.0) if (values == np.rint(values)).all() else span / 100
    power = int(np.floor(np.log10(finest)))
    widths = [float(f"{step}e{power + up}") for up in range(3) for step in (1, 2, 5)]
    widths = [width for width in widths if width >= finest * (1 - 1e-9)]
    fitting = [width for width in widths if width <= span / 10] or widths[:1]
    for width in fitting:
        if (make_bins(values, width).train_count_of(values) < THRESHOLDS[0]).mean() <= 0.5:
            return width
    return fitting[-1]


def _boundaries(edges: FloatArray, tolerance: float) -> FloatArray:
    """Edges moved by the tolerance: all but the last down, the last one up and just past it, which closes it."""
    widths = np.diff(edges)
    narrower = np.minimum(np.append(widths, np.inf), np.append(np.inf, widths))
    shift = np.minimum(tolerance, narrower / 16)
    shift[-1] *= -1
    moved: FloatArray = edges - shift
    moved[-1] = np.nextafter(moved[-1], np.inf)
    return moved


def _edges_of_width(labels: FloatArray, width: float, tolerance: float) -> FloatArray:
    low, high = float(labels.min()), float(labels.max())
    if max(abs(low), abs(high)) / width > 2**52:
        raise ValueError(
            f"bin_width {width:g} is finer than float64 can tell labels from {low:g} to {high:g} apart. "
            "Subtract an offset from the labels, or set a greater bin_width."
        )
    slack = min(tolerance, width / 16)
    first, last = int(np.floor((low + slack) / width)), int(np.floor((high + slack) / width))
    if first * width - slack > low:  # the division may round up where the label lies just at the tolerance
        first -= 1
    if last - first + 1 > MAX_BINS:
        enough = float(f"{(high - low) / MAX_BINS * 1.01:.2g}")
        raise ValueError(
            f"bin_width {width:g} makes {last - first + 1:,} bins of labels from {low:g} to {high:g}; "
            f"at most {MAX_BINS:,} are made. Set bin_width to {enough:g} or more."
        )
    return np.arange(first, last + 2, dtype=np.float64) * width


def _widths_per_dimension(bin_width: float | Sequence[float] | None, columns: FloatArray) -> FloatArray:
    if bin_width is None:
        return np.array([suggest_bin_width(column) for column in columns.T])
    widths: FloatArray = np.array(bin_width, dtype=np.float64)
    if widths.ndim == 0:
        widths = np.full(columns.shape[1], widths)
    if widths.shape != (columns.shape[1],):
        raise ValueError(
            f"bin_width is {bin_width} and the labels have {columns.shape[1]} dimensions. "
            "Pass one width, or one for each dimension."
        )
    if not (np.isfinite(widths) & (widths > 0)).all():
        raise ValueError(
            f"bin_width is {bin_width}; it must be greater than 0. Leave it out for a width that suits the labels."
        )
    return widths


def _edges_per_dimension(edges: npt.ArrayLike | Sequence[npt.ArrayLike], dimensions: int) -> list[FloatArray]:
    if isinstance(edges, int | float):
        raise ValueError(
            f"edges is {edges}. Pass a list of ascending edges, or bin_width={edges} for bins of one width."
        )
    parts: list[Any] = [part.tolist() if isinstance(part, np.ndarray | Tensor) else part for part in edges]  # type: ignore[union-attr]
    if all(np.ndim(part) == 0 for part in parts):
        parts = [parts] * dimensions
    if len(parts) != dimensions:
        raise ValueError(
            f"edges holds {len(parts)} lists and the labels have {dimensions} dimensions. "
            "Pass one list of edges, or one for each dimension."
        )
    arrays = [np.array(part, dtype=np.float64) for part in parts]
    for array in arrays:
        if array.size > MAX_BINS + 1:
            raise ValueError(f"edges make {array.size - 1:,} bins; at most {MAX_BINS:,} are made. Pass fewer edges.")
    return arrays


def _short(edges: FloatArray) -> str:
    return np.array2string(edges, threshold=8, edgeitems=3)
