"""From rows to batches: label-preserving augmentation, views of an image, the collator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.columns import Row, check_column, label_values
from conr_hf.data.dataset import SampledExample
from conr_hf.data.images import describe_error, format_size, to_image
from conr_hf.data.label_maps import is_map, to_map
from conr_hf.data.own_transform import apply_transform
from conr_hf.data.sampler import SampledIndex


@dataclass(eq=False)
class ImageCollator:
    """
    Makes batches of rows: `num_views` (V) augmented views of each image for training, one plain view for evaluation.

    Each image is decoded and processed once for all its views: a view is the processor's output, augmented. So
    evaluation sees exactly what the processor saved with the model gives. Rows that come ready for the model have
    `pixel_values` of shape `(C, H, W)`, or `(V, C, H, W)`, and need no processor.

    Labels follow their images: a map is resized to the image's size (nearest neighbour) and moved with the view,
    without labels where the view lies outside the image; a flip from left to right changes the sign of the columns in
    `flipped_columns`, such as yaw.

    Where an index has a partner, views, labels and weights are mixtures of the row's and its partner's, by the index's
    share.

    Views are made where `makes_views` says: on a CPU by the workers; on an accelerator by
    [`~ImageCollator.with_views`] when the batch is there, so that each image travels once. They are the same.

    A batch holds

    - `pixel_values`, float32: `(B, V, C, H, W)` in training, `(B, C, H, W)` in evaluation;
    - `labels`, float32, in label units, where the rows have labels: `(B,)`, or `(B, T)` for T > 1, or `(B, V, T)`
      where a flip changes them; of maps `(B, V, H, W)` in training and `(B, H, W)`, in their own size, in evaluation,
      NaN where there is no label;
    - `sample_weight`, `(B,)`, where they have that column;
    - `position`, an `int`, in training: the first row's position in the epoch's global order.
    """

    processor: BaseImageProcessor | None
    image_column: str
    label_columns: Sequence[str]  # T of them, or one that holds T numbers
    num_views: int
    augmentation: Augmentation
    seed: int
    flipped_columns: Sequence[str] = ()
    map_scale: float = 1.0  # label units in a stored number of a map
    map_invalid: float | None = None  # the stored number of a map that means there is no label
    makes_views: bool = True
    image_mode: str = "RGB"  # as in `to_image`, and so is image_range
    image_range: Sequence[float] | None = None
    transform: Callable[..., Any] | None = None  # the user's own, in place of `augmentation`

    def __post_init__(self) -> None:
        signs = [-1.0 if column in self.flipped_columns else 1.0 for column in self.label_columns]
        self.signs = torch.tensor(signs)  # (T,)

    @cached_property
    def _black_and_white(self) -> Tensor:
        """Pixel values of a black and of a white image, `(2, C)`."""
        return self._pixel_values_of((0, 255) if self.image_mode == "L" else ((0, 0, 0), (255, 255, 255)))

    @cached_property
    def _channel_colors(self) -> list[int]:
        """Which of red, green and blue (0, 1, 2) each channel shows: some processors turn their order round."""
        black, white = self._black_and_white
        if self.image_mode == "L" or len(black) != 3:
            return list(range(len(black)))
        primaries = self._pixel_values_of(((255, 0, 0), (0, 255, 0), (0, 0, 255)))
        found: list[int] = ((primaries - black) / (white - black)).argmax(0).tolist()
        return found if sorted(found) == [0, 1, 2] else [0, 1, 2]

    def _pixel_values_of(self, colors: Sequence[Any]) -> Tensor:
        """`(N, C)` of images of one colour each."""
        assert self.processor is not None
        pixels = _pixel_values(self.processor, [Image.new(self.image_mode, (256, 256), color) for color in colors])
        return pixels[:, :, pixels.shape[2] // 2, pixels.shape[3] // 2]

    def __call__(self, examples: Sequence[SampledExample]) -> dict[str, Any]:
        indices, rows = [example[0] for example in examples], _rows(examples)
        if not rows:
            return {}
        batch: dict[str, Any] = self._tensors(indices, rows)
        partners = [example[2] for example in examples if len(example) == 3]
        if partners:
            batch["partners"] = self._tensors(indices, partners, of_partners=True)
            batch["shares"] = torch.tensor([index.share for index in indices if isinstance(index, SampledIndex)])
        if isinstance(indices[0], SampledIndex):
            batch["position"] = indices[0].position
        return self.with_views(batch) if self.makes_views else batch

    def with_views(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with views instead of images, on the device where it is; mixed where it has partners."""
        made = {name: value for name, value in batch.items() if name not in ("draws", "partners", "shares")}
        if "draws" in batch:
            made |= self._augmented(batch["draws"], made["pixel_values"], made.get("labels"))
        if "partners" in batch:
            for name, partner in self.with_views(batch["partners"]).items():
                shares = batch["shares"].view(-1, *[1] * (partner.ndim - 1))
                made[name] = torch.lerp(partner, made[name], shares)
        return made

    def _augmented(self, draws: Tensor, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        if self.transform is not None:
            return self._transformed(draws, images, labels)
        pixels = self.augmentation.move(images, draws)
        if self.augmentation.changes_color:
            black, white = (value.to(pixels.device) for value in self._black_and_white)
            pixels = self.augmentation.recolor(pixels, draws, black, white, self._channel_colors)
        views = {"pixel_values": pixels}
        if labels is not None and labels.ndim == 3:
            moved = self.augmentation.move(labels[:, None], draws, fill=float("nan"), mode="nearest")
            views["labels"] = moved[:, :, 0]
        elif labels is not None and (self.signs < 0).any():
            signs = torch.where(draws[..., 2:3] > 0, self.signs.to(draws.device), 1.0)  # (B, V, T)
            views["labels"] = labels.view(len(labels), 1, -1) * signs
        return views

    def _transformed(self, seeds: Tensor, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        assert self.transform is not None
        black, white = self._black_and_white[..., None, None]
        colors = self._channel_colors
        channels = [colors.index(color) for color in range(len(colors))]  # of red, green and blue
        values = ((images - black) / (white - black))[:, channels]
        maps = labels if labels is not None and labels.ndim == 3 else None
        made = [
            apply_transform(self.transform, values[i], None if maps is None else maps[i], seed)
            for i, of_image in enumerate(seeds.tolist())
            for seed in of_image
        ]
        pixels = torch.stack([view for view, _ in made])[:, colors] * (white - black) + black
        views = {"pixel_values": pixels.unflatten(0, seeds.shape)}
        if maps is not None:
            views["labels"] = torch.stack([moved for _, moved in made if moved is not None]).unflatten(0, seeds.shape)
        return views

    def _tensors(
        self, indices: Sequence[SampledIndex | int | None], rows: Sequence[Row], of_partners: bool = False
    ) -> dict[str, Tensor]:
        numbers = [
            (index.partner if of_partners else index.row) if isinstance(index, SampledIndex) else index
            for index in indices
        ]
        tensors = {"pixel_values": self._images(rows, numbers)}
        size = tensors["pixel_values"].shape[-2:]
        # Rows ready for the model, and those of evaluation, stay as they are.
        draws = None if "pixel_values" in rows[0] else self._draws(indices, size, of_partners)
        if draws is not None:
            tensors["draws"] = draws
        if "labels" in rows[0] or all(column in rows[0] for column in self.label_columns):
            cells = [label_values(row, self.label_columns, "a data set") for row in rows]
            if is_map(cells[0][0]):
                tensors["labels"] = self._maps(cells, None if draws is None else size)
            else:
                labels = torch.tensor([[float(cell) for cell in row] for row in cells], dtype=torch.float32)
                tensors["labels"] = labels[:, 0] if labels.shape[1] == 1 else labels
        if isinstance(indices[0], SampledIndex) and "sample_weight" in rows[0]:
            tensors["sample_weight"] = torch.tensor([float(row["sample_weight"]) for row in rows])
        return tensors

    def _images(self, rows: Sequence[Row], numbers: Sequence[int | None]) -> Tensor:
        if "pixel_values" in rows[0]:
            return torch.stack([torch.as_tensor(row["pixel_values"], dtype=torch.float32) for row in rows])
        if self.processor is None:
            raise ValueError(
                "The images need an image processor: give processing_class=..., as load_regressor returns."
            )
        check_column(self.image_column, list(rows[0]), "The data set", "image_column")
        images = [to_image(row[self.image_column], self.image_mode, self.image_range) for row in rows]
        try:
            return _pixel_values(self.processor, images)
        except (RuntimeError, ValueError):
            _check_sizes(self.processor, images, numbers)
            raise

    def _draws(
        self, indices: Sequence[SampledIndex | int | None], size: tuple[int, ...], of_partners: bool
    ) -> Tensor | None:
        """What is drawn for each row's V views, `(B, V, 11)`, or a transform's seeds, `(B, V)`; none in evaluation."""
        draws: list[list[Any]] = []
        for index in indices:
            if not isinstance(index, SampledIndex):
                return None
            places = [(self.seed, index.epoch, index.position, view) for view in range(self.num_views)]
            randoms = [np.random.default_rng((*place, 1) if of_partners else place) for place in places]
            if self.transform is None:
                draws.append([self.augmentation.draw(size, random) for random in randoms])
            else:
                draws.append([int(random.integers(2**62)) for random in randoms])
        return torch.tensor(draws, dtype=torch.float32 if self.transform is None else torch.int64)

    def _maps(self, cells: Sequence[Sequence[Any]], size: tuple[int, ...] | None) -> Tensor:
        """`(B, H, W)`, of the images' size where it is given."""
        maps = [torch.from_numpy(to_map(row[0], self.map_scale, self.map_invalid)) for row in cells]
        if size is not None:
            maps = [F.interpolate(one[None, None], size, mode="nearest-exact")[0, 0] for one in maps]
        return torch.stack(maps)


def _rows(examples: Sequence[SampledExample]) -> list[Row]:
    """None where a resumed run leaves them out."""
    return [example[1] for example in examples if example[1] is not None]


def _pixel_values(processor: BaseImageProcessor, images: list[Image.Image]) -> Tensor:
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels


def _check_sizes(processor: BaseImageProcessor, images: list[Image.Image], numbers: Sequence[int | None]) -> None:
    """Refuses images of the rows with these numbers that the processor cannot process, or makes several sizes of."""
    mend = "Load the model and its processor with load_regressor(..., image_size=...)"
    processed: dict[tuple[int, ...], str] = {}  # by its size, the first image of that size
    for picture, number in zip(images, numbers, strict=True):
        place = "" if number is None else f" (row {number:,})"
        own = format_size(picture.size[::-1])
        try:
            processed.setdefault(tuple(_pixel_values(processor, [picture]).shape[-2:]), f"{own}{place}")
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"The image processor cannot process an image of {own} pixels{place} ({describe_error(error)}). "
                f"{mend}, or leave such rows out."
            ) from error
    if len(processed) > 1:
        (size, image), (other_size, other) = list(processed.items())[:2]
        raise ValueError(
            f"The image processor makes {format_size(size)} pixels of an image of {image} and "
            f"{format_size(other_size)} of one of {other}, but the images of a batch must be of one size. {mend}, or "
            "scale the images to one size."
        )


class UserCollator:
    """Calls the user's own collator with plain rows, and adds the first row's position in the epoch to its batch."""

    def __init__(self, collate: Callable[[list[Row]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: Sequence[SampledExample]) -> dict[str, Any]:
        if any(len(example) == 3 for example in examples):
            raise ValueError(
                "A data_collator of your own gets plain rows, which cannot be mixed. Set cmixup_alpha to 0, or leave "
                "data_collator out."
            )
        rows = _rows(examples)
        if not rows:
            return {}
        batch = dict(self.collate(rows))
        index = examples[0][0]
        return {**batch, "position": index.position} if isinstance(index, SampledIndex) else batch
