"""The figure of `conr-hf inspect`: how many training labels lie where."""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from conr_hf.imbalance import Bins
from conr_hf.metrics import THRESHOLDS, shot_masks
from conr_hf.plots import COLOURS, FAINT, INK


def label_histogram(
    bins: Bins,
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: Sequence[str],
    whole: Sequence[bool],
    thresholds: tuple[int, int] = THRESHOLDS,
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
        thresholds (`tuple[int, int]`, *optional*, defaults to `(20, 100)`): As in [`~conr_hf.metrics.shot_metrics`].

    Raises:
        `ImportError`: Without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('Figures need matplotlib. Install it with: pip install "conr-hf[plots]"') from error

    dimensions = len(bins.edges)
    figure = Figure(figsize=(7.6 if dimensions == 1 else 5.2 * dimensions, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    low, high = thresholds
    texts = {"many": f"many (> {high})", "median": f"median ({low} to {high})", "few": f"few (< {low})"}
    panels = figure.subplots(1, dimensions, squeeze=False)[0]
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
        panel.set_ylim(0.6, max(int(counts.max()), high) * 1.6)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        for threshold in thresholds:
            panel.axhline(threshold, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=of_whole))
        panel.set_xlabel(f"{name} ({unit})" if unit else name)
        panel.set_ylabel(f"training rows in bins of {edges[1] - edges[0]:g} {unit}".rstrip())
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(FAINT)
        panel.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=8.5)
    legend = figure.legend(
        [Patch(color=COLOURS[shot]) for shot in texts],
        list(texts.values()),
        loc="outside upper left",
        ncols=len(texts),
        handlelength=1.4,
        frameon=False,
        fontsize=8.5,
        title=title,
        alignment="left",
    )
    legend.get_title().set(fontsize=12, fontweight="bold", color=INK)
    figure.savefig(path, format="png")
