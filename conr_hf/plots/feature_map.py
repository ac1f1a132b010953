"""Features in the plane, coloured by label."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import label_columns
from conr_hf.imbalance.bins import FloatArray
from conr_hf.plots.style import FAINT, INK, LABEL_MAP, axis_names, heading, new_figure, save

MOST_POINTS = 3_000


def feature_map(
    features: npt.ArrayLike,
    labels: npt.ArrayLike | Tensor,
    evaluated: npt.NDArray[np.bool_],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    split: str = "test",
    target: str | Sequence[str] = "label",
    seed: int = 0,
) -> None:
    """
    The directions of the features as a map: by PCA and t-SNE, and by UMAP if umap-learn is installed.

    Colours are the labels, in a row of maps for each label dimension; evaluated samples are larger, with a dark edge.
    Of more than 3,000 samples a draw is shown.

    Args:
        features (`array_like` of shape `(N, D)`): Features at the head.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): Labels, in label units.
        evaluated (`np.ndarray` of shape `(N,)`, bool): Which samples are of the evaluated split; the others trained.
        path, unit, title, target: As in [`~conr_hf.plots.density_with_error`].
        split (`str`, *optional*, defaults to `"test"`): What the evaluated split is called.
        seed (`int`, *optional*, defaults to 0): Seed of the draw, of t-SNE and of UMAP.
    """
    figure = new_figure(1, 1)
    chosen = np.arange(len(evaluated))
    if len(chosen) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MOST_POINTS, replace=False))
    rows = np.asarray(features, np.float64)[chosen]
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    y, evaluated = label_columns(labels)[chosen], evaluated[chosen]
    maps = projections(rows / np.where(norm > 0, norm, 1), seed)
    names = axis_names(target, unit, y.shape[1])

    figure.set_size_inches(4.9 * len(maps) + 0.9, 4.7 * y.shape[1] + 0.8)
    panels = figure.subplots(y.shape[1], len(maps), squeeze=False)
    for t, name in enumerate(names):
        limits = {"vmin": y[:, t].min(), "vmax": y[:, t].max()}
        for panel, (method, places) in zip(panels[t], maps.items(), strict=True):
            for mask, style in (
                (~evaluated, {"s": 7.0, "alpha": 0.65, "linewidths": 0.0, "rasterized": True}),
                (evaluated, {"s": 20.0, "linewidths": 0.35, "edgecolors": INK}),
            ):
                order = np.argsort(y[mask, t], kind="stable")
                x = places[mask][order]
                points = panel.scatter(x[:, 0], x[:, 1], c=y[mask, t][order], cmap=LABEL_MAP, **limits, **style)
            panel.set_title(method, loc="left", fontsize=9.5, color=INK)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color=FAINT, linewidth=0.6)
        bar = figure.colorbar(points, ax=panels[t, -1], pad=0.02, aspect=30)
        bar.set_label(name, fontsize=8.5, color=INK)
        bar.ax.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    dot: dict[str, Any] = {"color": FAINT, "marker": "o", "linestyle": "", "markeredgewidth": 0.5}
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], markersize=size, markeredgecolor=edge, label=text, **dot)
        for size, edge, text in ((3, FAINT, "training images"), (5, INK, f"{split} images"))
    ]
    heading(figure, title, handles)
    save(figure, path)


def projections(features: FloatArray, seed: int) -> dict[str, FloatArray]:
    """
    Places in the plane, of shape (N, 2), of features of shape (N, D), by each method there is; the name of PCA says
    how much of the variance it shows.
    """
    from sklearn.manifold import TSNE

    centred = features - features.mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    scores = np.pad(left * size, ((0, 0), (0, max(0, 2 - len(size)))))
    shown = (size[:2] ** 2).sum() / max((size**2).sum(), 1e-30)
    maps = {f"PCA ({100 * shown:.0f} % of the variance)": scores[:, :2]}
    if len(features) < 10:
        return maps
    compact = scores[:, :50]
    perplexity = min(30.0, (len(features) - 1) / 3)
    maps["t-SNE"] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(compact)
    try:
        from umap import UMAP
    except ImportError:
        return maps
    return maps | {"UMAP": UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed).fit_transform(compact)}
