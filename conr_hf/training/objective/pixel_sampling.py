"""From maps to rows: what a head reads at each pixel, its label and prediction; samples of pixels and of rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class ContrastRows(NamedTuple):
    """Views, pixels, or means of maps: what the contrastive losses compare, in label units."""

    features: Tensor  # (M, D), what the head reads
    labels: Tensor  # (M,), NaN where there is none
    predictions: Tensor  # (M,)


def resize_to_features(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps `(N, H, W)` at a head's feature points, `(N, *size)`: at each the value of the nearest pixel."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size, mode="nearest-exact")[:, 0]


def generator_of(seed: tuple[int, ...], device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of the draws that belong to a seed of several numbers, none negative."""
    number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(number)


def draw_pixels(weights: Tensor, count: int, seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """
    Indices, `(N, count)`, of each map's pixels, drawn without replacement in proportion to weights `(N, P)`; those of
    weight 0 come last. The draws depend on a map's own seed alone, and so not on its batch or process.
    """
    waits = torch.empty_like(weights)
    for wait, seed in zip(waits, seeds, strict=True):
        wait.exponential_(generator=generator_of(seed, weights.device))
    # The first to come, where the i-th comes at a rate of its weight (Efraimidis and Spirakis, 2006).
    return (weights / waits).topk(count, sorted=False).indices


def sample_pixels(
    features: Tensor,  # (N, D, h, w), what the head reads
    labels: Tensor,  # (N, h, w), in label units, NaN where there is none
    predictions: Tensor,  # (N, h, w), in label units
    weights: Tensor,  # (N, h, w), not negative
    count: int,
    seeds: Sequence[tuple[int, ...]],
) -> ContrastRows:
    """
    `count` pixels of each map, or all of its feature points if there are fewer, drawn in proportion to `weights`: rows
    map by map, N times as many. Of a map with fewer labels than that the rest are pixels without one.
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
    """A row for each map: means over its pixels with labels; NaN labels where there are none."""
    valid = labels.isfinite().flatten(1)  # (N, P)
    shares = valid / valid.sum(1, keepdim=True)
    filled = labels.flatten(1).nan_to_num()
    mean_features = torch.einsum("ndp,np->nd", features.flatten(2), shares.nan_to_num())
    return ContrastRows(mean_features, (filled * shares).sum(1), (predictions.flatten(1) * shares.nan_to_num()).sum(1))
