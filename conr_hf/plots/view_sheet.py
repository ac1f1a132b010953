"""A sheet of views: what augmentation makes of images."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
import numpy.typing as npt

from conr_hf.plots.style import FAINT, INK, heading, new_figure, save

WIDTH = 1.3  # inches of a panel


def view_sheet(
    images: Sequence[npt.NDArray[np.uint8]],
    views: Sequence[Sequence[npt.NDArray[np.uint8]]],
    names: Sequence[str],
    path: str | PathLike[str],
    *,
    title: str,
) -> None:
    """
    A row for each image: the image as the model sees it in evaluation, then its views.

    Args:
        images (`Sequence` of arrays of shape `(H, W, 3)`, uint8): N images.
        views (`Sequence` of `Sequence` of such arrays): V views of each.
        names (`Sequence[str]`): What each image is called, its row and label for example.
        path: Of the PNG file.
        title (`str`): Title of the figure.
    """
    columns = 1 + len(views[0])
    figure = new_figure(WIDTH * columns + 0.2, (WIDTH + 0.22) * len(images) + 0.9)
    panels = figure.subplots(len(images), columns, squeeze=False)
    for row, (image, own_views, name) in enumerate(zip(images, views, names, strict=True)):
        for column, pixels in enumerate([image, *own_views]):
            panel = panels[row, column]
            panel.imshow(pixels, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if row == 0:
                title_of = "in evaluation" if column == 0 else f"view {column}"
                panel.set_title(title_of, fontsize=8, color=INK, pad=3)
        panels[row, 0].set_xlabel(name, fontsize=7.5, color=FAINT, labelpad=2)
    heading(figure, title)
    save(figure, path)
