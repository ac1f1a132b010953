"""A contact sheet: images with their truth and prediction."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from conr_hf.imbalance import label_columns
from conr_hf.metrics import SHOTS, like_labels
from conr_hf.plots.style import COLOURS, FAINT, INK, heading, new_figure, number, save

COLUMNS = 6


def contact_sheet(
    images: Sequence[Image.Image],
    labels: npt.ArrayLike | Tensor,
    predictions: npt.ArrayLike | Tensor,
    shots: Sequence[str],
    names: Sequence[str],
    path: str | PathLike[str],
    *,
    span: float,
    title: str,
) -> None:
    """
    Images in rows of six, each with its name, truth and prediction below it and its shot as the colour of its frame.

    Args:
        images (`Sequence[PIL.Image.Image]`): N images, RGB, of any sizes.
        labels, predictions, path: As in [`~conr_hf.plots.density_with_error`].
        shots (`Sequence[str]`): "many", "median" or "few" for each.
        names (`Sequence[str]`): What each image is called, its row for example.
        span (`float`): Range of the labels, in label units, which settles to how many decimals they are written.
        title (`str`): Title of the figure, which should name the unit.

    Raises:
        `ValueError`: For labels and predictions that do not fit together.
    """
    y = label_columns(labels)  # (N, T)
    p = like_labels(predictions, labels).reshape(y.shape)
    rows = -(-len(images) // COLUMNS)
    figure = new_figure(9.6, 2.1 * rows + 0.7)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels[len(images) :]:
        panel.set_axis_off()
    for i, (image, panel) in enumerate(zip(images, panels, strict=False)):
        small = image.copy()
        small.thumbnail((256, 256))
        panel.imshow(np.asarray(small), interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=COLOURS[shots[i]], linewidth=2.2)
        true, predicted = (", ".join(number(value, span) for value in values) for values in (y[i], p[i]))
        panel.set_xlabel(f"true {true}\npredicted {predicted}", fontsize=8.5, color=INK, labelpad=4)
        panel.set_title(names[i], fontsize=7.5, color=FAINT, pad=3)
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[shot], label=SHOTS[shot]) for shot in COLOURS if shot in shots]
    heading(figure, title, handles)
    save(figure, path)
