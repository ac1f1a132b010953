"""Bootstrap intervals of errors on a test set."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conr_hf.imbalance import Bins
from conr_hf.imbalance.bins import FloatArray, IntArray
from conr_hf.metrics.errors import errors
from conr_hf.metrics.shots import Thresholds, prepared

AT_ONCE = 2**21  # samples times resamples that are held in memory together


def shot_intervals(
    predictions: npt.ArrayLike | Tensor,
    labels: npt.ArrayLike | Tensor,
    bins: Bins,
    thresholds: Thresholds | None = None,
    *,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, tuple[float, float]]]:
    """
    Percentile bootstrap intervals of the metrics of [`~conr_hf.metrics.shot_metrics`].

    A resample draws as many test samples as there are, with replacement and from all of them, whatever their shot: so
    a shot's number of samples varies between resamples, too. With `groups`, whole groups are drawn instead, as many as
    there are, which is right where samples of a group (photos of a person, tiles of a map) err alike. Predictions,
    bins, and which shot a sample belongs to, stay as they are: the intervals show what another test set would change,
    not what another training run would. From a dozen samples or fewer they are too narrow.

    A resample in which a shot has no sample, or a correlation is undefined, does not count there.

    Args:
        predictions (`array_like` or `torch.Tensor` of shape `(N,)`, `(N, 1)` or `(N, T)`): In label units.
        labels (`array_like` or `torch.Tensor` of shape `(N,)` or `(N, T)`): True labels of the same samples.
        bins ([`~conr_hf.imbalance.Bins`]):
            Bins of the training labels; [`~conr_hf.imbalance.make_bins`] makes them.
        thresholds (`tuple`, *optional*, defaults to those of the bins): As in [`~conr_hf.metrics.shot_metrics`].
        groups (`array_like` of shape `(N,)`, *optional*): Each sample's group, numbers or strings.
        level (`float`, *optional*, defaults to 0.95): Share of the resamples inside the interval.
        resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Of the draws; the same seed gives the same intervals.

    Returns:
        `dict`: As [`~conr_hf.metrics.shot_metrics`], without `n`, with a tuple of the lower and the upper end in place
        of each number. A shot of a single sample, or group, is absent.

    Raises:
        `ValueError`: As [`~conr_hf.metrics.shot_metrics`]; for a level that is not between 0 and 1, for less than one
            resample, and for groups that are not one for each sample.

    Source: Efron, ["Bootstrap methods: another look at the jackknife"](https://doi.org/10.1214/aos/1176344552), 1979.

    Example:
        >>> from conr_hf.imbalance import make_bins
        >>> ages = np.arange(20, 70)
        >>> off = np.tile([1.0, 3.0], 25)
        >>> low, high = shot_intervals(ages + off, ages, make_bins(ages))["all"]["mae"]
        >>> 1.5 < low < 2.0 < high < 2.5
        True
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be between 0 and 1 (0.95).")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be 1 or more (1000).")
    p, y, index, floor, shots = prepared(predictions, labels, bins, thresholds)
    group = np.arange(len(y)) if groups is None else _numbered(groups, len(y))
    shots = {shot: rows for shot, rows in shots.items() if len(np.unique(group[rows])) > 1}
    drawn: dict[str, list[dict[str, FloatArray]]] = {shot: [] for shot in shots}
    generator = np.random.default_rng(seed)
    chunk = max(1, AT_ONCE // len(y))
    for done in range(0, resamples, chunk):
        weights = _multiplicities(generator, min(chunk, resamples - done), int(group.max()) + 1)[:, group]
        for shot, rows in shots.items():
            of_shot = weights[:, rows]
            of_shot = of_shot[of_shot.any(axis=1)]
            if len(of_shot):
                drawn[shot].append(errors(p[rows], y[rows], index[rows], floor, of_shot))
    result: dict[str, dict[str, tuple[float, float]]] = {}
    for shot, parts in drawn.items():
        for name in [name for name in (parts[0] if parts else ()) if name != "n"]:
            values = np.concatenate([part[name] for part in parts])
            values = values[~np.isnan(values)]
            if len(values):
                low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
                result.setdefault(shot, {})[name] = (float(low), float(high))
    return result


def _multiplicities(generator: np.random.Generator, resamples: int, size: int) -> FloatArray:
    """How often each of `size` items is in each of the resamples, which are draws of `size`: `(resamples, size)`."""
    drawn = generator.integers(size, size=(resamples, size))
    places = (drawn + size * np.arange(resamples)[:, None]).ravel()
    return np.bincount(places, minlength=resamples * size).reshape(resamples, size).astype(np.float64)


def _numbered(groups: npt.ArrayLike, n: int) -> IntArray:
    values = np.asarray(groups)
    if values.shape != (n,):
        raise ValueError(
            f"groups have shape {values.shape} and there are {n} samples. Pass one group for each sample."
        )
    for place, value in enumerate(values.tolist()):
        if value is None or value != value:
            raise ValueError(f"groups[{place}] is {value}. Name the group, or leave that sample out.")
    number: IntArray = np.unique(values, return_inverse=True)[1]
    return number
