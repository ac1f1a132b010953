"""Weights from label density: mean 1, no unit, never infinite, and the same from numpy and from torch."""

import numpy as np
import pytest
import reference_imbalance as reference
import torch

from conr_hf.imbalance import Bins, density_weights, make_bins, make_density, smoothing_kernel

METHODS = ["none", "inverse", "sqrt_inverse"]
KERNELS = [
    None,
    [1.0],
    smoothing_kernel("gaussian"),
    smoothing_kernel("triangular", 3),
    smoothing_kernel("laplace", 41),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("seed", "dimensions"), [(0, 1), (1, 1), (2, 2)])
def test_agrees_with_loops_and_has_mean_one(seed, dimensions, kernel, method):
    labels = np.random.default_rng(seed).exponential(10, size=(120, dimensions))
    bins = make_bins(labels, 2.0)
    weights = density_weights(labels, bins, method, kernel)
    expected = reference.density_weights(labels, bins.edges, method, [1.0] if kernel is None else kernel)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert weights.mean() == pytest.approx(1, abs=1e-12)


def test_worked_by_hand():
    labels = [0] * 16 + [1] * 4
    bins = make_bins(labels)
    # 1 / sqrt(16), 1 / sqrt(4): mean (16 / 4 + 4 / 2) / 20 = 0.3
    np.testing.assert_allclose(
        density_weights([0, 1], bins, "sqrt_inverse", train_labels=labels), [0.25 / 0.3, 0.5 / 0.3]
    )
    # 1 / 16, and 4 is clipped to 5: mean (1 + 4 / 5) / 20 = 0.09
    np.testing.assert_allclose(
        density_weights([0, 1], bins, "inverse", train_labels=labels), [1 / 16 / 0.09, 0.2 / 0.09]
    )


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
@pytest.mark.parametrize("kernel", [None, smoothing_kernel("gaussian")])
def test_lookup_equals_numpy(method, dimensions, dtype, kernel):
    rng = np.random.default_rng(dimensions)
    train = torch.from_numpy(rng.normal(size=(400, dimensions)) ** 3).to(dtype)
    bins = make_bins(train, 0.1)
    lookup = make_density(train, bins, method, kernel)
    on_edges = torch.from_numpy(np.stack([rng.choice(e, 200) for e in bins.edges], axis=1)).to(dtype)
    labels = torch.cat([train, on_edges, on_edges + 1e-6, on_edges - 1e-6, train * 3])  # the last often outside
    weights = lookup.weights(labels)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, density_weights(labels, bins, method, kernel, train), rtol=1e-6)
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
    assert np.isfinite(density_weights([3.0, -100.0], bins, method, train_labels=train)).all()


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


# ---- Label distribution smoothing -----------------------------------------------------------------------------------


