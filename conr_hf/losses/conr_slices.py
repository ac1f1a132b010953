"""Which slices of sorted rows hold every pair that matters: rows sorted by label, and once more by prediction."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from conr_hf.losses.conr_dense import LOG_INFINITY
from conr_hf.losses.pairs import Distance, Reach, fold_pitch, label_distance
from conr_hf.losses.validation import Settings

# Blocks start at multiples of this many rows, so that their bounds can be read before their size is chosen.
GRAIN = 32

# Fewest and most rows of a block, and the most pairs of a tile. On CPU a tile's tensors stay in the cache of a core
# and its matrix products are still near the full rate; a GPU wants enough work for every kernel.
TILES_CPU = (96, 256, 2**17)
TILES_GPU = (512, 2048, 2**22)


class Tile(NamedTuple):
    """Rows `first` to `last` of a side's `rows`, by `start` to `end` of its `columns`."""

    first: int
    last: int
    start: int
    end: int


class Side(NamedTuple):
    """Rows and columns in the order of their labels (or predictions), and the tiles that cover all similar pairs."""

    values: Tensor  # the labels, or the predictions: (M,) or (M, T)
    reach: float  # up to which distance they are similar
    rows: Tensor  # (A,), int64: the anchors, sorted
    columns: Tensor  # (M,), int64: all rows, sorted; the same tensor if mirrored
    tiles: list[Tile]  # disjoint
    # Whether each pair of two rows is in a tile once, in one of its two directions; pairs within a block of rows are
    # there in both. Otherwise pairs are there as anchor and candidate.
    mirrored: bool

    @property
    def pairs(self) -> int:
        """Pairs of an anchor and a candidate inside the slices."""
        once = sum((last - first) * (end - start) for first, last, start, end in self.tiles)
        if not self.mirrored:
            return once
        return once + sum((last - first) * max(end - max(start, last), 0) for first, last, start, end in self.tiles)


class Plan(NamedTuple):
    """How a call goes over its pairs."""

    sides: tuple[Side, Side]  # by label for the positives, by prediction for the negatives
    whole: tuple[Side, Side] | None  # the same with all rows as anchors, where their number is needed too
    largest_term: float  # the largest magnitude of the logarithm of a pair's term, but for terms too small to matter

    @property
    def pairs(self) -> int:
        """Pairs of an anchor and a candidate inside the slices of both sides."""
        return sum(side.pairs for side in self.sides)


def make_plan(
    labels: Tensor,
    predictions: Tensor,
    weights: Tensor | None,
    reaches: tuple[Reach, Reach],
    settings: Settings,
    first: int,
    last: int,
) -> Plan:
    """
    Sorts the M > 0 rows and bounds the slices, for the anchors `first` to `last` and a distance that is a name. Waits
    for a device once, to read the bounds. Labels and predictions, `(M,)` or `(M, T)`, and weights, `(M,)`, are of one
    dtype, float32 or float64; `reaches` say up to which distance labels, and predictions, are similar.
    """
    rows = len(labels)
    # With all rows as anchors one product serves a pair in both directions, half the work: also for most of the rows.
    parts = [(0, rows)] if 2 * (last - first) > rows else [(first, last)]
    if settings.reduction == "anchors" and parts != [(0, rows)]:
        parts.append((0, rows))

    low, high = (labels.reshape(rows, -1).aminmax(dim=0)[k].unsqueeze(0) for k in (0, 1))
    if settings.distance == "angular":  # no greater than the distance in the plane of pitch and yaw
        farthest = label_distance(low, high, "euclidean").clamp(max=math.pi).reshape(1)
    else:
        farthest = label_distance(low, high, settings.distance).reshape(1)
    heaviest = farthest.new_ones(1) if weights is None else weights.amax().reshape(1)
    found = [_sort(*some, settings.distance, parts) for some in zip((labels, predictions), reaches, strict=True)]
    # In the labels' dtype, which holds every number of rows up to 2^24: not every device has float64.
    numbers = [farthest, heaviest]
    for reach, slices in found:
        numbers += [reach.reshape(1), *(bound.to(labels.dtype) for _, _, *bounds in slices for bound in bounds)]
    read = iter(torch.cat(numbers).tolist())

    farthest_pair, largest_weight = next(read), next(read)
    sides: list[list[Side]] = [[], []]
    for values, (_, slices), made in zip((labels, predictions), found, sides, strict=True):
        reach_read = next(read)
        for part, (own, columns, starts, ends) in zip(parts, slices, strict=True):
            first_columns, end_columns = ([int(next(read)) for _ in range(len(some))] for some in (starts, ends))
            tiles = _cut(len(own), rows, first_columns, end_columns, part == (0, rows), labels.device)
            made.append(Side(values, reach_read, own, columns, tiles, part == (0, rows)))
    (by_label, *label_rest), (by_prediction, *prediction_rest) = sides
    whole = (label_rest[0], prediction_rest[0]) if label_rest else None

    growth = settings.push_scale * farthest_pair
    largest_term = math.inf  # where the push overflows
    if growth <= LOG_INFINITY:  # and no nan
        log_push = growth if settings.push == "exponential" else math.log(max(growth, 1.0))
        largest_term = 1 / settings.temperature + log_push + math.log(max(largest_weight, 1.0))
    return Plan((by_label, by_prediction), whole, largest_term)


