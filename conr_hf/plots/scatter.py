"""Predictions against the truth."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins, label_columns
from conr_hf.metrics import like_labels, shot_masks
from conr_hf.plots.style import COLOURS, INK, axis_names, heading, new_figure, save, shot_patches, tidy


def predicted_against_true(
    bins: Bins,
    labels: npt.ArrayLike | Tensor,
    predictions: npt.ArrayLike | Tensor,
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: str | Sequence[str] = "label",
    thresholds: tuple[float, float] | None = None,
) -> None:
    """
    A point for each sample, coloured by shot, and the line on which all would lie were there no error.

    Several label dimensions get a panel each, where a sample's shot is that of this dimension alone.

    Args:
        bins, labels, predictions, path, unit, title, target, thresholds: As in [`~conr_hf.plots.density_with_error`].

    Raises:
        `ValueError`: As [`~conr_hf.plots.density_with_error`].
    """
    y = label_columns(labels)  # (N, T)
    thresholds = bins.thresholds if thresholds is None else thresholds
    p = like_labels(predictions, labels).reshape(y.shape)
    dimensions = y.shape[1]
    names = axis_names(target, unit, dimensions)
    counts = bins.train_counts_of(y)
    figure = new_figure(5.8 if dimensions == 1 else 4.8 * dimensions, 5.9)
    panels = figure.subplots(1, dimensions, squeeze=False)[0]
    size, alpha = (14.0, 0.75) if len(y) <= 1000 else (5.0, 0.4)
    point: dict[str, Any] = {"s": size, "alpha": alpha, "linewidths": 0.3, "edgecolors": "white"}
    for t, panel in enumerate(panels):
        low, high = min(y[:, t].min(), p[:, t].min()), max(y[:, t].max(), p[:, t].max())
        margin = 0.04 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        panel.plot(limits, limits, color=INK, linewidth=0.9, zorder=1)
        for order, (shot, mask) in enumerate(shot_masks(counts[:, t], thresholds).items()):  # the rare ones on top
            panel.scatter(y[mask, t], p[mask, t], color=COLOURS[shot], zorder=2 + order, **point)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"true {names[t]}")
        tidy(panel, "both")
    panels[0].set_ylabel(f"predicted {names[0]}" if dimensions == 1 else "predicted")
    from matplotlib.lines import Line2D

    ideal = Line2D([], [], color=INK, linewidth=0.9, label="no error")
    heading(figure, title, [*shot_patches(thresholds, counts), ideal], columns=4)
    save(figure, path)
