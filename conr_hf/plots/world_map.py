"""Truth, prediction and error where they lie on Earth."""

from os import PathLike

import numpy as np
import numpy.typing as npt

from conr_hf.plots.style import ERROR_MAP, FAINT, INK, LABEL_MAP, heading, new_figure, save, tidy, with_unit


def world_map(
    latitude: npt.ArrayLike,
    longitude: npt.ArrayLike,
    labels: npt.NDArray[np.float64],
    predictions: npt.NDArray[np.float64],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: str = "label",
    training_places: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> None:
    """
    Three maps, one below the other: truth, prediction and error of each sample at its place.

    Truth and prediction share their colours; the error's are symmetric about 0, red too high and blue too low.

    Args:
        latitude, longitude (`array_like` of shape `(N,)`): Where the samples are, in degrees north and east.
        labels, predictions (`np.ndarray` of shape `(N,)`): In label units.
        path (`str` or `os.PathLike`): As in [`~conr_hf.plots.density_with_error`].
        unit (`str`): Unit of the labels, or `""`.
        title (`str`): Title of the figure.
        target (`str`, *optional*, defaults to `"label"`): What the labels are.
        training_places (two `array_like` of shape `(M,)`, *optional*):
            Latitudes and longitudes of the training samples, drawn faintly below.

    Raises:
        `ImportError`: Without matplotlib.
    """
    north, east = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    error = predictions - labels
    both = np.concatenate([labels, predictions])
    largest = float(np.quantile(np.abs(error), 0.98)) or 1.0
    every = north if training_places is None else np.concatenate([north, np.asarray(training_places[0], np.float64)])
    latitudes = max(float(every.min()) - 5, -90.0), min(float(every.max()) + 5, 90.0)
    figure = new_figure(8.2, 3 * (6.6 * (latitudes[1] - latitudes[0]) / 360 + 0.35) + 0.6)
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    colours = ((labels, LABEL_MAP, both.min(), both.max()), (predictions, LABEL_MAP, both.min(), both.max()))
    parts = (*colours, (error, ERROR_MAP, -largest, largest))
    texts = (f"true {target}", f"predicted {target}", "prediction minus truth")
    for panel, text, (values, colour_map, low, high) in zip(panels, texts, parts, strict=True):
        if training_places is not None:
            panel.scatter(
                training_places[1], training_places[0], s=1.2, color="#d8d8d8", linewidths=0, zorder=1, rasterized=True
            )
        order = np.argsort(np.abs(values))  # the remarkable ones on top
        points = panel.scatter(
            east[order],
            north[order],
            c=values[order],
            s=18,
            cmap=colour_map,
            vmin=low,
            vmax=high,
            linewidths=0.4,
            edgecolors=FAINT,
            zorder=2,
        )
        bar = figure.colorbar(points, ax=panel, pad=0.01, aspect=22, extend="both" if values is error else "neither")
        bar.set_label(with_unit("error" if values is error else target, unit), fontsize=8.5, color=INK)
        bar.ax.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
        panel.set_title(text, loc="left", fontsize=9.5, color=INK)
        panel.set_xticks(range(-180, 181, 60), [_degrees(x, "E", "W") for x in range(-180, 181, 60)])
        panel.set_yticks(range(-90, 91, 30), [_degrees(y, "N", "S") for y in range(-90, 91, 30)])
        panel.set(aspect="equal", xlim=(-180, 180), ylim=latitudes)
        tidy(panel, "both")
    heading(figure, title)
    save(figure, path)


def _degrees(value: int, positive: str, negative: str) -> str:
    return f"{abs(value)}°{positive if value > 0 else negative if value < 0 else ''}"
