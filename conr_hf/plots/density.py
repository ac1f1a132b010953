"""How rare the labels are and what that costs: training labels and error per bin, of one run or of several."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns
from conr_hf.imbalance.bins import FloatArray
from conr_hf.metrics import like_labels, shot_masks
from conr_hf.plots.style import (
    COLOURS,
    FAINT,
    INK,
    axis_names,
    count,
    heading,
    new_figure,
    run_line,
    save,
    shot_patches,
    tidy,
    with_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        path (`str` or `os.PathLike`):
            The file to write, `.png` or `.svg`; without either ending, both. Its folder must exist.
        unit (`str`): Unit of the labels, for the axes; `""` for none.
        title (`str`): Title of the figure.
        baseline (`array_like` or `torch.Tensor`, *optional*):
            Predictions to compare with, drawn as a thin line and named "constant median": what
            [`~conr_hf.metrics.constant_median`] returns.
        target (`str` or a sequence of T `str`, *optional*, defaults to `"label"`): What the labels are, for the axes.
        thresholds (`tuple[float, float]`, *optional*, defaults to those of the bins):
            As in [`~conr_hf.metrics.shot_metrics`].

    Raises:
        `ImportError`: Without matplotlib.
        `ValueError`: For labels, predictions and bins that do not fit together, and for NaN or infinite values.
    """
    y = label_columns(labels)  # (N, T)
    thresholds = bins.thresholds if thresholds is None else thresholds
    p = like_labels(predictions, labels).reshape(y.shape)
    b = None if baseline is None else like_labels(baseline, labels).reshape(y.shape)
    index = bins.index(y)
    dimensions = y.shape[1]
    names = axis_names(target, unit, dimensions)

    figure = new_figure(7.6 if dimensions == 1 else 5.2 * dimensions, 5.6)
    panels = figure.subplots(2, dimensions, sharex="col", squeeze=False, height_ratios=(1, 1))
    for t in range(dimensions):
        inside = index[:, t] >= 0
        tested = np.bincount(index[inside, t], minlength=len(bins.train_counts[t]))
        means, of_baseline = (
            None if values is None else _bin_means(np.abs(values - y)[inside, t], index[inside, t], tested)
            for values in (p, b)
        )
        assert means is not None
        _draw(panels[:, t], bins, t, thresholds, tested, means, of_baseline, wide=dimensions == 1)
        _frame(panels[1, t], bins.edges[t], names[t], int((~inside).sum()))
    panels[0, 0].set_ylabel("training samples per bin")
    panels[1, 0].set_ylabel(with_unit("mean absolute error", unit))
    heading(figure, title, [*shot_patches(thresholds), *panels[1, 0].get_lines()])
    save(figure, path)


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

    Raises:
        `ImportError`: Without matplotlib.
    """
    figure = new_figure(7.6, 5.6)
    panels = figure.subplots(2, 1, sharex=True)
    _draw(panels, bins, 0, bins.thresholds, tested, errors, baseline, wide=True, samples="pixels")
    _frame(panels[1], bins.edges[0], with_unit(target, unit), outside, samples="pixels")
    panels[0].set_ylabel("training pixels per bin")
    panels[1].set_ylabel(with_unit("mean absolute error", unit))
    heading(figure, title, [*shot_patches(bins.thresholds), *panels[1].get_lines()])
    save(figure, path)


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
        bins, labels, unit, title, target, thresholds: As in [`density_with_error`].
        predictions (`Mapping` of `str` to `array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`):
            Each run's predictions for the same samples, by its name.
        path (`str` or `os.PathLike`): As in [`density_with_error`].

    Raises:
        `ImportError`, `ValueError`: As [`density_with_error`].
    """
    y = label_columns(labels)  # (N, T)
    thresholds = bins.thresholds if thresholds is None else thresholds
    index = bins.index(y)
    dimensions = y.shape[1]
    names = axis_names(target, unit, dimensions)
    figure = new_figure(7.6 if dimensions == 1 else 5.2 * dimensions, 5.6)
    panels = figure.subplots(2, dimensions, sharex="col", squeeze=False, height_ratios=(2, 3))
    for t in range(dimensions):
        edges, counts = bins.edges[t], bins.train_counts[t]
        inside = index[:, t] >= 0
        tested = np.bincount(index[inside, t], minlength=len(counts))
        above, below = panels[0, t], panels[1, t]
        _draw_counts(above, edges, counts, shot_masks(counts, thresholds), thresholds)
        for i, (name, values) in enumerate(predictions.items()):
            error = np.abs(like_labels(values, labels).reshape(y.shape) - y)
            means = _bin_means(error[inside, t], index[inside, t], tested)
            known = np.isfinite(means)
            below.plot(
                ((edges[:-1] + edges[1:]) / 2)[known],
                means[known],
                label=name,
                **run_line(i, marked=known.sum() <= 60),
            )
        tidy(below)
        _frame(below, edges, names[t], int((~inside).sum()))
        if t == 0:
            above.set_ylabel("training samples per bin")
            below.set_ylabel(with_unit("mean absolute error", unit))
    heading(figure, title, [*shot_patches(thresholds), *panels[1, 0].get_lines()], columns=3)
    save(figure, path)


