"""Truth, prediction and error where they lie on Earth."""

from os import PathLike
from typing import Any

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
        path, unit, title, target: As in [`~conr_hf.plots.density_with_error`].
        training_places (two `array_like` of shape `(M,)`, *optional*):
            Latitudes and longitudes of the training samples, drawn faintly below.
    """
    north, east = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    error, both = predictions - labels, np.concatenate([labels, predictions])
    largest = float(np.quantile(np.abs(error), 0.98)) or 1.0
    every = north if training_places is None else np.concatenate([north, np.asarray(training_places[0], np.float64)])
    latitudes = max(float(every.min()) - 5, -90.0), min(float(every.max()) + 5, 90.0)
    figure = new_figure(8.2, 3 * (6.6 * (latitudes[1] - latitudes[0]) / 360 + 0.35) + 0.6)
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    shared: dict[str, Any] = {"cmap": LABEL_MAP, "vmin": both.min(), "vmax": both.max()}
    parts: tuple[tuple[str, npt.NDArray[np.float64], dict[str, Any]], ...] = (
        (f"true {target}", labels, shared),
        (f"predicted {target}", predictions, shared),
        ("prediction minus truth", error, {"cmap": ERROR_MAP, "vmin": -largest, "vmax": largest}),
    )
    point: dict[str, Any] = {"s": 18, "linewidths": 0.4, "edgecolors": FAINT, "zorder": 2}
    trained: dict[str, Any] = {"s": 1.2, "linewidths": 0, "color": "#d8d8d8", "zorder": 1, "rasterized": True}
    for panel, (text, values, colours) in zip(panels, parts, strict=True):
        if training_places is not None:
            panel.scatter(training_places[1], training_places[0], **trained)
        order = np.argsort(np.abs(values))  # the remarkable ones on top
        points = panel.scatter(east[order], north[order], c=values[order], **colours, **point)
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
