"""How rare the labels are and what that costs: training labels and error per bin, of one run or of several."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns
from conr_hf.imbalance.bins import FloatArray, IntArray
from conr_hf.metrics import like_labels, shot_masks
from conr_hf.plots import style
from conr_hf.plots.style import COLOURS, FAINT, INK, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def density_with_error(
    bins: Bins,
    labels: npt.ArrayLike | Tensor,
    predictions: npt.ArrayLike | Tensor,
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    baseline: npt.ArrayLike | Tensor | None = None,
    target: str | Sequence[str] = "label",
    thresholds: tuple[float, float] | None = None,
) -> None:
    """
    One picture over the label range: above how many training labels each bin holds, below the error in each bin.

    Bins are coloured by shot. Several label dimensions get a column of panels each, where a bin's shot is that of this
    dimension alone. Samples outside all bins are not drawn; the axis says how many they are.

    Args:
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): True labels, in label units.
        predictions (`array_like` or `torch.Tensor` of shape `(N,)`, `(N, 1)` or `(N, T)`): Predictions for them.
        path (`str` or `os.PathLike`): The `.png` or `.svg` to write, in an existing folder; with no ending, both.
        unit (`str`): Unit of the labels, for the axes; `""` for none.
        title (`str`): Title of the figure.
        baseline (`array_like` or `torch.Tensor`, *optional*):
            What [`~conr_hf.metrics.constant_median`] returns, drawn as a thin line named "constant median".
        target (`str` or a sequence of T `str`, *optional*, defaults to `"label"`): What the labels are, for the axes.
        thresholds (`tuple[float, float]`, *optional*): As in [`~conr_hf.metrics.shot_metrics`]; unset, the bins'.

    Raises:
        `ValueError`: For labels, predictions and bins that do not fit together, and for NaN or infinite values.
    """
    y = label_columns(labels)  # (N, T)
    index = bins.index(y)
    tested = _tested(bins, index)
    given = [predictions] if baseline is None else [predictions, baseline]
    errors = [_bin_means(like_labels(p, labels).reshape(y.shape) - y, index, tested) for p in given]
    names = style.axis_names(target, unit, y.shape[1])
    outside = (index < 0).sum(axis=0).tolist()
    thresholds = bins.thresholds if thresholds is None else thresholds
    _draw(bins, thresholds, names, tested, errors, outside, path, unit=unit, title=title, samples="samples")


def density_with_pixel_error(
    bins: Bins,
    tested: npt.NDArray[np.int64],
    errors: FloatArray,
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    baseline: FloatArray | None = None,
    outside: int = 0,
    target: str = "label",
) -> None:
    """
    [`density_with_error`] of label maps, whose errors were gathered by bin.

    Args:
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training pixels.
        tested (`np.ndarray` of shape `(B,)`): Pixels of each bin that were predicted, int64.
        errors (`np.ndarray` of shape `(B,)`): Their mean absolute error, in label units; NaN where there are none.
        path, unit, title, target: As in [`density_with_error`].
        baseline (`np.ndarray` of shape `(B,)`, *optional*): The errors of the constant median.
        outside (`int`, *optional*, defaults to 0): Pixels outside all bins.
    """
    given = [[errors]] if baseline is None else [[errors], [baseline]]
    names = [with_unit(target, unit)]
    _draw(bins, bins.thresholds, names, [tested], given, [outside], path, unit=unit, title=title, samples="pixels")


def errors_of_runs(
    bins: Bins,
    labels: npt.ArrayLike | Tensor,
    predictions: Mapping[str, npt.ArrayLike | Tensor],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: str | Sequence[str] = "label",
    thresholds: tuple[float, float] | None = None,
) -> None:
    """
    Several runs against each other: above the training labels in each bin, below a line of errors for each run.

    Args:
        bins, labels, path, unit, title, target, thresholds: As in [`density_with_error`].
        predictions (`Mapping` of `str` to `array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`):
            Each run's predictions for the same samples, by its name.

    Raises:
        `ValueError`: As [`density_with_error`].
    """
    y = label_columns(labels)  # (N, T)
    thresholds = bins.thresholds if thresholds is None else thresholds
    index = bins.index(y)
    tested = _tested(bins, index)
    errors = {name: like_labels(values, labels).reshape(y.shape) - y for name, values in predictions.items()}
    runs = {name: _bin_means(error, index, tested) for name, error in errors.items()}
    names = style.axis_names(target, unit, y.shape[1])
    figure, panels = _panels(len(names), unit, "samples", height_ratios=(2, 3))
    for t, (above, below) in enumerate(panels.T):
        edges = bins.edges[t]
        _draw_counts(above, edges, bins.train_counts[t], thresholds)
        for i, (name, means) in enumerate(runs.items()):
            marked = np.isfinite(means[t]).sum() <= 60
            _line(below, edges, means[t], label=name, **style.run_line(i, marked))
        _frame(below, edges, names[t], int((index[:, t] < 0).sum()), "samples")
    drawn = np.concatenate([counts[counts > 0] for counts in bins.train_counts])
    style.heading(figure, title, [*style.shot_patches(thresholds, drawn), *panels[1, 0].get_lines()], columns=3)
    style.save(figure, path)


def _tested(bins: Bins, index: IntArray) -> list[IntArray]:
    """How many samples lie in each bin, an array of shape (B,) for each dimension; `index` is of shape (N, T)."""
    # The first place is of the index -1, outside all bins.
    return [np.bincount(at + 1, minlength=len(n) + 1)[1:] for at, n in zip(index.T, bins.train_counts, strict=True)]


def _bin_means(errors: FloatArray, index: IntArray, tested: Sequence[IntArray]) -> list[FloatArray]:
    """The mean absolute error in each bin of each dimension, NaN where there is none; `errors` is of shape (N, T)."""
    means = []
    for error, places, counts in zip(np.abs(errors.T), index.T, tested, strict=True):
        sums = np.bincount(places + 1, weights=error, minlength=len(counts) + 1)[1:]
        means.append(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))
    return means


def _draw(
    bins: Bins,
    thresholds: tuple[float, float],
    names: Sequence[str],
    tested: Sequence[IntArray],
    errors: Sequence[Sequence[FloatArray]],
    outside: Sequence[int],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    samples: str,
) -> None:
    """
    Draws both densities. Arrays of shape (B,) for each dimension: `tested` is the number of samples in each bin,
    `errors[0]` their mean absolute error, and `errors[1]`, if there, that of the constant median.
    """
    figure, panels = _panels(len(names), unit, samples)
    from matplotlib.patheffects import withStroke

    for t, (above, below) in enumerate(panels.T):
        edges, counts, means = bins.edges[t], bins.train_counts[t], errors[0][t]
        _draw_counts(above, edges, counts, thresholds)
        for shot, mask in shot_masks(counts, thresholds).items():
            _bars(below, edges, means, mask & (tested[t] > 0), COLOURS[shot], bottom=0.0)
        # Longer numbers, or more of them, would run into each other.
        if len(counts) <= (40 if len(names) == 1 else 24) and (samples == "samples" or len(counts) <= 16):
            number: dict[str, Any] = {"fontsize": 7, "color": INK, "ha": "center", "zorder": 4}
            number["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]
            for i in np.flatnonzero(tested[t]):
                top = ((edges[i] + edges[i + 1]) / 2, means[i])
                below.annotate(f"{tested[t][i]:,}", top, xytext=(0, 2), textcoords="offset points", **number)
            below.set_title(f"numbers on bars: test {samples}", loc="left", fontsize=7.5, color=FAINT, pad=3)
        for baseline in errors[1:]:
            _line(below, edges, baseline[t], label="constant median", color=INK, linewidth=1.0)
        _frame(below, edges, names[t], outside[t], samples)
    drawn = [counts[(counts > 0) | (held > 0)] for counts, held in zip(bins.train_counts, tested, strict=True)]
    patches = style.shot_patches(thresholds, np.concatenate(drawn))
    style.heading(figure, title, [*patches, *panels[1, 0].get_lines()])
    style.save(figure, path)


def _panels(
    dimensions: int, unit: str, samples: str, height_ratios: tuple[int, int] = (1, 1)
) -> tuple["Figure", npt.NDArray[Any]]:
    """A figure with panels of shape (2, T): training labels above, errors below."""
    figure = style.new_figure(7.6 if dimensions == 1 else 5.2 * dimensions, 5.6)
    panels = figure.subplots(2, dimensions, sharex="col", squeeze=False, height_ratios=height_ratios)
    panels[0, 0].set_ylabel(f"training {samples} per bin")
    panels[1, 0].set_ylabel(with_unit("mean absolute error", unit))
    return figure, panels


def _draw_counts(panel: "Axes", edges: FloatArray, counts: IntArray, thresholds: tuple[float, float]) -> None:
    for shot, mask in shot_masks(counts, thresholds).items():
        _bars(panel, edges, counts, mask & (counts > 0), COLOURS[shot], bottom=0.6)
    style.count_axis(panel, counts, thresholds)
    look: dict[str, Any] = {"va": "center", "fontsize": 7.5, "color": FAINT}
    for threshold in thresholds:  # named at the right edge
        place: dict[str, Any] = {"xy": (1, threshold), "xycoords": ("axes fraction", "data")}
        panel.annotate(style.count(threshold), **place, xytext=(3, 0), textcoords="offset points", **look)


def _line(panel: "Axes", edges: FloatArray, means: FloatArray, **look: Any) -> None:
    known = np.isfinite(means)
    panel.plot(((edges[:-1] + edges[1:]) / 2)[known], means[known], **look)


def _frame(below: "Axes", edges: FloatArray, name: str, outside: int, samples: str) -> None:
    style.tidy(below)
    below.autoscale_view()
    below.set_ylim(bottom=0)
    margin = 0.03 * (edges[-1] - edges[0])
    below.set_xlim(edges[0] - margin, edges[-1] + margin)
    below.set_xlabel(name + (f"\n(test {samples} outside all bins, not shown: {outside:,})" if outside else ""))


def _bars(
    panel: "Axes",
    edges: FloatArray,
    heights: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    colour: str,
    bottom: float,
) -> None:
    from matplotlib.collections import PolyCollection

    # One collection of the bars there are, as a figure of a million bins, most of them empty, would take minutes.
    low, high, tops = edges[:-1][mask], edges[1:][mask], heights[mask].astype(np.float64)
    gap = (high - low) * 0.07
    left, right, floor = low + gap, high - gap, np.full(len(tops), bottom)
    corners = np.stack([left, floor, left, tops, right, tops, right, floor], axis=1).reshape(-1, 4, 2)
    # Bars narrower than a pixel would fade away without an outline.
    outline = 0.0 if len(edges) <= 300 else 0.7
    panel.add_collection(PolyCollection(list(corners), facecolors=colour, edgecolors=colour, linewidths=outline))