def _draw(
    panels: npt.NDArray[Any],
    bins: Bins,
    dimension: int,
    thresholds: tuple[float, float],
    tested: npt.NDArray[np.int64],
    means: FloatArray,
    baseline: FloatArray | None,
    *,
    wide: bool,
    samples: str = "samples",
) -> None:
    """Training labels above and errors below, of one dimension."""
    edges, counts = bins.edges[dimension], bins.train_counts[dimension]
    masks = shot_masks(counts, thresholds)
    # Longer numbers, or more of them, would run into each other.
    numbers = len(counts) <= (40 if wide else 24) and (samples == "samples" or len(counts) <= 16)
    _draw_counts(panels[0], edges, counts, masks, thresholds)
    _draw_errors(panels[1], edges, means, tested, masks, samples if numbers else None)
    if baseline is not None:
        _draw_baseline(panels[1], edges, baseline)


def _frame(below: "Axes", edges: FloatArray, name: str, outside: int, samples: str = "samples") -> None:
    below.autoscale_view()
    below.set_ylim(bottom=0)
    margin = 0.03 * (edges[-1] - edges[0])
    below.set_xlim(edges[0] - margin, edges[-1] + margin)
    below.set_xlabel(name + (f"\n(test {samples} outside all bins, not shown: {outside:,})" if outside else ""))


def _draw_counts(
    panel: "Axes",
    edges: FloatArray,
    counts: npt.NDArray[np.int64],
    masks: dict[str, npt.NDArray[np.bool_]],
    thresholds: tuple[float, float],
) -> None:
    for shot, mask in masks.items():
        _bars(panel, edges, counts, mask & (counts > 0), COLOURS[shot], bottom=0.6)
    panel.set_yscale("log")
    panel.set_ylim(0.6, max(int(counts.max()), thresholds[1]) * 1.6)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for threshold in thresholds:
        panel.axhline(threshold, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        panel.annotate(
            count(threshold),
            (1, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=FAINT,
        )
    tidy(panel)


def _draw_errors(
    panel: "Axes",
    edges: FloatArray,
    means: FloatArray,
    tested: npt.NDArray[np.int64],
    masks: dict[str, npt.NDArray[np.bool_]],
    numbered: str | None,
) -> None:
    from matplotlib.patheffects import withStroke

    for shot, mask in masks.items():
        _bars(panel, edges, means, mask & (tested > 0), COLOURS[shot], bottom=0.0)
    if numbered is not None:
        halo = [withStroke(linewidth=1.5, foreground="white")]
        for i in np.flatnonzero(tested):
            panel.annotate(
                f"{tested[i]:,}",
                ((edges[i] + edges[i + 1]) / 2, means[i]),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=INK,
                zorder=4,
                path_effects=halo,
            )
        panel.set_title(f"numbers on bars: test {numbered}", loc="left", fontsize=7.5, color=FAINT, pad=3)
    tidy(panel)


def _draw_baseline(panel: "Axes", edges: FloatArray, means: FloatArray) -> None:
    known = np.isfinite(means)
    centres = (edges[:-1] + edges[1:]) / 2
    panel.plot(centres[known], means[known], color=INK, linewidth=1.0, label="constant median")


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


def _bin_means(error: FloatArray, index: npt.NDArray[np.int64], tested: npt.NDArray[np.int64]) -> FloatArray:
    sums = np.bincount(index, weights=error, minlength=len(tested))
    means: FloatArray = np.divide(sums, tested, out=np.full(len(tested), np.nan), where=tested > 0)
    return means
