"""Rank-N-Contrast and RankSim: against loops, by hand, and what must not change them."""

import math

import pytest
import reference
import torch

from conr_hf.losses import rank_n_contrast, ranking, ranking_sorted, ranksim


def random_case(seed, rows=12):
    """Features and labels in float64; equal labels, equal distances and equal features come up among seeds."""
    generator = torch.Generator().manual_seed(seed)
    label_dims = (None, 1, 2)[seed % 3]
    shape = (rows,) if label_dims is None else (rows, label_dims)
    labels = torch.randint(20, (24, 32, 60)[seed // 3 % 3], shape, generator=generator).double()
    if seed % 4 == 3:
        labels = labels * 0.1
    features = torch.randn(rows, 3, generator=generator).double() + seed % 2
    if seed % 5 == 0:
        features[4] = features[7]
    return features, labels


def value_and_gradient(function, features, *args, **kwargs):
    features = features.clone().requires_grad_()
    loss = function(features, *args, **kwargs)
    loss.backward()
    return loss.detach(), features.grad


def assert_same(found, expected, tolerance, **kwargs):
    for a, b in zip(found, expected, strict=True):
        scale = max(b.abs().max().item(), 1e-12)
        torch.testing.assert_close(a.double() / scale, b.double() / scale, rtol=0, atol=tolerance, **kwargs)


# ---- Rank-N-Contrast ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["mean_abs", "euclidean"])
def test_rank_n_contrast_agrees_with_loops(distance):
    for seed in range(24):
        features, labels = random_case(seed)
        settings = {"temperature": (2.0, 0.3)[seed % 2], "distance": distance}
        settings["anchors"] = (None, slice(3, 8), slice(-2, None))[seed % 3]
        found = value_and_gradient(rank_n_contrast, features, labels, **settings)
        expected = value_and_gradient(reference.rank_n_contrast, features, labels, **settings)
        assert_same(found, expected, 1e-7, msg=f"seed {seed}")  # equal features are at distance 0 but for rounding


def test_rank_n_contrast_of_gazes_agrees_with_loops():
    for seed in range(12):
        features, _ = random_case(seed)
        generator = torch.Generator().manual_seed(seed)
        labels = (1e-3, 0.4, 3.0)[seed % 3] * torch.randn(12, 2, generator=generator, dtype=torch.float64)
        labels[3] = labels[8]
        found = value_and_gradient(rank_n_contrast, features, labels, distance="angular")
        expected = value_and_gradient(reference.rank_n_contrast, features, labels, distance="angular", tolerance=1e-18)
        assert_same(found, expected, 1e-7, msg=f"seed {seed}")
    with pytest.raises(ValueError, match="labels have 1 dimension; it is the angle between"):
        rank_n_contrast(torch.eye(3), torch.arange(3.0), distance="angular")


def test_rank_n_contrast_worked_by_hand():
    # Similarities over tau = 2: s01 = -1, s02 = -3, s12 = -2; label distances 1, 20, 19.
    # Row 0, nearest first: against both log(e^-1 + e^-3) + 1 = log(1 + e^-2); against itself 0.
    # Row 1: against both (0 is nearer than 2) log(e^-1 + e^-2) + 1 = log(1 + e^-1); 0.
    # Row 2: (1 is nearer than 0) log(e^-2 + e^-3) + 2 = log(1 + e^-1); 0.
    features = torch.tensor([[0.0], [2.0], [6.0]], dtype=torch.float64)
    expected = (math.log1p(math.exp(-2)) + 2 * math.log1p(math.exp(-1))) / 6
    loss = rank_n_contrast(features, torch.tensor([20.0, 21.0, 40.0]))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    # Labels 20, 21, 22: row 1 is as far from both, so that each is against both: 2 log(e^-1 + e^-2) + 1 + 2.
    ties = math.log1p(math.exp(-2)) + 2 * math.log(math.exp(-1) + math.exp(-2)) + 3 + math.log1p(math.exp(-1))
    loss = rank_n_contrast(features, torch.tensor([20.0, 21.0, 22.0]))
    assert loss.item() == pytest.approx(ties / 6, rel=1e-12)


def test_rank_n_contrast_gradient_is_that_of_finite_differences():
    features, labels = random_case(1, rows=9)
    for anchors in (None, slice(2, 5)):
        assert torch.autograd.gradcheck(
            lambda x, anchors=anchors: rank_n_contrast(x, labels, anchors=anchors), features.clone().requires_grad_()
        )


def test_rank_n_contrast_follows_the_order_of_label_distances_alone():
    features, labels = random_case(6)

    def squared(a, b):
        return (a - b).abs().mean(-1) ** 2

    def saturated(a, b):
        return 1 - torch.exp(-(a - b).abs().mean(-1) / 10)

    plain = value_and_gradient(rank_n_contrast, features, labels)
    for distance in (squared, saturated):
        assert_same(value_and_gradient(rank_n_contrast, features, labels, distance=distance), plain, 1e-12)
    assert_same(value_and_gradient(rank_n_contrast, features, 1000 * labels + 5), plain, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_n_contrast_finds_equal_distances_in_any_unit(dtype):
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    whole = value_and_gradient(rank_n_contrast, features, torch.arange(40, dtype=dtype))
    tenths = value_and_gradient(rank_n_contrast, features, torch.tensor([k * 0.1 for k in range(40)], dtype=dtype))
    assert_same(tenths, whole, 1e-5 if dtype == torch.float32 else 1e-12)


def test_rank_n_contrast_of_slices_adds_up():
    for seed in (1, 2, 6):
        features, labels = random_case(seed)
        whole = value_and_gradient(rank_n_contrast, features, labels)
        slices = [slice(i, i + 1) for i in range(5)] + [slice(5, 7), slice(7, 7), slice(7, -2), slice(-2, None)]
        parts = [value_and_gradient(rank_n_contrast, features, labels, anchors=anchors) for anchors in slices]
        assert_same([sum(part) for part in zip(*parts, strict=True)], whole, 1e-12)


@pytest.mark.parametrize("seed", [1, 5])  # one label dimension, and two
def test_rank_n_contrast_in_blocks_is_the_whole(monkeypatch, seed):
    features, labels = random_case(seed, rows=150)
    whole = value_and_gradient(rank_n_contrast, features, labels)
    most = value_and_gradient(rank_n_contrast, features, labels, anchors=slice(5, 145))
    monkeypatch.setattr(ranking, "BLOCK_PAIRS", 1)
    monkeypatch.setattr(ranking_sorted, "PAIRS_CPU", 1)
    assert_same(value_and_gradient(rank_n_contrast, features, labels), whole, 1e-12)
    assert_same(value_and_gradient(rank_n_contrast, features, labels, anchors=slice(5, 145)), most, 1e-12)


def test_rank_n_contrast_of_labels_a_rounding_apart():
    # Labels 0 to 7, some with other last digits, as 0.1 + 0.2 and 0.3 have: their distances are equal.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(8, (24,), generator=generator) + 1e-15 * (torch.arange(24) % 3).double()
    assert len(labels.unique()) > 12
    found = value_and_gradient(rank_n_contrast, features, labels)
    assert_same(found, value_and_gradient(reference.rank_n_contrast, features, labels), 1e-10)


@pytest.mark.parametrize("size", [1.0, 100.0, 1000.0, 1e5])  # summed in the features' dtype, or by logarithms
def test_rank_n_contrast_where_sums_span_hundreds_of_orders(size):
    # Rows of far labels lie farthest, so that the last denominators are the smallest; and the other way around.
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(100, (20,), generator=generator).double()
    for along in (labels / 100, (labels % 50) / 50):
        features = size * (noise + along.unsqueeze(1))
        found = value_and_gradient(rank_n_contrast, features, labels)
        expected = value_and_gradient(reference.rank_n_contrast, features, labels)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=0)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-7, atol=0)  # of small numbers beside large ones too


@pytest.mark.parametrize(("scale", "tolerance"), [(1, 1e-5), (20, 1e-3)])  # summed in float32, and in float64
def test_rank_n_contrast_in_float32_of_a_batch(scale, tolerance):
    features, labels = random_case(1, rows=200)
    features = scale * features.float()
    found = value_and_gradient(rank_n_contrast, features, labels.float())
    assert found[0].dtype == found[1].dtype == torch.float32
    assert_same(found, value_and_gradient(rank_n_contrast, features.double(), labels.float()), tolerance)


def test_rank_n_contrast_does_not_depend_on_the_order_or_the_place_of_the_rows():
    features, labels = random_case(4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    loss, gradient = value_and_gradient(rank_n_contrast, features, labels)
    assert_same(value_and_gradient(rank_n_contrast, features[order], labels[order]), (loss, gradient[order]), 1e-10)
    assert_same(value_and_gradient(rank_n_contrast, features + 1000, labels), (loss, gradient), 1e-8)


def test_rank_n_contrast_in_float32():
    for seed in range(6):
        features, labels = random_case(seed, rows=60)
        features = features.float() + 10  # far from the origin, as features after a ReLU are
        found = value_and_gradient(rank_n_contrast, features, labels.float())
        assert found[0].dtype == found[1].dtype == torch.float32
        assert_same(found, value_and_gradient(rank_n_contrast, features.double(), labels.float()), 1e-4)


def test_equal_features_get_no_gradient_from_each_other():
    features = torch.ones(6, 5) + torch.arange(6.0)[:, None] * torch.tensor([1.0, 0, 0, 0, 0])
    features[1:4] = features[1]
    labels = torch.tensor([0.0, 1, 3, 8, 9, 20])
    loss, gradient = value_and_gradient(rank_n_contrast, features, labels)
    expected = value_and_gradient(reference.rank_n_contrast, features.double(), labels)
    assert_same((loss, gradient), expected, 1e-5)
    loss, gradient = value_and_gradient(rank_n_contrast, torch.full((5, 3), 0.3), torch.arange(5))
    # All at distance 0: log k for the k rows at least as far. Labels 0 .. 4 have, by row, 4, 3, 2, 1; 4, 4, 2, 1;
    # 4, 4, 2, 2 and the first two again.
    assert loss.item() == pytest.approx((2 * math.log(24) + 2 * math.log(32) + math.log(64)) / 20, rel=1e-6)
    assert not gradient.any()


def test_rank_n_contrast_survives_features_that_are_far_apart():
    features, labels = random_case(2)
    loss, gradient = value_and_gradient(rank_n_contrast, 1e5 * features.float(), labels)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


# ---- RankSim -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", [0.5, 2.0, 50.0])
def test_ranksim_agrees_with_loops(interpolation):
    moving = 0
    for seed in range(24):
        features, labels = random_case(seed)
        found = value_and_gradient(ranksim, features, labels, interpolation=interpolation)
        assert_same(found, reference.ranksim(features, labels, interpolation=interpolation), 1e-9, msg=f"seed {seed}")
        assert found[0] > 0, f"seed {seed}"
        moving += found[1].any()
    assert moving > 12  # a short interpolation may meet no change of ranks


def test_ranksim_worked_by_hand():
    # Cosines 01: 0.6, 02: 0.8, 12: 0.96; the fourth row has a label of before and is left out. n = 3.
    # Ranks by cosine 1 3 2 | 3 1 2 | 3 2 1, by label 1 2 3 | 2 1 3 | 3 2 1: twice (0 + 1 + 1) / 9 / 3 = 4 / 27.
    # The gradient that arrives is 2 (difference) / 3, times lambda = 2 (0, 0.444, -0.444) and (0.444, 0, -0.444):
    # row 0 becomes 1, 1.044, 0.356 with ranks 2 1 3, and -(1 3 2 - 2 1 3) / 3 / 2 = (1, -2, 1) / 6;
    # row 1 becomes 1.044, 1, 0.516 with ranks 1 2 3, and -(3 1 2 - 1 2 3) / 3 / 2 = (-2, 1, 1) / 6; row 2 rests.
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [-1.0, 3.0]], dtype=torch.float64)
    loss, gradient = value_and_gradient(ranksim, features, torch.tensor([20.0, 21.0, 40.0, 21.0]))
    assert loss.item() == pytest.approx(4 / 27, rel=1e-12)
    slopes = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64) / 6
    leaf = features[:3].clone().requires_grad_()
    units = leaf / leaf.norm(dim=1, keepdim=True)
    (slopes * (units @ units.T)).sum().backward()
    torch.testing.assert_close(gradient[:3], leaf.grad)
    assert not gradient[3].any()


