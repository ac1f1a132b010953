"""The figure of `conr-hf inspect`: how many training labels lie where."""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from conr_hf.imbalance import Bins
from conr_hf.metrics import shot_masks
from conr_hf.plots.style import COLOURS, FAINT, heading, new_figure, save, shot_patches, tidy, with_unit


def label_histogram(
    bins: Bins,
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: Sequence[str],
    whole: Sequence[bool],
    thresholds: tuple[float, float] | None = None,
) -> None:
    """
    A PNG of the training labels per bin, on a logarithmic axis, coloured by shot; a panel for each label dimension.

    Args:
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        path (`str` or `os.PathLike`): The PNG file to write; its folder must exist.
        unit (`str`): Unit of the labels, for the axes; `""` for none.
        title (`str`): Title of the figure.
        target (sequence of T `str`): What the labels are, for the axes.
        whole (sequence of T `bool`): Whether they are whole numbers; bars then stand over the numbers they hold.
        thresholds (`tuple[float, float]`, *optional*, defaults to those of the bins):
            As in [`~conr_hf.metrics.shot_metrics`].

    Raises:
        `ImportError`: Without matplotlib.
    """
    thresholds = bins.thresholds if thresholds is None else thresholds
    figure = new_figure(7.6 if len(bins.edges) == 1 else 5.2 * len(bins.edges), 3.8)
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(1, len(bins.edges), squeeze=False)[0]
    for panel, edges, counts, name, of_whole in zip(panels, bins.edges, bins.train_counts, target, whole, strict=True):
        for shot, mask in shot_masks(counts, thresholds).items():
            panel.stairs(
                np.where(mask & (counts > 0), counts, np.nan),
                edges - 0.5 if of_whole else edges,
                baseline=0.6,
                fill=True,
                color=COLOURS[shot],
                # Bins narrower than a pixel would fade away without an outline.
                linewidth=0.0 if len(counts) <= 300 else 0.7,
            )
        panel.set_yscale("log")
        panel.set_ylim(0.6, max(int(counts.max()), thresholds[1]) * 1.6)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        for threshold in thresholds:
            panel.axhline(threshold, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=of_whole))
        panel.set_xlabel(with_unit(name, unit))
        panel.set_ylabel(f"training rows in bins of {edges[1] - edges[0]:g} {unit}".rstrip())
        tidy(panel)
    heading(figure, title, shot_patches(thresholds))
    save(figure, path)
