"""Label-preserving augmentation: random crops and flips of images, and of their maps with them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def sample_augmentation(
    size: tuple[int, ...], crop_padding: float, random: np.random.Generator, horizontal_flip: bool
) -> tuple[int, int, bool]:
    """
    Draws a view: a crop, of the image's size, of the padded image, and a flip from left to right in half of the draws.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        crop_padding (`float`): Padding on each side, as a share of it; 1/14 is 16 of 224 pixels.
        random (`np.random.Generator`): Where the draws come from.
        horizontal_flip (`bool`): Whether to flip.

    Returns:
        `tuple[int, int, bool]`: the view's first row and column in the padded image, and whether it is flipped.
    """
    pad_y, pad_x = _padding(size, crop_padding)
    top, left = random.integers(0, 2 * pad_y + 1), random.integers(0, 2 * pad_x + 1)
    return int(top), int(left), bool(horizontal_flip and random.random() < 0.5)


def augment(images: Tensor, crops: Tensor, crop_padding: float, fill: float = 0.0) -> Tensor:
    """
    The views of images, on the device where these are.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): The processor's output, or maps of the same size.
        crops (`torch.Tensor` of shape `(B, V, 3)`, int64): V views of each, as [`sample_augmentation`] returns them.
        crop_padding (`float`): As there.
        fill (`float`, *optional*, defaults to 0.0): What images are padded with; 0 is the processor's mean colour.

    Returns:
        `torch.Tensor` of shape `(B, V, C, H, W)`.

    Example:
        >>> augment(torch.arange(4.0).view(1, 1, 1, 4), torch.tensor([[[0, 0, 0], [0, 2, 1]]]), 0.25).tolist()
        [[[[[0.0, 0.0, 1.0, 2.0]]], [[[0.0, 3.0, 2.0, 1.0]]]]]
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
    """
    The mean share of an image that its views show, the rest of them being padding.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        crop_padding (`float`): As in [`sample_augmentation`].

    Example:
        >>> round(visible_fraction((224, 224), 1 / 14), 3)
        0.928
    """
    share = 1.0
    for side, pad in zip(size, _padding(size, crop_padding), strict=True):
        share *= 1 - pad * (pad + 1) / (2 * pad + 1) / side  # less the mean of |shift|, which is 0 to pad
    return share


def _padding(size: tuple[int, ...], crop_padding: float) -> tuple[int, int]:
    """Pixels above and below, left and right."""
    pad_y, pad_x = (round(side * crop_padding) for side in size)
    return pad_y, pad_x
