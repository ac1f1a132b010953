"""Label-preserving moves: what makes a view of an image, and moves its map with it."""

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor


class Move(NamedTuple):
    """How a view lies in its image padded on all sides, in pixels: what moves an image moves its map."""

    padding: tuple[int, int]  # above and below, left and right
    top: int
    left: int
    flipped: bool


def draw_move(size: tuple[int, ...], crop_padding: float, random: np.random.Generator, horizontal_flip: bool) -> Move:
    """
    Draws a view: a crop, of the image's size, of the padded image, and a flip from left to right in half of the draws.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        crop_padding (`float`): Padding on each side, as a share of it; 1/14 is 16 of 224 pixels.
        random (`np.random.Generator`): Where the draws come from.
        horizontal_flip (`bool`): Whether to flip.
    """
    pad_y, pad_x = (round(side * crop_padding) for side in size)
    top, left = random.integers(0, 2 * pad_y + 1), random.integers(0, 2 * pad_x + 1)
    return Move((pad_y, pad_x), int(top), int(left), bool(horizontal_flip and random.random() < 0.5))


def moved(image: Tensor, move: Move, fill: float = 0.0) -> Tensor:
    """
    The view of an image.

    Args:
        image (`torch.Tensor` of shape `(C, H, W)`): The processor's output, or a map of the same size.
        move ([`Move`]): The view.
        fill (`float`, *optional*, defaults to 0.0): What the image is padded with; 0 is the processor's mean colour.

    Returns:
        `torch.Tensor` of shape `(C, H, W)`.
    """
    height, width = image.shape[-2:]
    pad_y, pad_x = move.padding
    padded = F.pad(image, (pad_x, pad_x, pad_y, pad_y), value=fill)
    view = padded[:, move.top : move.top + height, move.left : move.left + width]
    return view.flip(-1) if move.flipped else view


def kept_share(size: tuple[int, ...], crop_padding: float) -> float:
    """
    The mean share of an image that its views show, the rest of them being padding.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        crop_padding (`float`): As in [`draw_move`].

    Example:
        >>> round(kept_share((224, 224), 1 / 14), 3)
        0.928
    """
    share = 1.0
    for side in size:
        pad = round(side * crop_padding)
        share *= 1 - pad * (pad + 1) / (2 * pad + 1) / side  # less the mean of |shift|, which is 0 to pad
    return share
