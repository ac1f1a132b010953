"""Bootstrap intervals against scipy's, repeated rows and what theory expects."""

import numpy as np
import pytest
import scipy.stats

from conr_hf.imbalance import make_bins
from conr_hf.metrics import shot_intervals, shot_metrics_from_bins
from conr_hf.metrics.errors import errors
from conr_hf.metrics.validation import like_labels


def made(n, seed=0, spread=5.0):
    rng = np.random.default_rng(seed)
    train, y = rng.exponential(20, 3000), rng.uniform(0, 120, n).round()
    return y + rng.normal(0, spread, n).round(1), y, make_bins(train, 4.0)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_weight_is_that_many_samples(dimensions):
    """Against the errors of rows that are there so often, by other functions than those under test."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 6, (40, dimensions)).astype(float)
    p = y + rng.normal(0, 1, y.shape).round(1)
    index = y.astype(int) // 2
    weights = rng.integers(0, 4, (25, 40)).astype(float)
    found = errors(p, y, index, 1e-3, weights)
    for row, times in enumerate(weights.astype(int)):
        a, b, bins = np.repeat(p, times, axis=0), np.repeat(y, times, axis=0), np.repeat(index, times, axis=0)
        error = np.abs(a - b)
        by_bin = [[error[bins[:, t] == i, t].mean() for i in set(bins[:, t])] for t in range(dimensions)]
        expected = {
            "n": len(a),
            "mae": error.mean(),
            "mse": (error**2).mean(),
            "rmse": np.sqrt((error**2).mean()),
            "gm": scipy.stats.gmean(np.maximum(error.mean(axis=1), 1e-3)),
            "bmae": np.mean([np.mean(means) for means in by_bin]),
            "pearson": np.mean([scipy.stats.pearsonr(a[:, t], b[:, t]).statistic for t in range(dimensions)]),
            "spearman": np.mean([scipy.stats.spearmanr(a[:, t], b[:, t]).statistic for t in range(dimensions)]),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, rel=1e-10)


def test_a_correlation_that_a_resample_leaves_undefined_is_nan():
    p, y = np.array([[1.0], [1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]])
    found = errors(p, y, np.zeros((3, 1), dtype=int), 1e-3, np.array([[2.0, 1.0, 0.0], [1.0, 0.0, 2.0]]))
    assert np.isnan(found["pearson"]).tolist() == np.isnan(found["spearman"]).tolist() == [True, False]
    assert found["pearson"][1] == pytest.approx(1)


def test_agrees_with_scipy():
    p, y, bins = made(150)
    ours = shot_intervals(p, y, bins, resamples=4000)["all"]
    statistics = {
        "mae": lambda a, b, axis: np.abs(a - b).mean(axis=axis),
        "rmse": lambda a, b, axis: np.sqrt(((a - b) ** 2).mean(axis=axis)),
        "pearson": lambda a, b, axis: scipy.stats.pearsonr(a, b, axis=axis).statistic,
    }
    for name, statistic in statistics.items():
        theirs = scipy.stats.bootstrap(
            (p, y), statistic, paired=True, n_resamples=4000, method="percentile", rng=7
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours[name] == pytest.approx(tuple(theirs), abs=0.08 * width), name


def test_width_is_that_of_the_normal_distribution():
    """At a size that is drawn in several goes."""
    p, y, bins = made(5000)
    error = np.abs(p - y)
    low, high = shot_intervals(p, y, bins, level=0.9)["all"]["mae"]
    expected = 1.645 * error.std() / np.sqrt(len(y))
    assert ((high - low) / 2, (high + low) / 2) == pytest.approx((expected, error.mean()), abs=0.1 * expected)


def test_every_metric_of_every_shot_lies_inside():
    p, y, bins = made(600)
    point, found = shot_metrics_from_bins(p, y, bins), shot_intervals(p, y, bins, resamples=500)
    assert list(found) == list(point) == ["all", "many", "median", "few"]
    for shot, values in point.items():
        assert list(found[shot]) == [name for name in values if name != "n"]
        for name, (low, high) in found[shot].items():
            assert low < values[name] < high, (shot, name)
    narrow = shot_intervals(p, y, bins, resamples=500, level=0.5)["few"]["mae"]
    assert found["few"]["mae"][0] < narrow[0] < narrow[1] < found["few"]["mae"][1]


def test_samples_of_a_group_are_drawn_together():
    """Ten copies of each sample tell no more than the sample: only the groups know."""
    p, y, bins = made(80)
    once = shot_intervals(p, y, bins)["all"]
    copies = [np.repeat(part, 10) for part in (p, y)]
    groups = np.repeat([f"photo {i:02d}" for i in range(80)], 10)
    assert shot_intervals(*copies, bins, groups=groups)["all"]["mae"] == pytest.approx(once["mae"])
    assert shot_intervals(p, y, bins, groups=np.arange(80))["all"] == once
    blind = np.ptp(shot_intervals(*copies, bins)["all"]["mae"])
    assert blind == pytest.approx(np.ptp(once["mae"]) / np.sqrt(10), rel=0.15)
    shuffled = np.random.default_rng(3).permutation(800)
    again = shot_intervals(copies[0][shuffled], copies[1][shuffled], bins, groups=groups[shuffled])["all"]
    assert again["mae"] == pytest.approx(once["mae"])


def test_a_seed_is_a_result():
    p, y, bins = made(60)
    assert shot_intervals(p, y, bins, seed=3) == shot_intervals(p, y, bins, seed=3)
    assert shot_intervals(p, y, bins, seed=3) != shot_intervals(p, y, bins, seed=4)


def test_what_says_nothing_is_absent():
    bins = make_bins([30] * 150 + [70] * 5)
    found = shot_intervals([31.0, 33.0, 28.0, 60.0], [30, 30, 30, 70], bins)
    assert set(found) == {"all", "many"}  # one sample is few
    assert not {"pearson", "spearman"} & found["many"].keys()  # one label
    assert "pearson" in found["all"]
    assert shot_intervals([31.0, 33.0], [30, 30], bins, groups=["a", "a"]) == {}


def test_shapes_are_those_of_shot_metrics():
    p, y, bins = made(50)
    assert shot_intervals(p[:, None], y, bins, resamples=50) == shot_intervals(p, y, bins, resamples=50)
    assert like_labels(p[:, None], y).shape == y.shape


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level": 95}, r"level is 95; it must be between 0 and 1 \(0.95\)"),
        ({"level": 0.0}, "level is 0.0"),
        ({"resamples": 0}, "resamples is 0; it must be 1 or more"),
        ({"groups": ["a"]}, r"groups have shape \(1,\) and there are 2 samples. Pass one group for each sample"),
        ({"groups": ["a", None]}, r"groups\[1\] is None. Name the group"),
        ({"groups": [np.nan, 1.0]}, r"groups\[0\] is nan"),
        ({"predictions": [1.0, np.nan]}, r"predictions\[1\] is nan"),
        ({"thresholds": (5, 2)}, r"Write \(2, 5\)"),
    ],
)
def test_refusals_say_what_to_do(changed, message):
    with pytest.raises(ValueError, match=message):
        shot_intervals(**{"predictions": [1.0, 2.0], "labels": [1.0, 2.0], "bins": make_bins([1.0, 2.0]), **changed})
