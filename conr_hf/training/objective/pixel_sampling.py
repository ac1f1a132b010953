"""From maps to rows: what a head reads at each pixel, its label and prediction, and a sample of them for ConR."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class ContrastRows(NamedTuple):
    """
    Views, pixels, or means of maps: what the contrastive losses compare.

    Args:
        features (`torch.Tensor` of shape `(M, D)`): What the head reads.
        labels (`torch.Tensor` of shape `(M,)`): In label units, NaN where there is none.
        predictions (`torch.Tensor` of shape `(M,)`): In label units.
    """

    features: Tensor
    labels: Tensor
    predictions: Tensor


def resize_to_features(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """
    Maps at the points where a head has features: at each the value of the nearest pixel.

    Args:
        maps (`torch.Tensor` of shape `(N, H, W)`): Labels or predictions.
        size (`tuple[int, int]`): Height and width of the features.

    Returns:
        `torch.Tensor` of shape `(N, *size)`.

    Example:
        >>> resize_to_features(torch.arange(16.0).view(1, 4, 4), (2, 2))
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
    """
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size, mode="nearest-exact")[:, 0]


def draw_pixels(weights: Tensor, count: int, seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """
    Draws pixels of each map without replacement, in proportion to weights.

    The draws of a map hang on its own seed alone, so that they are the same in any batch and on any process.

    Args:
        weights (`torch.Tensor` of shape `(N, P)`): Not negative; pixels of weight 0 are taken last.
        count (`int`): Pixels of each map, at most P.
        seeds (`Sequence[tuple[int, ...]]`): N seeds, of numbers that are not negative.

    Returns:
        `torch.Tensor` of shape `(N, count)`, int64: indices of pixels.

    Example:
        >>> draw_pixels(torch.tensor([[0.0, 1.0, 0.0, 2.0]]), 2, [(0,)]).sort().values
        tensor([[1, 3]])
    """
    generator = torch.Generator(weights.device)
    waits = torch.empty_like(weights)
    for wait, seed in zip(waits, seeds, strict=True):
        generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        wait.exponential_(generator=generator)
    # The first to come, where the i-th comes at a rate of its weight (Efraimidis and Spirakis, 2006).
    return (weights / waits).topk(count, sorted=False).indices


def sample_pixels(
    features: Tensor,
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor,
    count: int,
    seeds: Sequence[tuple[int, ...]],
) -> ContrastRows:
    """
    `count` pixels of each map, or all of its feature points if there are fewer.

    Args:
        features (`torch.Tensor` of shape `(N, D, h, w)`): What the head reads.
        labels (`torch.Tensor` of shape `(N, h, w)`): In label units, NaN where there is none.
        predictions (`torch.Tensor` of shape `(N, h, w)`): In label units.
        weights (`torch.Tensor` of shape `(N, h, w)`): Pixels are drawn in proportion to these.
        count (`int`): Pixels of each map.
        seeds (`Sequence[tuple[int, ...]]`): See [`draw_pixels`].

    Returns:
        [`ContrastRows`] of N times the number of pixels drawn, map by map. Of a map with fewer labels than that the
        rest are pixels without one.
    """
    labels, points = labels.flatten(1), features.flatten(2)  # (N, P), (N, D, P)
    drawn = draw_pixels(weights.flatten(1) * labels.isfinite(), min(count, labels.shape[1]), seeds)
    own = points.gather(2, drawn[:, None].expand(-1, points.shape[1], -1))  # (N, D, count)
    return ContrastRows(
        own.transpose(1, 2).reshape(-1, points.shape[1]),
        labels.gather(1, drawn).flatten(),
        predictions.flatten(1).gather(1, drawn).flatten(),
    )


def pool_maps(features: Tensor, labels: Tensor, predictions: Tensor) -> ContrastRows:
    """
    A row for each map: means over its pixels with labels; NaN labels where there are none.

    Args and shapes as [`sample_pixels`].
    """
    valid = labels.isfinite().flatten(1)  # (N, P)
    shares = valid / valid.sum(1, keepdim=True)
    filled = labels.flatten(1).nan_to_num()
    mean_features = torch.einsum("ndp,np->nd", features.flatten(2), shares.nan_to_num())
    return ContrastRows(mean_features, (filled * shares).sum(1), (predictions.flatten(1) * shares.nan_to_num()).sum(1))
