"""Which row comes when in an epoch: the order, and the rows that come in it."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from conr_hf.data.cmixup import CMixup


class SampledIndex(NamedTuple):
    """One row drawn for training. Randomness depends on it alone, whatever the processes, and after a resume."""

    row: int
    epoch: int
    position: int  # in the epoch's global order; from the number of rows on, a repeat that evens out the processes
    partner: int | None = None  # the row that it is mixed with
    share: float = 1.0  # its own in the mixture


@dataclass(eq=False)
class TrainingSampler(Sampler[SampledIndex]):
    """
    Every row once an epoch, or as many rows drawn by weight, in an order that depends on (seed, epoch) alone.

    Where the processes' batches would not come out even, rows from the start of the epoch follow as repeats, known by
    their position: the number of draws is a multiple of `multiple`, the global batch, or 1 on one process. With
    `weights`, `(N,)`, rows are drawn with replacement in proportion to them; `mixing` gives every draw a partner to be
    mixed with.
    """

    rows: Sized
    seed: int
    shuffle: bool  # otherwise in the data set's order
    multiple: int
    weights: np.ndarray | None = None
    mixing: CMixup | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None:
            _check_weights(self.weights, self.count)
        if self.mixing is not None and len(self.mixing.labels) != self.count:
            labels = len(self.mixing.labels)
            raise ValueError(f"There are {labels} labels to mix by and {self.count} rows. Give one a row.")

    @property
    def count(self) -> int:
        """Rows of an epoch without repeats."""
        return len(self.rows)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[SampledIndex]:
        order = self._order(self.epoch)
        partners, shares = (None, None) if self.mixing is None else self.mixing.draw(order, self.epoch)
        for position in range(len(self)):
            i = position % len(order)
            mixed = () if partners is None or shares is None else (int(partners[i]), float(shares[i]))
            yield SampledIndex(int(order[i]), self.epoch, position, *mixed)

    def rows_at(self, epoch: int, position: int, count: int) -> list[int]:
        """The `count` rows drawn from `position` on in an epoch's global order, and those they are mixed with."""
        order = self._order(epoch)
        places = [place % len(order) for place in range(position, position + count)]
        rows = [int(order[place]) for place in places]
        if self.mixing is not None:
            partners, _ = self.mixing.draw(order, epoch)
            rows += [int(partners[place]) for place in places]
        return rows

    def _order(self, epoch: int) -> np.ndarray:
        random, order = np.random.default_rng((self.seed, epoch)), np.arange(len(self.rows))
        if self.weights is not None:
            return random.choice(order, len(order), p=self.weights / self.weights.sum())
        if self.shuffle:
            random.shuffle(order)
        return order


def _check_weights(weights: np.ndarray, rows: int) -> None:
    if weights.shape != (rows,):
        raise ValueError(f"weights has shape {weights.shape} and there are {rows} rows. Give one weight a row.")
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(wrong):
        raise ValueError(f"weights[{wrong[0]}] is {weights[wrong[0]]}; it must be finite and at least 0.")
    if not weights.any():
        raise ValueError("All weights are 0, so there is no row to draw. Give one of them a weight above 0.")
