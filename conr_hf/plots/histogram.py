"""The figure of `conr-hf inspect`: how many training labels lie where."""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from conr_hf.imbalance import Bins
from conr_hf.metrics import shot_masks
from conr_hf.plots.style import COLOURS, count_axis, heading, new_figure, save, shot_patches, with_unit


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
        unit, title, thresholds: As in [`~conr_hf.plots.density_with_error`].
        target (sequence of T `str`): What the labels are, for the axes.
        whole (sequence of T `bool`): Whether they are whole numbers; bars then stand over the numbers they hold.
    """
    thresholds = bins.thresholds if thresholds is None else thresholds
    figure = new_figure(7.6 if len(bins.edges) == 1 else 5.2 * len(bins.edges), 3.8)
    from matplotlib.ticker import MaxNLocator  # after new_figure, which says how to install it

    panels = figure.subplots(1, len(bins.edges), squeeze=False)[0]
    for panel, edges, counts, name, of_whole in zip(panels, bins.edges, bins.train_counts, target, whole, strict=True):
        outline = 0.0 if len(counts) <= 300 else 0.7  # bins narrower than a pixel would fade away without one
        places = edges - 0.5 if of_whole else edges
        for shot, mask in shot_masks(counts, thresholds).items():
            heights = np.where(mask & (counts > 0), counts, np.nan)
            panel.stairs(heights, places, baseline=0.6, fill=True, color=COLOURS[shot], linewidth=outline)
        count_axis(panel, counts, thresholds)
        panel.xaxis.set_major_locator(MaxNLocator(integer=of_whole))
        panel.set_xlabel(with_unit(name, unit))
        panel.set_ylabel(f"training rows in bins of {edges[1] - edges[0]:g} {unit}".rstrip())
    drawn = np.concatenate([counts[counts > 0] for counts in bins.train_counts])
    heading(figure, title, shot_patches(thresholds, drawn))
    save(figure, path)
