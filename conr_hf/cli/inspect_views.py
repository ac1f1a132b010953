"""`conr-hf inspect --views`: what a network will see of the training images."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTImageProcessor

from conr_hf.data.collator import ImageCollator
from conr_hf.data.columns import read_labels
from conr_hf.data.config import DataConfig
from conr_hf.data.map_statistics import has_maps
from conr_hf.data.sampler import SampledIndex
from conr_hf.plots.view_sheet import view_sheet

IMAGES = 6


def draw_views(options: Namespace, rows: Any, bad_rows: set[int]) -> Path:
    """
    Draws `options.views` views of six training `rows`, from the smallest label to the largest, into `views.png` in
    `options.output`: as training with these options makes them of seed 0, at `options.image_size` pixels. `bad_rows`,
    whose image or label cannot be read, are left out.
    """
    settings = DataConfig(
        options.label_columns,
        image_column=options.image_column,
        image_range=options.image_range,
        augmentation=options.augmentation,
        augment_color=options.augment_color,
        crop_area=options.crop_area,
        crop_padding=options.crop_padding,
        horizontal_flip=options.horizontal_flip,
        vertical_flip=options.vertical_flip,
    )
    settings.check_data("label")
    chosen, names = _spread(rows, options, bad_rows)
    side = options.image_size
    processor = ViTImageProcessor(size={"height": side, "width": side}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    collate = ImageCollator(
        processor,
        settings.image_column,
        settings.label_columns,
        options.views,
        settings.augmentation_settings(),
        seed=0,
        flipped_columns=settings.sign_flipped_columns(),
        image_range=settings.image_range,
    )
    # Of the image alone, so that labels of any kind do.
    images = [{options.image_column: rows[row][options.image_column]} for row in chosen]
    views = collate([(SampledIndex(row, 0, i), images[i]) for i, row in enumerate(chosen)])
    plain = collate([(None, image) for image in images])
    path = Path(options.output, "views.png")
    view_sheet(
        [_bytes(image) for image in plain["pixel_values"]],
        [[_bytes(view) for view in own] for own in views["pixel_values"]],
        names,
        path,
        title=f"Views of training images: augmentation {settings.augmentation}, {side} x {side} pixels",
    )
    return path


def _spread(rows: Any, options: Namespace, bad_rows: set[int]) -> tuple[list[int], list[str]]:
    """Rows from the smallest label to the largest, and what they are called; of maps, rows from first to last."""
    order, labels = np.array([row for row in range(len(rows)) if row not in bad_rows]), None
    if not has_maps(rows, options.label_columns, "the training split"):
        labels = np.asarray(read_labels(rows, options.label_columns, "the training split")[0]).reshape(len(rows), -1)
        order = order[np.argsort(labels[order, 0], kind="stable")]
    places = np.linspace(0, len(order) - 1, min(IMAGES, len(order))).round().astype(int)
    chosen = [int(row) for row in order[places]]
    if labels is None:
        return chosen, [f"row {row:,}" for row in chosen]
    numbers = {row: ", ".join(f"{value:.4g}" for value in labels[row]) for row in chosen}
    return chosen, [f"row {row:,}: {number} {options.unit}".rstrip() for row, number in numbers.items()]


def _bytes(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
