"""Errors gathered batch by batch against those of all pixels at once."""

import numpy as np
import pytest
import torch

from conr_hf.imbalance import Bins, make_bins
from conr_hf.metrics import StreamedErrors, depth_metrics, shot_metrics_from_bins

DEPTH = ("abs_rel", "log10", "delta1", "delta2", "delta3")


def at_once(predictions, labels, bins):
    """The metrics of the concatenated pixels, without those that need them all at once."""
    there = ~np.isnan(labels)
    found = shot_metrics_from_bins(predictions[there], labels[there], bins)
    return {
        shot: {name: value for name, value in metrics.items() if name != "spearman"} for shot, metrics in found.items()
    }


def streamed(predictions, labels, bins, splits):
    errors = StreamedErrors(bins)
    for p, y in zip(np.split(predictions, splits), np.split(labels, splits), strict=True):
        errors.update(p, y)
    return errors.compute()


def without_depth(found):
    return {
        shot: {name: value for name, value in metrics.items() if name not in DEPTH} for shot, metrics in found.items()
    }


def assert_close(found, expected):
    assert list(found) == list(expected)
    for shot, metrics in expected.items():
        assert list(found[shot]) == list(metrics), shot
        assert found[shot] == pytest.approx(metrics, rel=1e-9, abs=0), shot


def maps(seed, offset=0.0, scale=1.0, n=9):
    """Maps with holes, exact predictions, and labels outside the bins of the training pixels."""
    rng = np.random.default_rng(seed)
    train = offset + scale * rng.gamma(1.5, 1.0, 6000)
    y = offset + scale * rng.gamma(1.5, 1.4, (n, 6, 7))
    y[:, -1, :2] += 20 * scale
    p = y + scale * rng.normal(0, 0.5, y.shape)
    p[:, 0] = y[:, 0]
    y[rng.random(y.shape) < 0.3] = np.nan
    y[3] = np.nan  # a map without a label
    return p, y, make_bins(train, scale * 0.25)


@pytest.mark.parametrize("splits", [[], [1], [3, 4], [2, 2, 5], range(1, 9)])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (-5, 1), (1e6, 3), (0, 1e-4)])
def test_any_split_into_batches_agrees_with_all_pixels_at_once(splits, offset, scale):
    p, y, bins = maps(0, offset, scale)
    assert (bins.index(y[~np.isnan(y)]) < 0).any()
    expected = at_once(p, y, bins)
    assert set(expected) == {"all", "many", "median", "few"}
    assert_close(without_depth(streamed(p, y, bins, splits)), expected)


def test_a_batch_of_many_pixels_is_counted_in_parts(monkeypatch):
    p, y, bins = maps(4)
    monkeypatch.setattr("conr_hf.metrics.streaming.PIXELS_CPU", 1)  # as many as there are bins
    assert len(bins.train_counts[0]) < 100
    assert_close(without_depth(streamed(p, y, bins, [])), at_once(p, y, bins))


def test_depth_figures_of_every_shot_are_those_of_its_pixels():
    p, y, bins = maps(1)
    p[0] = -1.0
    found = streamed(p, y, bins, [4, 6])
    counts = bins.train_count_of(np.where(np.isnan(y), -1, y).ravel()).reshape(y.shape)
    shots = {"all": counts >= 0, "many": counts > 100, "median": (counts >= 20) & (counts <= 100), "few": counts < 20}
    for shot, mask in shots.items():
        expected = depth_metrics(p, y, mask & ~np.isnan(y))
        assert {name: found[shot][name] for name in expected} == pytest.approx(expected, rel=1e-12), shot


def test_a_label_of_zero_has_no_depth():
    p, y, bins = maps(2)
    y[5, 2, 2] = 0.0
    found = streamed(p, y, bins, [6])
    assert not any(name in metrics for metrics in found.values() for name in DEPTH)
    assert_close(found, at_once(p, y, bins))


def test_tensors_and_an_axis_of_channels():
    p, y, bins = maps(3)
    p, y = p.astype(np.float32), y.astype(np.float32)
    errors = StreamedErrors(bins)
    errors.update(torch.tensor(p)[:, None].requires_grad_(), torch.tensor(y))
    assert errors.compute() == streamed(p, y, bins, [])


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_constant_predictions_have_no_correlation(value):
    """Rounding must not make one of them, over however many pixels and batches."""
    rng = np.random.default_rng(0)
    y = rng.uniform(0, 1, (4, 100_000))
    found = streamed(np.full(y.shape, value), y, make_bins(y.ravel(), 0.1), [1, 3])
    assert "pearson" not in found["all"]


def test_constant_labels_have_no_correlation():
    y = np.full((4, 100_000), 0.1)
    p = np.random.default_rng(0).normal(size=y.shape)
    assert "pearson" not in streamed(p, y, make_bins(y.ravel()), [2])["all"]


def test_predictions_that_hardly_differ_keep_their_correlation():
    y = np.random.default_rng(0).uniform(0, 1, (4, 1000))
    bins = make_bins(y.ravel(), 0.1)
    p = 100 + 1e-6 * y
    expected = at_once(p, y, bins)["all"]["pearson"]
    assert streamed(p, y, bins, [1, 2, 3])["all"]["pearson"] == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(1)


def test_errors_of_the_bins():
    errors = StreamedErrors(Bins((np.array([0.0, 1, 2, 3]),), (np.array([5, 5, 5]),)))
    errors.update([[0.5, 2.0]], [[0.25, 2.5]])
    errors.update([[1.0, 9.0]], [[0.25, 7.0]])
    n, mae = errors.of_bins()
    assert n.tolist() == [2, 0, 1]
    np.testing.assert_allclose(mae, [0.5, np.nan, 0.5])


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([[1.0, np.nan]], [[1.0, 1.0]], r"^predictions\[0, 1\] is nan. The model may have diverged"),
        ([[1.0, -np.inf]], [[1.0, 1.0]], r"^predictions\[0, 1\] is -inf"),
        ([[1.0, 1.0]], [[1.0, np.inf]], r"^labels\[0, 1\] is inf. Write NaN where there is no label"),
        (np.ones((2, 3)), np.ones((3, 2)), r"^predictions is of shape \(2, 3\) and labels of \(3, 2\)"),
    ],
)
def test_a_refused_batch_says_what_is_wrong_and_is_not_counted(predictions, labels, message):
    errors = StreamedErrors(make_bins([1.0, 2.0]))
    errors.update([2.0], [1.0])
    with pytest.raises(ValueError, match=message):
        errors.update(predictions, labels)
    assert errors.compute()["all"]["n"] == 1


def test_predictions_where_there_is_no_label_may_be_anything():
    errors = StreamedErrors(make_bins([1.0, 2.0]))
    errors.update([2.0, np.nan, np.inf], [1.0, np.nan, np.nan])
    assert errors.compute()["all"]["mae"] == 1


def test_without_labels_there_is_nothing_to_compute():
    errors = StreamedErrors(make_bins([1.0, 2.0]))
    errors.update([[2.0]], [[np.nan]])
    with pytest.raises(ValueError, match="no pixels to evaluate"):
        errors.compute()


def test_bins_of_several_dimensions_are_refused():
    with pytest.raises(ValueError, match="bins have 2 label dimensions and maps have one"):
        StreamedErrors(make_bins([[1.0, 2.0], [2.0, 3.0]]))
