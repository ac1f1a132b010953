"""From rows to batches: which row comes when, label-preserving augmentation, views of an image, the collator."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import BaseImageProcessor

from conr_hf.data.rows import Row, describe, label_cells, to_image


class Draw(NamedTuple):
    """One row drawn for training. Randomness hangs on the draw, so a resume and any number of processes repeat it."""

    row: int
    epoch: int
    position: int  # in the epoch's global order; from the number of rows on, a repeat that evens out the processes


class TrainingSampler(Sampler[Draw]):
    """
    Every row once an epoch, in an order that depends on (seed, epoch) alone.

    Where the processes' batches would not come out even, rows from the start of the epoch follow as repeats, known by
    their position.

    Args:
        rows (`Sized`): The data set.
        seed (`int`): Seed of the order.
        shuffle (`bool`): Random order; otherwise the data set's.
        multiple (`int`): The number of draws is a multiple of this: the global batch, or 1 on one process.
    """

    def __init__(self, rows: Sized, seed: int, shuffle: bool, multiple: int) -> None:
        self.rows, self.seed, self.shuffle, self.multiple = rows, seed, shuffle, multiple
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(len(self.rows))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        for position in range(len(self)):
            yield Draw(int(order[position % len(order)]), self.epoch, position)


class DrawnRows(Dataset[tuple[Draw | None, Row]]):
    """Rows of a data set beside the draw that asked for them, `None` in evaluation."""

    def __init__(self, dataset: Dataset[Any], name: str, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.dataset, self.name = dataset, name
        self.indices = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Draw | int) -> tuple[Draw | None, Row]:
        draw = key if isinstance(key, Draw) else None
        row = int(self.indices[draw.row if draw is not None else int(key)])  # type: ignore[arg-type]
        try:
            return draw, self.dataset[row]
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{self.name}, row {row:,}: the image cannot be read: {describe(error)}.") from error


class ImageCollator:
    """
    Makes batches of rows: `num_views` augmented views of each image for training, one plain view for evaluation.

    Each image is decoded and processed once for all its views: a view is the processor's output, padded, cropped back
    to its size and perhaps flipped. So evaluation sees exactly what the processor saved beside the model gives.

    Args:
        processor (`BaseImageProcessor`, *optional*): The model's image processor; not needed for rows that come ready
            for the model (`pixel_values` of shape `(C, H, W)`, or `(V, C, H, W)` for V views of the user's own).
        image_column (`str`): Column of the image.
        label_columns (`Sequence[str]`): The T columns of the label.
        num_views (`int`): Views of each image (V).
        horizontal_flip (`bool`): Flip half of the views from left to right.
        crop_padding (`float`): Largest shift of a view, as a share of its sides.
        seed (`int`): Seed of all draws.

    Returns:
        `dict`: `pixel_values` of shape `(B, V, C, H, W)` in training and `(B, C, H, W)` in evaluation, float32;
        `labels` of shape `(B,)`, or `(B, T)` for T > 1, float32, in label units, where the rows have labels;
        `sample_weight` of shape `(B,)` where they have that column; `position`, an `int`, in training: the first row's
        position in the epoch's global order.
    """

    def __init__(
        self,
        processor: BaseImageProcessor | None,
        image_column: str,
        label_columns: Sequence[str],
        num_views: int,
        horizontal_flip: bool,
        crop_padding: float,
        seed: int,
    ) -> None:
        self.processor, self.image_column, self.label_columns = processor, image_column, list(label_columns)
        self.num_views, self.horizontal_flip, self.crop_padding = num_views, horizontal_flip, crop_padding
        self.seed = seed

    def __call__(self, examples: Sequence[tuple[Draw | None, Row]]) -> dict[str, Any]:
        draws, rows = [draw for draw, _ in examples], [row for _, row in examples]
        batch: dict[str, Any] = {"pixel_values": self._pixels(draws, rows)}
        if "labels" in rows[0] or all(column in rows[0] for column in self.label_columns):
            cells = [[float(cell) for cell in label_cells(row, self.label_columns, "a data set")] for row in rows]
            labels = torch.tensor(cells, dtype=torch.float32)
            batch["labels"] = labels[:, 0] if len(self.label_columns) == 1 else labels
        if draws[0] is not None:
            batch["position"] = draws[0].position
            if "sample_weight" in rows[0]:
                batch["sample_weight"] = torch.tensor([float(row["sample_weight"]) for row in rows])
        return batch

    def _pixels(self, draws: Sequence[Draw | None], rows: Sequence[Row]) -> Tensor:
        if "pixel_values" in rows[0]:
            return torch.stack([torch.as_tensor(row["pixel_values"], dtype=torch.float32) for row in rows])
        if self.processor is None:
            raise ValueError(
                "The images need an image processor: give processing_class=..., as load_regressor returns."
            )
        if self.image_column not in rows[0]:
            raise ValueError(
                f'The data set has no column "{self.image_column}"; its columns are {", ".join(rows[0])}. '
                "Name the column of the image with image_column."
            )
        images = [to_image(row[self.image_column]) for row in rows]
        pixels: Tensor = self.processor(images=images, return_tensors="pt")["pixel_values"]
        if draws[0] is None:
            return pixels
        return torch.stack([self._views(image, draw) for image, draw in zip(pixels, draws, strict=True) if draw])

    def _views(self, image: Tensor, draw: Draw) -> Tensor:
        views = []
        for view in range(self.num_views):
            random = np.random.default_rng((self.seed, draw.epoch, draw.position, view))
            views.append(shifted(image, self.crop_padding, random, self.horizontal_flip))
        return torch.stack(views)


def shifted(image: Tensor, crop_padding: float, random: np.random.Generator, horizontal_flip: bool) -> Tensor:
    """
    A random crop of the image padded with zeros (the processor's mean colour), and a flip in half of the draws.

    Args:
        image (`torch.Tensor` of shape `(C, H, W)`): The processor's output.
        crop_padding (`float`): Padding on each side, as a share of it; 1/14 is 16 of 224 pixels.
        random (`np.random.Generator`): Where the draws come from.
        horizontal_flip (`bool`): Whether to flip.

    Returns:
        `torch.Tensor` of shape `(C, H, W)`.
    """
    height, width = image.shape[-2:]
    pad_y, pad_x = round(height * crop_padding), round(width * crop_padding)
    top, left = random.integers(0, 2 * pad_y + 1), random.integers(0, 2 * pad_x + 1)
    padded = F.pad(image, (pad_x, pad_x, pad_y, pad_y))
    view = padded[:, top : top + height, left : left + width]
    return view.flip(-1) if horizontal_flip and random.random() < 0.5 else view


class UserCollator:
    """The user's own collator, given plain rows; its batch also tells the first row's position in the epoch."""

    def __init__(self, collate: Callable[[list[Row]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: Sequence[tuple[Draw | None, Row]]) -> dict[str, Any]:
        batch = dict(self.collate([row for _, row in examples]))
        draw = examples[0][0]
        return batch if draw is None else {**batch, "position": draw.position}
