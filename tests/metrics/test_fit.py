"""Whether predictions follow the labels, and what is said of those that do not."""

import numpy as np
import pytest

from conr_hf.imbalance import make_bins
from conr_hf.metrics import StreamedErrors, fit
from conr_hf.metrics.fit import describe_fit
from conr_hf.metrics.shots import few_share


@pytest.mark.parametrize("dimensions", [1, 2])
def test_agrees_with_the_definitions(dimensions):
    random = np.random.default_rng(0)
    labels = random.exponential(10, (41, dimensions))
    predictions = labels + random.normal(size=labels.shape)
    found = fit(predictions, labels)
    for t in range(dimensions):
        p, y = predictions[:, t].tolist(), labels[:, t].tolist()
        mean = sum(y) / 41
        left, all_ = sum((b - a) ** 2 for a, b in zip(p, y, strict=True)), sum((b - mean) ** 2 for b in y)
        assert found["r2"][t] == pytest.approx(1 - left / all_)
        assert found["label_std"][t] == pytest.approx((all_ / 41) ** 0.5)
        assert found["prediction_std"][t] == pytest.approx(np.std(p))
    # No constant of a fine grid has a smaller error than the best one.
    grid = np.linspace(0, 50, 2001)
    least = np.mean([min(np.abs(labels[:, t] - value).mean() for value in grid) for t in range(dimensions)])
    assert found["best_constant_mae"] == pytest.approx(least, abs=0.03)
    assert found["best_constant_mae"] <= least + 1e-9


def test_streamed_maps_give_the_same():
    random = np.random.default_rng(1)
    labels = 1000 + random.exponential(10, (5, 8, 8))
    predictions = labels + random.normal(size=labels.shape)
    errors = StreamedErrors(make_bins(labels.ravel(), 5.0))
    for some, theirs in zip(predictions, labels, strict=True):
        errors.update(some, theirs)
    expected = fit(predictions.ravel(), labels.ravel())
    for name in ("prediction_std", "label_std", "r2"):
        assert errors.fit()[name] == pytest.approx(expected[name])


def said(predictions, labels):
    mae = float(np.abs(np.subtract(predictions, labels)).mean())
    return describe_fit(fit(predictions, labels), mae, ["pressure", "heat"], "bar")


def test_predictions_that_hardly_vary_have_learnt_nothing():
    labels = np.linspace(0, 10, 50)
    text, problem = said(5 + 0.05 * (labels - 5), labels)
    assert "vary by 0.1473 bar where labels vary by 2.945" in text
    assert "has not learnt: its predictions hardly vary (standard deviation 0.1473 beside 2.945 bar)" in problem
    both = np.stack([labels, 5 + 0.05 * (labels - 5)], axis=1)
    _, problem = said(both, np.stack([labels, labels], axis=1))
    assert "of heat" in problem
    assert "of pressure" not in problem


def test_predictions_that_a_constant_beats_are_no_success():
    """They vary enough, and beat the training median by far; the median of these labels is better still."""
    labels = np.linspace(0, 10, 51)
    text, problem = said(labels[::-1], labels)
    assert "best constant here, 5 bar, has an MAE of 2.549 bar" in text
    assert "no better than a constant" in problem
    assert said(labels + 0.5, labels)[1] is None


def test_constant_labels_say_nothing_of_a_model():
    assert fit([1.0, 2.0], [3.0, 3.0])["r2"] == [None]
    assert said([3.1, 2.9], [3.0, 3.0])[1] is None


def test_the_share_of_few_shot_labels():
    labels = [30] * 150 + [70] * 50 + list(range(80, 90))
    assert few_share(make_bins(labels, 1)) == pytest.approx(10 / 210)
    assert few_share(make_bins(labels, 1, thresholds=(60, 100))) == pytest.approx(60 / 210)
    assert few_share(make_bins(np.stack([labels, range(210)], axis=1), 1)) == 1
