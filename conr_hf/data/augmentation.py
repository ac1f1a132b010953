"""Label-preserving augmentation: random crops, flips and colours of images, and their maps moved with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AugmentationName = Literal["none", "light", "medium", "strong"]

# By name: the smallest share of an image's area that a view shows; the largest change of brightness, contrast and
# saturation; the share of views without colour.
_LEVELS = {"light": (1.0, 0.0, 0.0), "medium": (0.75, 0.2, 0.1), "strong": (0.5, 0.4, 0.2)}
_LUMA = (0.299, 0.587, 0.114)  # grey of red, green and blue, ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """
    What may become of an image in a view: a shift by up to the share `crop_padding` of its sides, or, with `crop_area`
    below 1, a random resized crop that shows at least that share of its area, the ratio of its sides changed by up to
    4 / 3; flips of half of the views, from left to right and upside down; brightness, contrast and saturation times 1
    - `jitter` to 1 + `jitter`; and no colour in a share `gray` of the views.
    """

    crop_padding: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    crop_area: float = 1.0
    jitter: float = 0.0
    gray: float = 0.0

    @classmethod
    def named(
        cls,
        name: AugmentationName,
        *,
        crop_padding: float,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        crop_area: float | None = None,
        with_color: bool = True,
    ) -> "Augmentation":
        """
        The one of this name, with another `crop_area` if given. Images of `crop_padding` 0 are neither shifted nor
        cropped; with `with_color` false they keep their colours.
        """
        if name == "none":
            return cls()
        if name not in _LEVELS:
            raise ValueError(f'augmentation is "{name}"; it must be one of none, {", ".join(_LEVELS)}.')
        area, jitter, gray = _LEVELS[name]
        area = area if crop_area is None else crop_area
        area = area if crop_padding > 0 else 1.0
        jitter, gray = (jitter, gray) if with_color else (0.0, 0.0)
        return cls(crop_padding if area == 1 else 0.0, horizontal_flip, vertical_flip, area, jitter, gray)

    @property
    def changes_color(self) -> bool:
        """Whether views differ from images by more than place and size."""
        return self.jitter > 0 or self.gray > 0

    def draw(self, size: tuple[int, ...], random: np.random.Generator) -> list[float]:
        """
        Draws a view of an image of `size` (height, width): the first row and column of the crop in the padded image,
        whether it is flipped left to right and upside down (0 or 1), the crop's first row, first column, height and
        width as shares of the image's sides, the factors of brightness, contrast and saturation.
        """
        pad_y, pad_x = self._padding(size)
        top, left = random.integers(0, 2 * pad_y + 1), random.integers(0, 2 * pad_x + 1)
        mirrored = self.horizontal_flip and random.random() < 0.5
        inverted = self.vertical_flip and random.random() < 0.5
        crop, color = (0.0, 0.0, 1.0, 1.0), [1.0, 1.0, 1.0]
        if self.crop_area < 1:
            area = random.uniform(self.crop_area, 1)
            ratio = math.exp(random.uniform(-1, 1) * math.log(4 / 3))
            height, width = min(math.sqrt(area / ratio), 1.0), min(math.sqrt(area * ratio), 1.0)
            crop = (random.uniform(0, 1 - height), random.uniform(0, 1 - width), height, width)
        if self.changes_color:
            color = random.uniform(1 - self.jitter, 1 + self.jitter, 3).tolist()
            if random.random() < self.gray:
                color[2] = 0.0
        return [float(top), float(left), float(mirrored), float(inverted), *crop, *color]

    def move(self, images: Tensor, draws: Tensor, fill: float = 0.0, mode: str = "bilinear") -> Tensor:
        """
        The views, `(B, V, C, H, W)`, of images or maps, `(B, C, H, W)`, on the device where these are, with their
        colours as they are. `draws`, `(B, V, 11)` float32, holds V views of each, as [`~Augmentation.draw`] returns
        them. Shifted images are padded with `fill`, 0 being the processor's mean colour; resized ones are
        interpolated by `mode`, `"bilinear"` or `"nearest"`.
        """
        if self.crop_area < 1:
            return _resized_crops(images, draws, mode)
        return self._shifted(images, draws[..., :4].long(), fill)

    def recolor(
        self, views: Tensor, draws: Tensor, black: Tensor, white: Tensor, colors: Sequence[int] = (0, 1, 2)
    ) -> Tensor:
        """
        Views `(B, V, C, H, W)` with other brightness, contrast and saturation, by `draws` as in
        [`~Augmentation.move`]. `black` and `white`, `(C,)`, are the pixel values of these two; of three channels
        `colors` says which of red, green and blue (0, 1, 2) each shows. With v from 0 (black)
        to 1 (white) and its grey g: first v times the brightness; then its distance to the mean of g times the
        contrast, and that to its own g times the saturation; cut off below 0 and above 1.
        """
        channels = views.shape[2]
        luma = views.new_tensor([_LUMA[color] for color in colors] if channels == 3 else [1 / channels] * channels)
        span = (white - black).view(-1, 1, 1)
        brightness, contrast, saturation = draws[..., 8:, None, None, None].unbind(2)  # (B, V, 1, 1, 1) each
        values = (views - black.view(-1, 1, 1)) / span
        gray = torch.einsum("bvchw,c->bvhw", values, luma)[:, :, None]
        mean = gray.mean((-2, -1), keepdim=True)
        factor = brightness * contrast
        values = values.mul_(factor * saturation).add_(
            gray * (factor * (1 - saturation)) + (brightness - factor) * mean
        )
        return values.clamp_(0, 1).mul_(span).add_(black.view(-1, 1, 1))

    def visible_fraction(self, size: tuple[int, ...]) -> float:
        """The mean share of a view of an image of `size` (height, width) that shows it, the rest being padding."""
        share = 1.0
        for side, pad in zip(size, self._padding(size), strict=True):
            share *= 1 - pad * (pad + 1) / (2 * pad + 1) / side  # less the mean of |shift|, which is 0 to pad
        return share

    def _shifted(self, images: Tensor, draws: Tensor, fill: float) -> Tensor:
        height, width = images.shape[-2:]
        pad_y, pad_x = self._padding((height, width))
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y), value=fill)
        top, left, mirrored, inverted = draws.unbind(-1)
        both = torch.stack([padded, padded.flip(-1)], 1)  # (B, 2, C, H + 2 pad_y, W + 2 pad_x)
        windows = both.unfold(3, height, 1).unfold(4, width, 1)  # (B, 2, C, 2 pad_y + 1, 2 pad_x + 1, H, W), no copy
        left = torch.where(mirrored > 0, 2 * pad_x - left, left)
        views = windows[torch.arange(len(images), device=images.device)[:, None], mirrored, :, top, left]
        if not self.vertical_flip:
            return views
        return torch.where(inverted[..., None, None, None] > 0, views.flip(-2), views)

    def _padding(self, size: Sequence[int]) -> tuple[int, int]:
        """Pixels above and below, left and right."""
        pad_y, pad_x = (round(side * self.crop_padding) for side in size)
        return pad_y, pad_x


def _resized_crops(images: Tensor, draws: Tensor, mode: str) -> Tensor:
    (height, width), views = images.shape[-2:], draws.shape[1]
    mirrored, inverted, top, left, tall, wide = draws[..., 2:8].flatten(0, 1).unbind(-1)  # (B * V,) each
    # From places in a view to places in its image, both from -1 to 1.
    none = torch.zeros_like(top)
    across = torch.stack([wide * (1 - 2 * mirrored), none, 2 * left + wide - 1], -1)
    down = torch.stack([none, tall * (1 - 2 * inverted), 2 * top + tall - 1], -1)
    grid = F.affine_grid(torch.stack([across, down], 1), [len(top), 1, height, width], align_corners=False)
    grid = grid.view(len(images), views * height, width, 2)  # an image's views one below the other
    sampled = F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
    return sampled.unflatten(2, (views, height)).transpose(1, 2)