def test_smoothing_worked_by_hand():
    # Counts 16, 4, 0 and 1; roots 4, 2, 0 and 1. By the kernel 1/2, 1, 1/2 they become 4 + 1 = 5, 2 + 2 = 4,
    # 1 + 1/2 = 1.5 and 1. Mean of the inverses over the labels: (16 / 5 + 4 / 4 + 1) / 21 = 5.2 / 21.
    train = [0] * 16 + [1] * 4 + [3]
    weights = density_weights([0, 1, 2, 3], make_bins(train), "sqrt_inverse", [0.5, 1, 0.5], train)
    np.testing.assert_allclose(weights, np.array([1 / 5, 1 / 4, 1 / 1.5, 1]) * 21 / 5.2, rtol=1e-12)
    # Clipped 16, 5, 5 and 5 become 18.5, 15.5, 10 and 7.5: the weight of an empty bin is that of 5 labels.
    weights = density_weights([0, 1, 2, 3], make_bins(train), "inverse", [0.5, 1, 0.5], train)
    expected = np.array([1 / 18.5, 1 / 15.5, 1 / 10, 1 / 7.5])
    np.testing.assert_allclose(weights, expected * 21 / (expected @ [16, 4, 0, 1]), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_of_one_bin_changes_nothing(method):
    labels = np.random.default_rng(0).exponential(10, size=300)
    bins = make_bins(labels, 2.0)
    plain = density_weights(labels, bins, method)
    assert np.array_equal(density_weights(labels, bins, method, [1.0]), plain)
    np.testing.assert_allclose(density_weights(labels, bins, method, [7.0]), plain, rtol=1e-12)


def test_a_kernel_counts_by_its_shape_alone():
    """One that sums to 1 would make values below 1, which are held at that, and so flatten the weights."""
    train = np.random.default_rng(0).exponential(10, size=300)
    bins, kernel = make_bins(train, 1.0), smoothing_kernel("gaussian")
    whole = density_weights(train, bins, "sqrt_inverse", kernel)
    np.testing.assert_allclose(density_weights(train, bins, "sqrt_inverse", kernel / kernel.sum()), whole, rtol=1e-12)


def test_without_weights_there_is_nothing_to_smooth():
    """Beyond the end bins nothing counts, so that smoothed ones would weigh their labels more."""
    labels = np.arange(20)
    bins = make_bins(labels)
    assert density_weights(labels, bins, "none", smoothing_kernel("gaussian")).tolist() == [1.0] * 20
    lookup = make_density(labels, bins, "none", smoothing_kernel("gaussian"))
    assert lookup.weights(torch.from_numpy(labels)).tolist() == [1.0] * 20


@pytest.mark.parametrize("method", METHODS)
def test_no_bin_weighs_more_than_one_with_a_single_training_label(method):
    """Far from all labels, and where only the faint end of a kernel reaches, weights would explode."""
    train = [0.5] * 30 + [50.5]
    bins = make_bins(train, 1.0)
    faint = smoothing_kernel("gaussian", 41, 1.5)
    assert faint[0] < 1e-30
    weights = density_weights(np.arange(51) + 0.5, bins, method, faint, train)
    assert np.isfinite(weights).all()
    assert weights.max() <= weights[-1] * (1 + 1e-12)


def test_out_of_reach_of_all_labels_weighs_like_a_single_one():
    train = [0.5] * 30 + [50.5]
    far, outside, single = density_weights(
        [25.5, -9.0, 50.5], make_bins(train, 1.0), "sqrt_inverse", smoothing_kernel("gaussian"), train
    )
    assert far == outside == single


def test_smoothing_lifts_a_rare_label_beside_common_ones():
    """The published motivation: 31 among many of 30 and 32 is not rare as 71 is, alone."""
    train = [30] * 100 + [31] + [32] * 100 + [71]
    for kernel in ("gaussian", "triangular", "laplace"):
        beside, alone = density_weights([31, 71], make_bins(train), "sqrt_inverse", smoothing_kernel(kernel), train)
        assert beside < alone / 5


def test_more_kernel_than_bins():
    bins = Bins((np.arange(4.0),), (np.array([4, 0, 9]),))
    train = [0.5] * 4 + [2.5] * 9
    # Roots 2, 0 and 3 under the kernel 1/4 .. 1 .. 1/4: 2 + 3 / 2, 3/4 * 5 and 3 + 1, in the bins' own places.
    weights = density_weights([0.5, 1.5, 2.5], bins, "sqrt_inverse", smoothing_kernel("triangular", 7), train)
    expected = np.array([1 / 3.5, 1 / 3.75, 1 / 4])
    np.testing.assert_allclose(weights, expected * 13 / (expected @ [4, 0, 9]), rtol=1e-12)


def test_refusals_say_what_to_do():
    bins = make_bins([1.0, 2.0])
    with pytest.raises(ValueError, match='"inverse", "sqrt_inverse"'):
        density_weights([1.0], bins, "sqrt")
    with pytest.raises(ValueError, match="no training labels"):
        make_density([], bins, "inverse")
    for call in (density_weights, make_density):
        with pytest.raises(ValueError, match="smoothing_kernel makes such"):
            call([1.0], bins, "inverse", [1.0, 1.0])
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