def _sort(
    values: Tensor, given_reach: Reach, distance: Distance, parts: list[tuple[int, int]]
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """
    The reach, and for each part `(first, last)` of the rows: these rows and all rows sorted, and the bounds of the
    columns that grains of these rows reach: from where those of the first row start, to where those of the last end.
    """
    reach = torch.as_tensor(given_reach)
    eps = torch.finfo(values.dtype).eps
    # Slices may cover too much, never too little: the roundings of keys, and of sums and differences of them.
    far = (reach + 16 * eps * values.abs().amax()) * (1 + 16 * eps)
    key = _sort_key(values, distance)
    keys, columns = key.sort()
    slices = []
    for first, last in parts:
        own_keys, own = (keys, columns) if last - first == len(key) else key[first:last].sort()
        if own is not columns:
            own = own + first
        ends_at = torch.arange(GRAIN - 1, len(own) + GRAIN - 1, GRAIN, device=key.device).clamp(max=len(own) - 1)
        starts = torch.searchsorted(keys, own_keys[::GRAIN] - far)
        ends = torch.searchsorted(keys, own_keys[ends_at] + far, right=True)
        slices.append((own, columns, starts, ends))
    return reach, slices


def _sort_key(values: Tensor, distance: Distance) -> Tensor:
    """A number a row, of shape `(M,)`, that differs by no more than the distance of two rows."""
    if values.ndim == 1 or values.shape[1] == 1:
        return values.reshape(-1)
    # |mean dy| and |dy_k| / T are at most mean |dy|; |dy_k| and |sum dy| / sqrt(T) are at most the Euclidean distance.
    dims = values.shape[1]
    if distance == "angular":
        # An angle is at least its difference in pitch, and at least the chord, which is at least what it is sideways.
        pitch, yaw = fold_pitch(values).unbind(1)
        keys = torch.stack([pitch, pitch.cos() * yaw.sin()], 1)
    elif distance == "euclidean":
        keys = torch.cat([values, values.sum(1, keepdim=True) / math.sqrt(dims)], 1)
    else:
        keys = torch.cat([values / dims, values.mean(1, keepdim=True)], 1)
    # The key that spreads rows most has fewest of them within reach. Divided first: squares must not overflow.
    spread = (keys / keys.abs().amax().clamp(min=torch.finfo(keys.dtype).tiny)).std(0, correction=0)
    return keys.index_select(1, spread.argmax().reshape(1)).squeeze(1)


def _cut(
    rows: int, columns: int, starts: list[int], ends: list[int], mirrored: bool, device: torch.device
) -> list[Tile]:
    """Tiles of the slices of blocks of rows; the first tile of a mirrored block holds the block's own columns."""
    smallest, largest, pairs = TILES_CPU if device.type == "cpu" else TILES_GPU
    if mirrored:
        starts = list(range(0, rows, GRAIN))
    elif device.type == "cpu":
        smallest = GRAIN
    # What a block of B rows covers beyond its pairs grows with B, and the more the fewer rows there are among the
    # columns; the cost per pair falls with it.
    typical = sum(end - start for start, end in zip(starts, ends, strict=True)) // max(len(starts), 1)
    step = min(max(typical * rows // columns // 4 // GRAIN * GRAIN, smallest), largest)
    tiles = []
    for first in range(0, rows, step):
        last = min(first + step, rows)
        start, end = starts[first // GRAIN], ends[(last - 1) // GRAIN]
        if end <= start:
            continue
        count = math.ceil((end - start) / max(pairs // step, 2 * step))
        width = math.ceil((end - start) / count)
        tiles += [Tile(first, last, left, min(left + width, end)) for left in range(start, end, width)]
    return tiles
