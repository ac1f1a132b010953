"""Shot metrics against scipy, scikit-learn, loops and the published AgeDB counts."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from agedb import AGEDB

from conr_hf.imbalance import Bins, make_bins
from conr_hf.metrics import (
    constant_median,
    flat,
    like_labels,
    sample_shots,
    shot_masks,
    shot_metrics,
    shot_metrics_from_bins,
)


def slow_metrics(p, y, train, width):
    """All shots by loops over samples, for one label dimension and labels that need no tolerance."""
    count = {}
    for label in train:
        count[math.floor(label / width)] = count.get(math.floor(label / width), 0) + 1
    shots = {"all": [], "many": [], "median": [], "few": []}
    for prediction, label in zip(p, y, strict=True):
        n = count.get(math.floor(label / width), 0)
        for shot in ("all", "many" if n > 100 else "few" if n < 20 else "median"):
            shots[shot].append((prediction, label))
    result = {}
    for shot, pairs in shots.items():
        if not pairs:
            continue
        errors = [abs(a - b) for a, b in pairs]
        by_bin = {}
        for (_, label), error in zip(pairs, errors, strict=True):
            n = count.get(math.floor(label / width), 0)
            by_bin.setdefault(math.floor(label / width) if n or in_range(label, count, width) else None, []).append(
                error
            )
        result[shot] = {
            "n": len(pairs),
            "mae": sum(errors) / len(errors),
            "mse": sum(e**2 for e in errors) / len(errors),
            "rmse": math.sqrt(sum(e**2 for e in errors) / len(errors)),
            "gm": float(scipy.stats.gmean(errors)),
            "bmae": sum(sum(e) / len(e) for e in by_bin.values()) / len(by_bin),
        }
        if len(pairs) > 1:
            for name, correlation in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
                result[shot][name] = float(correlation(*zip(*pairs, strict=True)).statistic)
    return result


def in_range(label, count, width):
    return min(count) <= math.floor(label / width) <= max(count)


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_scipy_and_loops(seed):
    rng = np.random.default_rng(seed)
    train, y, p = rng.exponential(20, 2000), rng.uniform(0, 200, 150), rng.normal(0, 8, 150)
    if seed % 2:  # ties in labels
        y = np.floor(y) + 0.5
    p += y
    if seed % 3 == 0:  # and in predictions
        p = p.round()
    result, expected = shot_metrics(p, y, train, bin_width=4.0), slow_metrics(p, y, train, 4.0)
    assert list(result) == ["all", "many", "median", "few"]
    assert result.keys() == expected.keys()
    for shot, values in expected.items():
        assert list(result[shot]) == list(values)
        assert result[shot] == pytest.approx(values, rel=1e-10)
        assert {type(v) for v in result[shot].values()} == {int, float}


def test_shots_of_the_published_agedb_split():
    held_out = [min(n // 3, 30) for n in AGEDB]
    train = [age for age, n, m in zip(range(1, 102), AGEDB, held_out, strict=True) for _ in range(n - 2 * m)]
    test = [age for age, m in zip(range(1, 102), held_out, strict=True) for _ in range(m)]
    assert (len(AGEDB), sum(AGEDB), len(train), len(test)) == (101, 16488, 12208, 2140)
    result = shot_metrics([a + 1.0 for a in test], test, train)  # whole labels: bins of one year by themselves
    assert {shot: m["n"] for shot, m in result.items()} == {"all": 2140, "many": 1530, "median": 448, "few": 162}
    ages = sorted(set(test))
    masks = shot_masks(make_bins(train).train_count_of(ages))
    assert {shot: int(mask.sum()) for shot, mask in masks.items()} == {"many": 51, "median": 16, "few": 25}
    balanced = shot_metrics([a + (1.0 if a < 50 else 3.0) for a in test], test, train)["all"]["bmae"]
    assert balanced == pytest.approx(np.mean([1.0 if a < 50 else 3.0 for a in ages]))


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 30, 200)
    p = y + rng.normal(0, 3, 200)
    found = shot_metrics(p, y, y, bin_width=1)["all"]
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, p), rel=1e-12)
    assert found["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(y, p), rel=1e-12)
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(y, p), rel=1e-12)
    by_label = 1 / np.bincount(y)[y]
    assert found["bmae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, p, sample_weight=by_label), rel=1e-12)


def test_worked_by_hand():
    train = [10] * 101 + [20] * 20 + [30] * 19
    result = shot_metrics([12, 11, 20.5, 26], [10, 10, 20, 30], train, bin_width=10)
    assert {shot: m["n"] for shot, m in result.items()} == {"all": 4, "many": 2, "median": 1, "few": 1}
    assert result["many"] == pytest.approx(
        {"n": 2, "mae": 1.5, "mse": 2.5, "rmse": math.sqrt(2.5), "gm": math.sqrt(2), "bmae": 1.5}
    )
    assert result["all"]["mae"] == pytest.approx(7.5 / 4)
    assert result["all"]["bmae"] == pytest.approx((1.5 + 0.5 + 4) / 3)
    # Predictions less their mean: -5.375, -6.375, 3.125, 8.625; labels less theirs: -7.5, -7.5, 2.5, 12.5.
    assert result["all"]["pearson"] == pytest.approx(203.75 / math.sqrt(153.6875 * 275))
    # Ranks 2, 1, 3, 4 and 1.5, 1.5, 3, 4.
    assert result["all"]["spearman"] == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    for shot in ("few", "many"):  # one sample, one label
        assert not {"pearson", "spearman"} & result[shot].keys()


def test_one_column_of_predictions_is_not_broadcast():
    y = np.arange(50.0)
    expected = shot_metrics(y + 2, y, y)
    assert expected["all"]["mae"] == pytest.approx(2)
    assert shot_metrics((y + 2)[:, None], y, y) == expected
    assert shot_metrics((y + 2).tolist(), y.tolist(), y.tolist()) == expected
    t = torch.from_numpy(y)
    assert shot_metrics((t + 2)[:, None].requires_grad_(), t, t) == expected
    assert shot_metrics(y + 2, y[:, None], y[:, None]) == expected
    assert like_labels((y + 2)[:, None], y).shape == (50,)
    assert like_labels(y + 2, y[:, None]).shape == (50, 1)


def test_two_dimensions():
    rng = np.random.default_rng(0)
    train, y = rng.normal(size=(3000, 2)), rng.normal(size=(80, 2))
    p = y + rng.normal(size=(80, 2))
    result = shot_metrics(p, y, train, bin_width=0.25)
    error = np.abs(p - y)
    whole = result["all"]
    assert whole["mae"] == pytest.approx(error.mean())
    assert whole["mse"] == pytest.approx((error**2).mean())
    assert whole["gm"] == pytest.approx(scipy.stats.gmean(error.mean(1)))
    assert whole["pearson"] == pytest.approx(np.mean([scipy.stats.pearsonr(p[:, t], y[:, t])[0] for t in (0, 1)]))
    assert whole["spearman"] == pytest.approx(np.mean([scipy.stats.spearmanr(p[:, t], y[:, t])[0] for t in (0, 1)]))
    bins = make_bins(train, 0.25)
    index = bins.index(y)
    per_dimension = [np.mean([error[index[:, t] == i, t].mean() for i in set(index[:, t])]) for t in (0, 1)]
    assert whole["bmae"] == pytest.approx(np.mean(per_dimension))
    assert sum(result[s]["n"] for s in ("many", "median", "few") if s in result) == 80
    rarest = np.min([bins.train_counts_of(y)[:, t] for t in (0, 1)], axis=0)
    assert result["few"]["n"] == (rarest < 20).sum()
    undefined = shot_metrics(p, y * [1, 0], train)["all"]  # in one dimension
    assert not {"pearson", "spearman"} & undefined.keys()


def test_units_do_not_matter():
    rng = np.random.default_rng(1)
    train, y = rng.exponential(1, 500), rng.exponential(1, 60)
    p = y + rng.normal(size=60)
    p[3] = y[3] = 0.5  # an exact zero, which stays one in both units
    edges = np.linspace(0, 12, 61)
    a = shot_metrics(p, y, train, edges=edges)
    b = shot_metrics(1000 * p + 5, 1000 * y + 5, 1000 * train + 5, edges=1000 * edges + 5)
    power = {"n": 0, "mae": 1, "rmse": 1, "gm": 1, "bmae": 1, "mse": 2, "pearson": 0, "spearman": 0}
    for shot, values in a.items():
        assert b[shot] == pytest.approx({k: v * 1000 ** power[k] for k, v in values.items()}, rel=1e-9)


def test_exact_predictions():
    y = np.array([0.0, 50.0, 100.0])
    perfect = shot_metrics(y, y, y, edges=[0, 50, 100])["all"]
    assert (perfect["mae"], perfect["mse"], perfect["rmse"], perfect["bmae"]) == (0, 0, 0, 0)
    assert perfect["gm"] == pytest.approx(100 * 2**-23)
    assert perfect["pearson"] == pytest.approx(1)
    assert perfect["spearman"] == pytest.approx(1)


def test_labels_outside_all_bins_are_few_and_form_one_bin():
    train = np.zeros(200)
    result = shot_metrics([0.0, 5.0, -8.0, 31.0], [0.0, 7.0, -7.0, 30.0], train)
    assert (result["many"]["n"], result["few"]["n"]) == (1, 3)
    assert result["few"]["bmae"] == pytest.approx((2 + 1 + 1) / 3)
    assert result["all"]["bmae"] == pytest.approx((0 + 4 / 3) / 2)


@pytest.mark.parametrize("constant", [0.0, 3.0, 1e9 / 3, 0.1])
def test_correlations_are_left_out_for_constants(constant):
    y = np.arange(30.0)
    nearly = constant + np.spacing(constant) * np.arange(30).clip(0, 1)
    for predictions in (np.full(30, constant), nearly) if constant else (np.zeros(30),):
        assert not {"pearson", "spearman"} & shot_metrics(predictions, y, y)["all"].keys()


def test_correlation_of_labels_far_from_zero():
    y = 1e9 + np.arange(40.0)
    p = y + np.sin(np.arange(40))
    found = shot_metrics(p, y, y, bin_width=1)["all"]
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(p - 1e9, y - 1e9).statistic, rel=1e-9)
    assert shot_metrics(-p, y, y)["all"]["spearman"] == pytest.approx(-found["spearman"])


def test_other_thresholds():
    train, y = [1] * 30 + [2] * 5, [1, 2]
    assert set(shot_metrics(y, y, train)) == {"all", "median", "few"}
    assert set(shot_metrics(y, y, train, thresholds=(3, 20))) == {"all", "many", "median"}
    assert shot_metrics_from_bins(y, y, make_bins(train), (3, 20)) == shot_metrics(y, y, train, thresholds=(3, 20))
    with pytest.raises(ValueError, match=r"Write \(20, 100\)"):
        shot_metrics(y, y, train, thresholds=(100, 20))
    with pytest.raises(ValueError, match="Pass two: few are below the first"):
        shot_metrics(y, y, train, thresholds=(20,))
    with pytest.raises(ValueError, match="must not be greater"):
        shot_metrics(y, y, train, thresholds=(math.nan, 20))


def test_thresholds_are_those_of_the_bins_unless_others_are_given():
    train, y = [1] * 2 + [2] * 10 + [3] * 30, [1, 2, 3]
    bins = make_bins(train, bin_width=1, thresholds=(3, 20))
    expected = shot_metrics(y, y, train, bin_width=1, thresholds=(3, 20))
    assert set(expected) == {"all", "many", "median", "few"}
    assert shot_metrics_from_bins(y, y, bins) == expected
    assert set(shot_metrics_from_bins(y, y, bins, (20, 100))) == {"all", "median", "few"}


def test_thresholds_of_pixels():
    """As depth has them: counts far beyond those of images."""
    bins = Bins((np.arange(4.0),), (np.array([30_000_000, 20_000_000, 9_000_000]),))
    masks = sample_shots([0.5, 1.5, 2.5, 7.0], bins, (1e7, 2.6e7))
    assert {shot: np.flatnonzero(mask).tolist() for shot, mask in masks.items()} == {
        "many": [0],
        "median": [1],
        "few": [2, 3],
    }


def test_a_threshold_for_each_bin():
    """A bin twice as wide has twice the samples of the same density: it needs twice the thresholds."""
    bins = Bins((np.array([0.0, 1.0, 3.0]),), (np.array([30, 30]),))
    labels = [0.5, 2.0, 4.0]
    found = shot_metrics_from_bins(labels, labels, bins, ([20, 40], [25, 50]))
    assert {shot: m["n"] for shot, m in found.items()} == {"all": 3, "many": 1, "few": 2}
    assert sample_shots(labels, bins, ([20, 40], 100))["median"].tolist() == [True, False, False]
    with pytest.raises(
        ValueError, match=r"array of shape \(3,\) and there are 2 bins. Pass a number, or one for each"
    ):
        shot_metrics_from_bins(labels, labels, bins, ([20, 40, 60], 100))
    with pytest.raises(ValueError, match=r"\(40, 25\); the first must not be greater. Write \(25, 40\)"):
        shot_metrics_from_bins(labels, labels, bins, ([20, 40], 25))


def test_a_sample_is_as_rare_as_its_rarest_coordinate():
    rng = np.random.default_rng(5)
    bins, labels = make_bins(rng.normal(size=(2000, 3)), 0.5), rng.normal(0, 2, size=(200, 3))
    masks, counts = sample_shots(labels, bins), bins.train_count_of(labels)
    for shot, mask in shot_masks(counts).items():
        assert masks[shot].tolist() == mask.tolist()
        assert mask.any()
    assert sample_shots([[99.0, 0.0, 0.0]], bins, (0, 0))["few"].tolist() == [True]  # outside all bins


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0], r"predictions have shape \(3,\) and labels \(2,\). Pass one prediction"),
        ([[1.0, 2.0]], [1.0], r"\(1, 2\) and labels \(1,\)"),
        ([[1.0, 2.0]], [1.0, 2.0], r"\(1, 2\) and labels \(2,\)"),
        ([1.0, float("nan")], [1.0, 2.0], r"predictions\[1\] is nan. The model may have diverged"),
        ([1.0, 2.0], [float("inf"), 2.0], r"labels\[0\] is inf. Correct it"),
        ([], [], "no samples"),
    ],
)
def test_refusals_say_what_to_do(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        shot_metrics(predictions, labels, [1.0, 2.0])


def test_flat_names():
    y = np.arange(3.0)
    names = flat(shot_metrics(y, y, y), prefix="eval_")
    assert {"eval_n", "eval_mae", "eval_pearson", "eval_few_mae", "eval_few_n"} <= names.keys()
    assert "eval_many_mae" not in names


def test_constant_median():
    assert constant_median([1, 2, 100], 3).tolist() == [2, 2, 2]
    assert constant_median(torch.tensor([[1.0, 5.0], [3.0, 6.0]]), 2).tolist() == [[2, 5.5], [2, 5.5]]
    with pytest.raises(ValueError, match="train_labels is empty"):
        constant_median([], 2)
