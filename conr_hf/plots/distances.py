"""Whether the features are ordered as the labels are, and where they collapse."""

from os import PathLike

import numpy as np
import numpy.typing as npt

from conr_hf.metrics import THRESHOLDS, shot_masks
from conr_hf.plots.style import COLOURS, FAINT, INK, heading, new_figure, save, shot_patches, tidy, with_unit

DENSITY_MAP = "Blues"
DASHES = (0, (4, 2))


def label_and_feature_distances(
    label_distances: npt.NDArray[np.float64],
    feature_distances: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float64],
    neighbour_labels: npt.NDArray[np.float64],
    train_counts: npt.NDArray[np.int64],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: str = "label",
    thresholds: tuple[float, float] = THRESHOLDS,
) -> None:
    """
    Two panels: how far pairs of samples are apart in labels and in features, and which labels each sample lies among.

    Left a histogram over pairs, each column of it scaled to its own maximum, with the median feature distance; right
    the labels of each sample's nearest training samples against its own (more of them in a larger point), where rare
    labels far below or above the line lie inside others.

    Args:
        label_distances, feature_distances (`np.ndarray` of shape `(P,)`):
            What [`~conr_hf.metrics.features.distance_pairs`] returned.
        labels (`np.ndarray` of shape `(N,)`): Labels of the samples on the right, in label units.
        neighbour_labels (`np.ndarray` of shape `(N, K)`): Labels of each one's nearest training samples.
        train_counts (`np.ndarray` of shape `(N,)`): Training labels in each one's bin.
        path, unit, title, target, thresholds: As in [`~conr_hf.plots.density_with_error`].
    """
    figure = new_figure(10.4, 5.1)
    left, right = figure.subplots(1, 2)
    from matplotlib.lines import Line2D

    bins = 40
    furthest = float(np.quantile(label_distances, 0.999)) or 1.0
    widest = float(np.quantile(feature_distances, 0.999)) or 1.0
    limits = ((0.0, furthest), (0.0, widest))
    counts, label_edges, feature_edges = np.histogram2d(label_distances, feature_distances, bins, limits)
    share = counts / np.maximum(counts.max(axis=1, keepdims=True), 1)
    shades = left.pcolormesh(label_edges, feature_edges, share.T, cmap=DENSITY_MAP, vmin=0, vmax=1, rasterized=True)
    column = np.clip(np.digitize(label_distances, label_edges) - 1, 0, bins - 1)
    inside = label_distances <= furthest
    filled = np.flatnonzero(np.bincount(column[inside], minlength=bins) >= 5)
    medians = [np.median(feature_distances[inside & (column == i)]) for i in filled]
    left.plot(((label_edges[:-1] + label_edges[1:]) / 2)[filled], medians, color=INK, linewidth=1.4)
    left.set(xlabel=with_unit("distance of labels", unit), ylabel="distance of features (1 - cosine)")
    bar = figure.colorbar(shades, ax=left, pad=0.01, aspect=30)
    bar.set_label("pairs, beside the fullest cell of the column", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    left.set_box_aspect(1)
    tidy(left, "both")

    low, high = min(labels.min(), neighbour_labels.min()), max(labels.max(), neighbour_labels.max())
    margin = 0.03 * (high - low) or 1.0
    span = (low - margin, high + margin)
    right.plot(span, span, color=INK, linewidth=0.9, linestyle=DASHES, zorder=1)
    for order, (shot, mask) in enumerate(shot_masks(train_counts, thresholds).items()):
        beside = np.broadcast_to(labels[mask, None], neighbour_labels[mask].shape)
        points = np.stack([beside.ravel(), neighbour_labels[mask].ravel()], axis=1)
        places, times = np.unique(points, axis=0, return_counts=True)  # whole labels fall on each other
        size, alpha = (9.0, 0.5) if len(labels) <= 1000 else (3.0, 0.25)
        look = {"color": COLOURS[shot], "alpha": alpha, "linewidths": 0, "zorder": 2 + order}
        right.scatter(places[:, 0], places[:, 1], s=size * np.sqrt(times), **look)
    right.set(xlim=span, ylim=span, aspect="equal", xlabel=with_unit(f"true {target}", unit))
    right.set_ylabel(with_unit(f"{target} of the {neighbour_labels.shape[1]} nearest training images", unit))
    tidy(right, "both")
    median = Line2D([], [], color=INK, linewidth=1.4, label="median of the pairs")
    same = Line2D([], [], color=INK, linewidth=0.9, linestyle=DASHES, label="the same label")
    heading(figure, title, [median, same, *shot_patches(thresholds, train_counts)])
    save(figure, path)
