"""Label-preserving augmentation: random crops and flips of images, and of their maps with them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def sample_augmentation(
    size: tuple[int, ...], crop_padding: float, random: np.random.Generator, horizontal_flip: bool
) -> tuple[int, int, bool]:
    """
    Draws a view of an image of `size` (height, width): a crop, of the image's size, of the padded image, and a flip
    from left to right in half of the draws if `horizontal_flip`. Each side is padded by the share `crop_padding`; 1/14
    is 16 of 224 pixels. Returns the view's first row and column in the padded image, and whether it is flipped.
    """
    pad_y, pad_x = _padding(size, crop_padding)
    top, left = random.integers(0, 2 * pad_y + 1), random.integers(0, 2 * pad_x + 1)
    return int(top), int(left), bool(horizontal_flip and random.random() < 0.5)


def augment(images: Tensor, crops: Tensor, crop_padding: float, fill: float = 0.0) -> Tensor:
    """
    The views, `(B, V, C, H, W)`, of images or maps, `(B, C, H, W)`, on the device where these are. `crops`, `(B, V,
    3)` int64, holds V views of each, as [`sample_augmentation`] returns them. Images are padded with `fill`; 0 is the
    processor's mean colour.
    """
    height, width = images.shape[-2:]
    pad_y, pad_x = _padding((height, width), crop_padding)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y), value=fill)
    top, left, flipped = crops.unbind(-1)
    both = torch.stack([padded, padded.flip(-1)], 1)  # (B, 2, C, H + 2 pad_y, W + 2 pad_x)
    windows = both.unfold(3, height, 1).unfold(4, width, 1)  # (B, 2, C, 2 pad_y + 1, 2 pad_x + 1, H, W), no copy
    left = torch.where(flipped > 0, 2 * pad_x - left, left)
    return windows[torch.arange(len(images), device=images.device)[:, None], flipped, :, top, left]


def visible_fraction(size: tuple[int, ...], crop_padding: float) -> float:
    """The mean share of an image of `size` (height, width) that its views show, the rest of them being padding."""
    share = 1.0
    for side, pad in zip(size, _padding(size, crop_padding), strict=True):
        share *= 1 - pad * (pad + 1) / (2 * pad + 1) / side  # less the mean of |shift|, which is 0 to pad
    return share


def _padding(size: tuple[int, ...], crop_padding: float) -> tuple[int, int]:
    """Pixels above and below, left and right."""
    pad_y, pad_x = (round(side * crop_padding) for side in size)
    return pad_y, pad_x
