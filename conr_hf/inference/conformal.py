"""Prediction intervals by split conformal prediction, with a width for each range of predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conr_hf.imbalance import Bins
from conr_hf.metrics.shots import SHOTS, sample_shots
from conr_hf.models.saved import companion_file
from conr_hf.utils.files import write_json
from conr_hf.utils.run_folder import INTERVALS, read_json
from conr_hf.utils.tables import format_table

COVERAGE = 0.9
SMALLEST = 20  # rows of a group

Splits = Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]]


@dataclass(frozen=True)
class Group:
    """A range of predictions that share an interval width, in label units."""

    low: float | None  # `None` is an open end
    high: float | None
    half_width: float  # the label is at most this far from the prediction, at the promised coverage
    n: int  # calibration rows


@dataclass(frozen=True)
class PredictionIntervals:
    """
    Half the width of the interval around a prediction, for each target and each group of predictions.

    `coverage_by_shot` has for each split but the calibration's, target and shot (and `"all"`): samples `n`; how many
    are `covered`; the 2.5 % and 97.5 % quantiles `low` and `high` of that number if the promise holds; and `kept`,
    whether it is at least `low`.
    """

    coverage: float  # share of labels that the intervals promise to contain
    unit: str
    targets: list[str]
    calibrated_on: str  # the calibration split
    groups: dict[str, list[Group]]  # of each target, ascending, without gaps
    coverage_by_shot: dict[str, dict[str, dict[str, dict[str, Any]]]]
    label_min: Sequence[float] | None = None  # the smallest label that there can be, of each target
    label_max: Sequence[float] | None = None

    def half_widths(self, predictions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Half the width of the interval around each of the predictions, `(N, T)`."""
        columns = []
        for target, column in zip(self.targets, predictions.T, strict=True):
            groups = self.groups[target]
            starts = np.array([group.low for group in groups[1:]], np.float64)
            widths = np.array([group.half_width for group in groups])
            columns.append(widths[np.searchsorted(starts, column, side="right")])
        return np.stack(columns, axis=1)

    def ends(
        self, predictions: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Predictions, `(N, T)`, and both ends of their intervals, all cut off where there can be no labels."""
        unset = np.full(len(self.targets), np.inf)
        lowest = -unset if self.label_min is None else np.array(self.label_min, np.float64)
        highest = unset if self.label_max is None else np.array(self.label_max, np.float64)
        middle = predictions.astype(np.float64).clip(lowest, highest)
        widths = self.half_widths(middle)
        return middle, (middle - widths).clip(lowest, highest), (middle + widths).clip(lowest, highest)


def calibrate(
    bins: Bins, predictions: npt.NDArray[Any], labels: npt.NDArray[Any], coverage: float = COVERAGE
) -> list[list[Group]]:
    """
    Groups predictions by bin, and finds for each group the distance within which a share `coverage` of labels lies.

    Predictions and labels are `(N, T)`; each of the T targets has its own groups. Neighbouring bins are merged, from
    the lowest on, until each group has 20 rows. In a group of n rows the half width is the `ceil((n + 1) coverage)`-th
    smallest of their absolute errors. A new label then lies within it with a probability of at least `coverage` if its
    image comes from the same distribution as these rows, which must not have been trained on.

    Source: Vovk, "Conditional validity of inductive conformal predictors", ACML 2012, arXiv 1209.2673 (Mondrian
    conformal prediction).

    Example:
        >>> bins = Bins((np.array([0.0, 10.0, 20.0]),), (np.array([30, 30]),))
        >>> predictions = np.arange(0.0, 20.0, 0.5)[:, None]
        >>> calibrate(bins, predictions, predictions + np.where(predictions < 10, 1.0, 3.0))
        [[Group(low=None, high=10.0, half_width=1.0, n=20), Group(low=10.0, high=None, half_width=3.0, n=20)]]
    """
    if not 0 < coverage <= 0.95:  # more than 0.95 would need more rows
        raise ValueError(f"coverage is {coverage}; it must be greater than 0 and at most 0.95.")
    if len(labels) < SMALLEST:
        raise ValueError(f"There are {len(labels)} rows; prediction intervals need {SMALLEST} or more.")
    found = []
    for edges, own, true in zip(bins.edges, predictions.T, labels.T, strict=True):
        errors = np.abs(own.astype(np.float64) - true.astype(np.float64))
        bounds = _merged_edges(edges[1:-1], own)
        place = np.searchsorted(bounds, own, side="right")
        groups = []
        for number, (low, high) in enumerate(zip([None, *bounds], [*bounds, None], strict=True)):
            of_group = np.sort(errors[place == number])
            rank = math.ceil(round((len(of_group) + 1) * coverage, 9))
            groups.append(Group(low, high, float(of_group[rank - 1]), len(of_group)))
        found.append(groups)
    return found


def make_intervals(
    bins: Bins,
    splits: Splits,
    targets: Sequence[str],
    unit: str,
    coverage: float = COVERAGE,
    bounds: tuple[Sequence[float] | None, Sequence[float] | None] = (None, None),
) -> PredictionIntervals:
    """
    Intervals calibrated on the first of the `splits`, and their coverage per shot on the others. A split has its row
    ids, `(N,)`, labels and predictions, both `(N,)` or `(N, T)`. `bounds`: the smallest and largest label that there
    can be, at which predictions are cut off already.
    """
    columns = {
        split: (labels.reshape(len(ids), -1), predictions.reshape(len(ids), -1))
        for split, (ids, labels, predictions) in splits.items()
    }
    (first, (labels, predictions)), *others = columns.items()
    groups = dict(zip(targets, calibrate(bins, predictions, labels, coverage), strict=True))
    intervals = PredictionIntervals(coverage, unit, list(targets), first, groups, {}, *bounds)
    for split, (labels, predictions) in others:
        inside = np.abs(predictions.astype(np.float64) - labels) <= intervals.half_widths(predictions)  # (N, T)
        shots = {"all": np.ones(len(labels), bool), **sample_shots(labels, bins)}
        intervals.coverage_by_shot[split] = {
            target: {shot: _coverage(column[mask], coverage) for shot, mask in shots.items() if mask.any()}
            for target, column in zip(targets, inside.T, strict=True)
        }
    return intervals


def coverage_table(intervals: PredictionIntervals) -> str:
    """Coverage per split, target and shot, ready to print; `""` without other splits than the calibration's."""
    rows = [["intervals", "samples", "covered", "promised", "likely", ""]]
    for split, of_target in intervals.coverage_by_shot.items():
        for target, of_shot in of_target.items():
            for shot, found in of_shot.items():
                name = " ".join([split, *([target] if len(of_target) > 1 else []), SHOTS[shot]])
                n = found["n"]
                shares = [f"{100 * share:.0f} %" for share in (found["covered"] / n, intervals.coverage)]
                likely = f"{100 * found['low'] / n:.0f} to {100 * found['high'] / n:.0f} %"
                rows.append([name, str(n), *shares, likely, "" if found["kept"] else "not covered"])
    return format_table(rows) if len(rows) > 1 else ""


def write_intervals(folder: Path, intervals: PredictionIntervals) -> None:
    """Writes `intervals.json` beside a model."""
    write_json(folder / INTERVALS, {"schema": 1, **asdict(intervals)})


def load_intervals(name: str) -> PredictionIntervals | None:
    """The intervals beside a model, a folder or an id on the Hub, or `None`."""
    path = companion_file(name, INTERVALS)
    if path is None:
        return None
    try:
        saved = read_json(path)
        if saved.pop("schema") != 1:
            raise ValueError("another schema")
        groups = {target: [Group(**group) for group in of_target] for target, of_target in saved["groups"].items()}
        intervals = PredictionIntervals(**{**saved, "groups": groups})
        intervals.ends(np.zeros((1, len(intervals.targets))))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f'"{path}" does not hold prediction intervals ({error}). Remove it.') from error
    return intervals


def _merged_edges(edges: npt.NDArray[np.float64], predictions: npt.NDArray[Any]) -> list[float]:
    """The edges that remain when bins are merged until each range has at least `SMALLEST` predictions."""
    counts = np.bincount(np.searchsorted(edges, predictions, side="right"), minlength=len(edges) + 1)
    bounds: list[float] = []
    since, left = 0, int(counts.sum())
    for edge, count in zip(edges.tolist(), counts.tolist(), strict=False):
        since, left = since + count, left - count
        if since >= SMALLEST and left >= SMALLEST:
            bounds.append(edge)
            since = 0
    return bounds


def _coverage(inside: npt.NDArray[np.bool_], coverage: float) -> dict[str, Any]:
    from scipy.stats import binom

    n, covered = len(inside), int(inside.sum())
    low, high = (int(count) for count in binom.interval(0.95, n, coverage))
    return {"n": n, "covered": covered, "low": low, "high": high, "kept": covered >= low}