def test_ranksim_is_zero_where_the_ranks_agree():
    # On an arc, the cosine falls with the difference of the angles; no two differences of these labels are equal.
    labels = torch.tensor([0.0, 1.0, 3.0, 7.0, 12.0, 20.0], dtype=torch.float64)
    angles = labels / 10
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0, 2, 3, 4, 5, 6]]).T
    loss, gradient = value_and_gradient(ranksim, features, labels)
    assert loss == 0
    assert not gradient.any()
    loss, gradient = value_and_gradient(ranksim, features, labels.roll(1))
    assert loss > 0.1
    assert gradient.any()


def test_ranksim_descends():
    features, labels = random_case(7)
    features = features.clone().requires_grad_()
    optimizer = torch.optim.SGD([features], lr=0.05)
    losses = []
    for _ in range(100):
        loss = ranksim(features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranksim_finds_equal_distances_in_any_unit(dtype):
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    whole = value_and_gradient(ranksim, features, torch.arange(40, dtype=dtype))
    tenths = value_and_gradient(ranksim, features, torch.tensor([k * 0.1 for k in range(40)], dtype=dtype))
    assert_same(tenths, whole, 0)


def test_ranksim_takes_the_first_row_of_each_label():
    features, labels = random_case(0)
    first = [0]
    first += [i for i in range(1, 12) if labels[i] not in labels[:i]]
    assert len(first) < 12
    loss, gradient = value_and_gradient(ranksim, features, labels)
    expected, expected_gradient = value_and_gradient(ranksim, features[first], labels[first])
    assert_same((loss, gradient[first]), (expected, expected_gradient), 0)
    assert gradient.any(1).sum() <= len(first)


def test_ranksim_with_a_row_of_zeros():
    features, labels = random_case(1)
    features[0] = 0
    loss, gradient = value_and_gradient(ranksim, features, labels)
    assert loss > 0
    assert gradient.isfinite().all()


# ---- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [rank_n_contrast, ranksim])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(function, dtype):
    features, labels = random_case(1)
    features, labels = features.to(dtype), labels.float()
    loss, gradient = value_and_gradient(function, features.float(), labels)
    low_loss, low_gradient = value_and_gradient(function, features, labels)
    assert low_loss.dtype == torch.float32
    assert low_gradient.dtype == dtype
    assert_same((low_loss, low_gradient), (loss, gradient.to(dtype)), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(value_and_gradient(function, features.float(), labels), (loss, gradient), 0)


@pytest.mark.parametrize("function", [rank_n_contrast, ranksim])
def test_integer_labels(function):
    features, labels = random_case(0)
    expected = value_and_gradient(function, features.float(), labels.float())
    assert_same(value_and_gradient(function, features.float(), labels.long()), expected, 0)


@pytest.mark.parametrize(("function", "labels"), [(rank_n_contrast, [3.0]), (ranksim, [3.0]), (ranksim, [3.0, 3.0])])
def test_too_few_rows_are_0_connected_to_the_features(function, labels):
    labels = torch.tensor(labels)
    loss, gradient = value_and_gradient(function, torch.ones(len(labels), 4), labels)
    assert loss == 0
    assert not gradient.any()
    loss, gradient = value_and_gradient(function, torch.ones(0, 4), torch.ones(0, 2))
    assert loss == 0
    assert gradient.shape == (0, 4)


@pytest.mark.parametrize("function", [rank_n_contrast, ranksim])
def test_refuses_what_does_not_fit(function):
    features, labels = torch.eye(3), torch.arange(3.0)
    with pytest.raises(ValueError, match=r"^features has shape \(3, 3, 1\)"):
        function(features[:, :, None], labels)
    with pytest.raises(ValueError, match=r"^labels has shape \(2,\)"):
        function(features, labels[:2])
    with pytest.raises(ValueError, match=r"^features\[0, 1\] is nan"):
        function(features.where(features > 0, math.nan), labels)
    with pytest.raises(ValueError, match=r"^labels\[2\] is inf"):
        function(features, torch.tensor([0.0, 1.0, math.inf]))


def test_refuses_settings():
    features, labels = torch.eye(3), torch.arange(3.0)
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^temperature is {value}; it must be finite and greater than 0"):
            rank_n_contrast(features, labels, temperature=value)
        with pytest.raises(ValueError, match=rf"^interpolation is {value}; it must be finite and greater than 0"):
            ranksim(features, labels, interpolation=value)
    with pytest.raises(ValueError, match=r"^distance is 'cosine'"):
        rank_n_contrast(features, labels, distance="cosine")
    with pytest.raises(ValueError, match="must be a slice of consecutive rows"):
        rank_n_contrast(features, labels, anchors=slice(0, 3, 2))
