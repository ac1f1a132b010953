"""Weights from label density: mean 1, no unit, never infinite, and the same from numpy and from torch."""

import math

import numpy as np
import pytest
import torch

from conr_hf.imbalance import density_weights, make_bins, make_density

METHODS = ["none", "inverse", "sqrt_inverse"]


def slow_weights(labels, width, method):
    """From the formulas, one training label at a time; labels that need no tolerance."""
    raw = []
    for y in labels:
        n = sum(math.floor(other / width) == math.floor(y / width) for other in labels)
        raw.append({"none": 1, "inverse": 1 / min(max(n, 5), 1000), "sqrt_inverse": 1 / math.sqrt(n)}[method])
    return [w * len(raw) / sum(raw) for w in raw]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_loops_and_has_mean_one(seed, method):
    labels = np.random.default_rng(seed).exponential(10, size=300)
    weights = density_weights(labels, make_bins(labels, 2.0), method)
    np.testing.assert_allclose(weights, slow_weights(labels, 2.0, method), rtol=1e-12)
    assert weights.mean() == pytest.approx(1, abs=1e-12)


def test_worked_by_hand():
    labels = [0] * 16 + [1] * 4
    bins = make_bins(labels)
    # 1 / sqrt(16), 1 / sqrt(4): mean (16 / 4 + 4 / 2) / 20 = 0.3
    np.testing.assert_allclose(density_weights([0, 1], bins, "sqrt_inverse", labels), [0.25 / 0.3, 0.5 / 0.3])
    # 1 / 16, and 4 is clipped to 5: mean (1 + 4 / 5) / 20 = 0.09
    np.testing.assert_allclose(density_weights([0, 1], bins, "inverse", labels), [1 / 16 / 0.09, 0.2 / 0.09])


@pytest.mark.parametrize("method", METHODS)
def test_uniform_labels_weigh_one(method):
    labels = np.repeat(np.arange(50) * 0.1, 7).astype(np.float32)
    bins = make_bins(labels, 0.1)
    np.testing.assert_allclose(density_weights(labels, bins, method), 1, rtol=1e-12)
    lookup = make_density(labels, bins, method)
    torch.testing.assert_close(lookup.weights(torch.from_numpy(labels)), torch.ones(350))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_do_not_matter(method, dtype):
    y = torch.from_numpy(np.random.default_rng(0).gamma(2, 0.3, size=500)).to(dtype)
    z = 1000 * y + 5
    edges = np.arange(0, 5, 0.1)
    a = make_density(y, make_bins(y, edges=edges), method).weights(y)
    b = make_density(z, make_bins(z, edges=1000 * edges + 5), method).weights(z)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lookup_equals_numpy(method, dimensions, dtype):
    rng = np.random.default_rng(dimensions)
    train = torch.from_numpy(rng.normal(size=(400, dimensions)) ** 3).to(dtype)
    bins = make_bins(train, 0.1)
    lookup = make_density(train, bins, method)
    on_edges = torch.from_numpy(np.stack([rng.choice(e, 200) for e in bins.edges], axis=1)).to(dtype)
    labels = torch.cat([train, on_edges, on_edges + 1e-6, on_edges - 1e-6, train * 3])  # the last often outside
    weights = lookup.weights(labels)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, density_weights(labels, bins, method, train), rtol=1e-6)
    assert lookup.weights(train).double().mean() == pytest.approx(1, abs=1e-6)
    if dimensions == 1:
        torch.testing.assert_close(lookup.weights(labels[:, 0]), weights, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_empty_bins_and_labels_outside_weigh_like_one_training_label(method):
    train = [0.0] * 30 + [5.0]
    bins = make_bins(train, 1.0)
    labels = torch.tensor([5.0, 3.0, -100.0, 100.0, float("nan"), float("inf")])
    weights = make_density(train, bins, method).weights(labels)
    torch.testing.assert_close(weights, weights[:1].expand(6), rtol=0, atol=0)
    assert torch.isfinite(weights).all()
    assert np.isfinite(density_weights([3.0, -100.0], bins, method, train)).all()


@pytest.mark.parametrize("method", METHODS)
def test_one_label_weighs_one(method):
    bins = make_bins([3.7])
    assert density_weights([3.7], bins, method).tolist() == [1.0]
    assert make_density([3.7], bins, method).weights(torch.tensor([3.7])).tolist() == [1.0]


def test_two_dimensions_weigh_by_the_rarest_coordinate():
    train = [[0.5, 0.5]] * 9 + [[0.5, 1.5]]
    weights = density_weights(train, make_bins(train, 1.0), "sqrt_inverse")
    assert weights[-1] / weights[0] == pytest.approx(3)


def test_training_labels_outside_given_edges_keep_the_mean_at_one():
    train = [0.5] * 8 + [99.0]
    assert density_weights(train, make_bins(train, edges=[0, 1]), "sqrt_inverse").mean() == pytest.approx(1)


def test_an_empty_batch_and_gradients():
    lookup = make_density([1.0, 2.0], make_bins([1.0, 2.0]), "inverse")
    assert lookup.weights(torch.zeros(0)).shape == (0,)
    assert not lookup.weights(torch.ones(2, requires_grad=True)).requires_grad
    whole = lookup.weights(torch.tensor([1, 2]))
    torch.testing.assert_close(whole, lookup.weights(torch.tensor([1.0, 2.0])), rtol=0, atol=0)


def test_refusals_say_what_to_do():
    bins = make_bins([1.0, 2.0])
    with pytest.raises(ValueError, match='"inverse", "sqrt_inverse"'):
        density_weights([1.0], bins, "sqrt")
    with pytest.raises(ValueError, match="no training labels"):
        make_density([], bins, "inverse")
    with pytest.raises(ValueError, match=r"shape \(4, 2\)"):
        make_density([1.0], bins, "inverse").weights(torch.zeros(4, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_lookup_on_a_gpu_never_waits_for_it():
    train = np.random.default_rng(0).normal(size=300)
    bins = make_bins(train, 0.1)
    lookup = make_density(train, bins, "sqrt_inverse").to("cuda")
    labels = torch.from_numpy(train).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights = lookup.weights(labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(weights.cpu(), density_weights(train, bins, "sqrt_inverse"), rtol=1e-6)
