"""Prediction intervals: their widths, their promise, and what is told of how it is kept."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from conr_hf.imbalance import make_bins
from conr_hf.inference.conformal import (
    calibrate,
    coverage_table,
    load_intervals,
    make_intervals,
    write_intervals,
)
from conr_hf.utils.run_folder import INTERVALS


def rows(n, seed=0, dimensions=1):
    """Long-tailed labels, and predictions whose errors grow with the label."""
    random = np.random.default_rng(seed)
    labels = random.exponential(20, (n, dimensions)).clip(0, 99)
    return labels, labels + random.normal(size=labels.shape) * (1 + labels / 10)


BINS = make_bins(rows(2000, seed=9)[0], 5.0)


def split(labels, predictions):
    return np.arange(len(labels)), labels, predictions


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [20, 39, 40, 333])
def test_widths_are_those_of_a_slow_count(n, coverage):
    bins = make_bins(rows(2000, seed=9, dimensions=2)[0], [5.0, 7.0])
    labels, predictions = rows(n, dimensions=2)
    for t, groups in enumerate(calibrate(bins, predictions, labels, coverage)):
        assert groups[0].low is None
        assert groups[-1].high is None
        assert [group.high for group in groups[:-1]] == [group.low for group in groups[1:]]
        assert sum(group.n for group in groups) == n
        for group in groups:
            low = -math.inf if group.low is None else group.low
            high = math.inf if group.high is None else group.high
            assert {low, high} <= {-math.inf, math.inf, *bins.edges[t].tolist()}
            own = [abs(y - p) for y, p in zip(labels[:, t], predictions[:, t], strict=True) if low <= p < high]
            assert len(own) == group.n >= 20
            # The smallest of the errors that enough of n + 1, the new one among them, do not exceed.
            enough = [e for e in own if sum(other <= e for other in own) / (len(own) + 1) >= coverage - 1e-12]
            assert group.half_width == pytest.approx(min(enough))


def test_bins_are_joined_no_further_than_needed():
    """60 predictions in each of three bins: three groups. 19 in the last: it joins the one before."""
    bins = make_bins(np.array([0.0, 29.0]), 10.0)
    for last, groups in ((60, 3), (20, 3), (19, 2)):
        predictions = np.repeat([5.0, 15.0, 25.0], [60, 60, last])[:, None]
        assert len(calibrate(bins, predictions, predictions)[0]) == groups


def test_new_labels_of_the_same_source_are_covered_as_promised():
    """Over many calibrations, the mean share lies between the promise and a rank above it, in each group."""
    bins = make_bins(np.array([0.0, 19.0]), 10.0)
    random = np.random.default_rng(0)
    predictions = np.repeat([5.0, 15.0], 20)[:, None]
    shares = []
    for _ in range(2000):
        labels = predictions + random.normal(size=predictions.shape) * predictions
        groups = calibrate(bins, predictions, labels)[0]
        shares.append([2 * stats.norm.cdf(g.half_width / p) - 1 for g, p in zip(groups, (5, 15), strict=True)])
    assert np.mean(shares, axis=0) == pytest.approx([19 / 21, 19 / 21], abs=0.005)


def test_coverage_per_shot_against_scipy():
    calibration, seen = split(*rows(400, seed=1)), split(*rows(900, seed=2))
    intervals = make_intervals(BINS, {"validation": calibration, "test": seen}, ["age"], "years")
    _, labels, predictions = seen
    inside = np.abs(labels - predictions)[:, 0] <= intervals.half_widths(predictions)[:, 0]
    counts = BINS.train_count_of(labels)
    masks = {"all": counts >= 0, "many": counts > 100, "median": (counts >= 20) & (counts <= 100), "few": counts < 20}
    found = intervals.coverage_by_shot["test"]["age"]
    assert list(found) == ["all", "many", "median", "few"]
    for shot, mask in masks.items():
        low, high = stats.binom.interval(0.95, mask.sum(), 0.9)
        covered = inside[mask].sum()
        expected = {"n": mask.sum(), "covered": covered, "low": low, "high": high, "kept": covered >= low}
        assert found[shot] == expected
    assert "test few" in coverage_table(intervals)


def test_a_broken_promise_is_told():
    labels, predictions = rows(400, seed=1)
    off = labels + 50
    intervals = make_intervals(
        BINS, {"validation": split(labels, predictions), "test": split(labels, off)}, ["age"], ""
    )
    assert not any(found["kept"] for found in intervals.coverage_by_shot["test"]["age"].values())
    assert coverage_table(intervals).count("not covered") == 4


def test_saved_and_loaded(tmp_path):
    labels, predictions = rows(300, dimensions=2)
    bins = make_bins(labels, 10.0)
    splits = {"validation": split(labels, predictions), "test": split(*rows(100, seed=4, dimensions=2))}
    intervals = make_intervals(bins, splits, ["pitch", "yaw"], "degrees")
    write_intervals(tmp_path, intervals)
    loaded = load_intervals(str(tmp_path))
    assert loaded == intervals
    np.testing.assert_array_equal(loaded.half_widths(predictions), intervals.half_widths(predictions))


def test_a_model_without_intervals_has_none(tmp_path):
    assert load_intervals(str(tmp_path)) is None
    assert load_intervals("") is None


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[1]",
        '{"schema": 2}',
        '{"schema": 1, "groups": {}}',
        '{"schema": 1, "coverage": 0.9, "unit": "", "targets": ["a"], "calibrated_on": "v", "groups": {"a": []},'
        ' "coverage_by_shot": {}}',
    ],
)
def test_what_holds_no_intervals_is_refused(content, tmp_path):
    (tmp_path / INTERVALS).write_text(content)
    with pytest.raises(ValueError, match="does not hold prediction intervals"):
        load_intervals(str(tmp_path))


def test_too_few_rows_and_wrong_coverage():
    labels, predictions = rows(19)
    with pytest.raises(ValueError, match="There are 19 rows; prediction intervals need 20 or more"):
        calibrate(BINS, predictions, labels)
    labels, predictions = rows(30)
    for coverage in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="coverage is"):
            calibrate(BINS, predictions, labels, coverage)


def test_the_file_is_plain_json(tmp_path):
    labels, predictions = rows(30)
    write_intervals(tmp_path, make_intervals(BINS, {"validation": split(labels, predictions)}, ["age"], "years"))
    saved = json.loads((tmp_path / INTERVALS).read_text())
    assert saved["schema"] == 1
    assert saved["groups"]["age"][0]["low"] is None
    assert saved["coverage_by_shot"] == {}
