"""The mixture of the training labels: found again, whatever the unit, and with few distinct labels."""

import numpy as np
import pytest
import torch

from conr_hf.imbalance import fit_mixture
from conr_hf.losses import gai, make_mixture


def two_groups(dims=1):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-5, 0.5, size=(3000, dims)), rng.normal(4, 2, size=(1000, dims))])


@pytest.mark.parametrize("dims", [1, 2])
def test_finds_the_mixture_that_was_drawn(dims):
    weights, means, covariances = fit_mixture(two_groups(dims), 2, seed=0)
    order = means[:, 0].argsort()
    assert weights.dtype == means.dtype == covariances.dtype == np.float64
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(weights[order], [0.75, 0.25], atol=0.01)
    np.testing.assert_allclose(means[order], np.array([[-5.0], [4.0]]).repeat(dims, 1), atol=0.2)
    expected = np.array([0.25, 4.0])[:, None, None] * np.eye(dims)
    np.testing.assert_allclose(covariances[order], expected, atol=0.3)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_unit_of_the_labels_does_not_matter(scale):
    weights, means, covariances = fit_mixture(two_groups(2), 3, seed=1)
    scaled = fit_mixture(scale * two_groups(2) + 5 * scale, 3, seed=1)
    np.testing.assert_allclose(scaled[0], weights, rtol=1e-6)
    np.testing.assert_allclose(scaled[1], scale * means + 5 * scale, rtol=1e-6)
    np.testing.assert_allclose(scaled[2], scale**2 * covariances, rtol=1e-6, atol=1e-8 * scale**2)


def test_the_seed_decides():
    labels = torch.from_numpy(two_groups()).squeeze(1)
    first, again = fit_mixture(labels, 8, seed=3), fit_mixture(labels, 8, seed=3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dims", [1, 2])
def test_many_labels_are_fitted_by_their_quantiles(dims, monkeypatch):
    """In whatever order they come, and all of the range is among them."""
    labels = two_groups(dims)
    whole = fit_mixture(labels, 2, seed=0)
    monkeypatch.setattr("conr_hf.imbalance.mixture.MOST_LABELS", 3000)
    found = fit_mixture(labels, 2, seed=0)
    shuffled = fit_mixture(np.random.default_rng(1).permutation(labels), 2, seed=0)
    for a, b, expected in zip(found, shuffled, whole, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(np.sort(a, 0), np.sort(expected, 0), atol=0.05 if dims == 1 else 0.4)
        assert not np.array_equal(a, expected)


def test_fewer_distinct_labels_than_components():
    weights, means, covariances = fit_mixture([20] * 6 + [30] * 3 + [70], 8, seed=0)
    order = means[:, 0].argsort()
    np.testing.assert_allclose(weights[order], [0.6, 0.3, 0.1], atol=1e-6)
    np.testing.assert_allclose(means[order, 0], [20, 30, 70], atol=1e-4)
    assert (covariances < 0.01).all()
    weights, means, covariances = fit_mixture([5.0, 5.0], 8, seed=0)
    assert (weights.tolist(), means.tolist(), covariances.shape) == ([1.0], [[5.0]], (1, 1, 1))


def test_the_loss_reads_it():
    """One Gaussian of mean 0 and variance 1, and s = 1: as worked by hand in the test of the loss."""
    mixture = make_mixture(*(torch.from_numpy(part) for part in fit_mixture([-1.0, 1.0], 1, seed=0)))
    loss = gai(torch.tensor([1.0]), torch.tensor([2.0]), mixture, torch.tensor(1.0))
    assert loss.item() == pytest.approx(0.5 - np.log(2), abs=1e-5)


def test_refuses():
    with pytest.raises(ValueError, match=r"^components is 0; it must be 1 or more"):
        fit_mixture([1.0, 2.0], 0, seed=0)
    with pytest.raises(ValueError, match=r"^There are 1 training labels"):
        fit_mixture([1.0], 8, seed=0)
    with pytest.raises(ValueError, match=r"^labels\[1\] is nan"):
        fit_mixture([1.0, np.nan], 8, seed=0)
