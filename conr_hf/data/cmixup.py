"""C-Mixup: which training row each row is mixed with, and by what share."""

import math

import numpy as np
import numpy.typing as npt

from conr_hf.imbalance import label_columns

REACH = 6  # bandwidths; partners farther away, 65 million times less likely than the row itself, are left out
ROUND_COST = 1000  # overhead of a round of drawing, in draws


class CMixup:
    """
    Partners with similar labels: one at label distance d is drawn in proportion to exp(-d^2 / (2 bandwidth^2)).

    Partners come from the whole training set, the row itself among them. The distance is Euclidean, and it and
    `bandwidth` are in label units. A row's share in the mixture comes from Beta(alpha, alpha): near 0 or 1 for a small
    alpha, near a half for a great one.

    Source: Yao et al., "C-Mixup: Improving Generalization in Regression", NeurIPS 2022, arXiv 2210.05775.
    """

    def __init__(self, labels: npt.ArrayLike, alpha: float, bandwidth: float, seed: int) -> None:
        if not 0 < alpha < math.inf:
            raise ValueError(
                f"alpha is {alpha}; it must be finite and greater than 0 (1: all shares are equally likely)."
            )
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth is {bandwidth}; it must be finite and greater than 0, in label units.")
        columns = label_columns(labels)
        if len(columns) == 0:
            raise ValueError("There are no labels. Mixing needs at least one training row.")
        self.alpha, self.seed = alpha, seed
        self.labels = columns / bandwidth  # (N, T)
        widest = self.labels[:, np.ptp(self.labels, axis=0).argmax()]
        self._order = widest.argsort(kind="stable")
        self._sorted = self.labels[self._order]
        self._first = np.searchsorted(widest[self._order], widest - REACH)
        self._last = np.searchsorted(widest[self._order], widest + REACH, side="right")

    def draw(self, rows: npt.NDArray[np.int64], epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """
        A partner and a share for each of `rows`, `(M,)`, the training rows in the epoch's order; the same for the same
        (seed, epoch, rows). The partners are training rows, int64, the shares those of each row itself in its mixture,
        from 0 to 1.
        """
        random = np.random.default_rng((self.seed, epoch, 0, 0, 2))  # of no view: those begin with other numbers
        shares = random.beta(self.alpha, self.alpha, len(rows))
        own, first, last = self.labels[rows], self._first[rows], self._last[rows]
        places = np.empty(len(rows), dtype=np.int64)
        # Rejection sampling from all candidates: cheap as long as many are accepted. Once it has cost as much as
        # weighing every candidate of the remaining rows would, they are weighed.
        left, cost = np.arange(len(rows)), 0
        while cost < (last[left] - first[left]).sum():
            drawn = random.integers(first[left], last[left])
            accepted = random.random(len(left)) < _closeness(self._sorted[drawn], own[left])
            places[left[accepted]] = drawn[accepted]
            cost += len(left) + ROUND_COST
            left = left[~accepted]
        for row in left:
            weights = _closeness(self._sorted[first[row] : last[row]], own[row])
            places[row] = first[row] + random.choice(len(weights), p=weights / weights.sum())
        return self._order[places], shares


def _closeness(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What partners are drawn in proportion to; of labels in bandwidths, shape `(..., T)`."""
    closeness: np.ndarray = np.exp(-np.square(labels - others).sum(-1) / 2)
    return closeness
