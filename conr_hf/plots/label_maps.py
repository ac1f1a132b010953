"""Label maps beside their images: truth, prediction and error of every pixel."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from conr_hf.imbalance.bins import FloatArray
from conr_hf.metrics.validation import as_float64, reshaped
from conr_hf.plots.style import ERROR_MAP, FAINT, INK, LABEL_MAP, heading, new_figure, number, save, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

WIDTH = 2.15  # inches of a panel
BAR = 0.75  # of a colour bar with its numbers
CUT = 0.005  # share of the pixels at either end that may be beyond the colours
MOST_PIXELS = 640  # that are drawn of a side
HEADING: dict[str, Any] = {"loc": "left", "fontsize": 8.5, "color": INK, "pad": 3}
NO_LABEL: dict[str, Any] = {"facecolor": "#e4e4e4", "edgecolor": "#9a9a9a", "hatch": "////", "linewidth": 0}


def map_pictures(
    images: Sequence[Image.Image],
    labels: Sequence[npt.ArrayLike | Tensor] | None,
    predictions: Sequence[npt.ArrayLike | Tensor],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    target: str = "label",
    names: Sequence[str] = (),
) -> None:
    """
    A row for each map: its image, truth, prediction and error, with the map's mean absolute error.

    Truth and prediction of a row share their colours, which reach from about its smallest to its greatest value; the
    errors of all rows share theirs, red too high and blue too low. Pixels without a label are hatched, in truth and
    error. Without labels there are image and prediction alone.

    Args:
        images (`Sequence[PIL.Image.Image]`): N images, of any sizes.
        labels (`Sequence` of `array_like` or `torch.Tensor` of shape `(H, W)`, *optional*):
            N true maps, in label units, NaN where there is no label. Sizes may differ from map to map.
        predictions (`Sequence` of `array_like` or `torch.Tensor` of shape `(H, W)`): N predicted maps of these sizes.
        path, unit, title, target: As in [`~conr_hf.plots.density_with_error`].
        names (`Sequence[str]`, *optional*): What each image is called, its row for example.

    Raises:
        `ValueError`: For a prediction of another shape than its labels.
    """
    p = [as_float64(prediction) for prediction in predictions]
    y = [np.full(values.shape, np.nan) for values in p] if labels is None else [as_float64(label) for label in labels]
    p = [reshaped(a, b, f"predictions[{i}]") for i, (a, b) in enumerate(zip(p, y, strict=True))]
    errors = [a - b for a, b in zip(p, y, strict=True)]
    every = np.abs(np.concatenate([error[~np.isnan(error)] for error in errors]))
    largest = (float(np.quantile(every, 1 - CUT)) if len(every) else 0.0) or 1.0
    columns = 2 if labels is None else 4
    height = WIDTH * max(max(a.shape[0] / a.shape[1], i.height / i.width) for a, i in zip(p, images, strict=True))
    figure = new_figure(columns * WIDTH + columns // 2 * BAR, len(p) * (height + 0.28) + 0.55)
    panels = figure.subplots(len(p), columns, squeeze=False)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=FAINT, linewidth=0.6)
    for i, row in enumerate(panels):
        small = images[i].convert("RGB")
        small.thumbnail((MOST_PIXELS, MOST_PIXELS))
        row[0].imshow(np.asarray(small))
        row[0].set_title(names[i] if names else "", **HEADING)
        there = ~np.isnan(y[i])
        values = np.concatenate([y[i][there], p[i][there]]) if there.any() else p[i].ravel()
        low, high = (float(end) for end in np.quantile(values, [CUT, 1 - CUT]))
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        if labels is None:
            _bar(_drawn(row[1], p[i], f"predicted {target}", low, high), p[i], with_unit(target, unit))
            continue
        _drawn(row[1], y[i], f"true {target}", low, high)
        drawn = _drawn(row[2], p[i], f"predicted {target}", low, high)
        _bar(drawn, np.concatenate([p[i], y[i]]), with_unit(target, unit))
        if there.any():
            mae = number(float(np.abs(errors[i][there]).mean()), 2 * largest)
            drawn = _drawn(row[3], errors[i], f"error, MAE {mae} {unit}".rstrip(), -largest, largest, ERROR_MAP)
            _bar(drawn, errors[i], with_unit("error", unit))
        else:
            _drawn(row[3], errors[i], "no label to compare with", -largest, largest, ERROR_MAP)
    from matplotlib.patches import Patch

    holed = labels is not None and any(np.isnan(values).any() for values in y)
    heading(figure, title, [Patch(label="no label", **NO_LABEL)] if holed else ())
    save(figure, path)


def _drawn(
    panel: "Axes", values: FloatArray, text: str, low: float, high: float, colours: str = LABEL_MAP
) -> "AxesImage":
    """Draws a map of shape (H, W) under its heading, hatched where it is NaN."""
    from matplotlib.patches import Rectangle

    panel.add_patch(Rectangle((0, 0), 1, 1, transform=panel.transAxes, zorder=0, **NO_LABEL))
    step = -(-max(values.shape) // MOST_PIXELS)
    panel.set_title(text, **HEADING)
    shown = np.ma.masked_invalid(values[::step, ::step])
    return panel.imshow(shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest", zorder=1)


def _bar(drawn: "AxesImage", values: FloatArray, label: str) -> None:
    """A colour bar as high as its panel, with arrows where values are beyond its colours."""
    from matplotlib.ticker import MaxNLocator

    panel, (low, high) = drawn.axes, drawn.get_clim()
    below, above = bool(np.nanmin(values) < low), bool(np.nanmax(values) > high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    bar = panel.figure.colorbar(drawn, cax=panel.inset_axes((1.04, 0, 0.05, 1)), extend=extend)
    bar.outline.set(color=FAINT, linewidth=0.6)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, color=FAINT, labelcolor=INK)
