import math
import shutil

import mpmath
import numpy as np
import pytest
import reference
import torch
from loss_cases import EDGES, SETTINGS, assert_close_in_norm, plain_batch, value_and_gradient

from conr_hf.losses import ConRLoss, PairStatistics, conr_loss, huber, l1, label_distance, mse, within_window
from conr_hf.losses.pairs import find_pairs, window_reach

# ---- what the loss is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "temperature", "exponential", "linear"),
    [
        # (reference, exact) with e = 0.01, then (reference, exact) with e = 0.2, from an independent implementation.
        ([1, 1, 1, 1, 1, 1], 0.07, (1.71851234, 1.71850988), (1.06314134, 2.12628150)),
        ([1, 1, 1, 1, 1, 1], 0.2, (0.81999705, 0.80709409), (0.66077021, 1.31671211)),
        ([1, 1, 2, 2, 3, 3], 0.07, (5.52105539, 2.00908029), (1.21120831, 2.42241575)),
        ([1, 1, 2, 2, 3, 3], 0.2, (2.82496619, 1.07741983), (0.80462334, 1.60591395)),
    ],
)
@pytest.mark.parametrize("function", [conr_loss, reference.conr_loss])
def test_golden_values(function, weights, temperature, exponential, linear):
    features = torch.tensor([[1, 2, 3], [1, 2, 2], [2, 1, 0], [2, 0, 1], [0, 1, 2], [3, 1, 1]], dtype=torch.float64)
    labels = torch.tensor([20, 21, 40, 40.5, 60, 61], dtype=torch.float64)
    predictions = torch.tensor([30, 21.5, 30.5, 41, 60, 30.2], dtype=torch.float64)
    weights = torch.tensor(weights, dtype=torch.float64)
    for push, push_scale, values in (("exponential", 0.01, exponential), ("linear", 0.2, linear)):
        for formulation, value in zip(("reference", "exact"), values, strict=True):
            loss = function(
                features,
                labels,
                predictions,
                weights,
                window=1.0,
                push_scale=push_scale,
                temperature=temperature,
                push=push,
                formulation=formulation,
            )
            assert loss.item() == pytest.approx(value, rel=0, abs=1e-8)


@pytest.mark.parametrize("first_seed", range(0, 300, 20))
def test_agrees_with_loops_over_pairs(first_seed):
    for seed in range(first_seed, first_seed + 20):
        batch = reference.random_batch(seed)
        expected, expected_gradient = value_and_gradient(batch, reference.conr_loss)
        loss, gradient = value_and_gradient(batch)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14, msg=f"seed {seed}")
        # Where the true gradient is 0, rounding leaves some 1e-16.
        scale = max(expected_gradient.abs().max().item(), 1e-5)
        torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=1e-10, msg=f"seed {seed}")


@pytest.mark.parametrize("first_seed", range(0, 300, 20))
def test_gazes_agree_with_loops_over_pairs(first_seed):
    for seed in range(first_seed, first_seed + 20):
        batch = reference.random_gazes(seed)
        expected, expected_gradient = value_and_gradient(batch, reference.conr_loss)
        loss, gradient = value_and_gradient(batch)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14, msg=f"seed {seed}")
        scale = max(expected_gradient.abs().max().item(), 1e-5)
        torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=1e-10, msg=f"seed {seed}")


@pytest.mark.parametrize("make", [reference.random_batch, reference.random_gazes])
def test_the_random_batches_are_not_idle(make):
    batches = [make(seed) for seed in range(300)]
    losses = torch.stack([conr_loss(**batch) for batch in batches])
    assert (losses > 0).sum() > 150
    assert (losses == 0).sum() > 20
    assert any((batch["features"] == 0).all(1).any() for batch in batches)


@pytest.mark.parametrize("formulation", ["exact", "reference"])
def test_the_gradient_is_that_of_finite_differences(formulation):
    batch = plain_batch(rows=10, dims=3, dtype=torch.float64)
    features = batch.pop("features").requires_grad_()
    for anchors in (None, slice(2, 6)):
        assert torch.autograd.gradcheck(
            lambda x, anchors=anchors: conr_loss(x, **batch, formulation=formulation, anchors=anchors), features
        )


def test_float32_agrees_with_float64():
    for seed in range(5):
        batch = plain_batch(seed=seed)
        expected = value_and_gradient({**batch, "features": batch["features"].double()})
        loss, gradient = value_and_gradient(batch)
        assert loss.dtype == gradient.dtype == torch.float32
        assert_close_in_norm(loss, expected[0], 1e-5)
        assert_close_in_norm(gradient, expected[1], 1e-4)


def test_the_order_of_the_rows_does_not_matter():
    batch = plain_batch(dtype=torch.float64)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    for formulation in ("exact", "reference"):
        loss, gradient = value_and_gradient({**batch, "formulation": formulation})
        shuffled_loss, shuffled_gradient = value_and_gradient({**shuffled, "formulation": formulation})
        torch.testing.assert_close(shuffled_loss, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(shuffled_gradient, gradient[order], rtol=1e-10, atol=1e-15)


def test_the_length_of_a_feature_does_not_matter():
    batch = plain_batch(dtype=torch.float64)
    lengths = torch.logspace(-6, 6, 48, dtype=torch.float64).unsqueeze(1)
    loss, gradient = value_and_gradient(batch)
    scaled_loss, scaled_gradient = value_and_gradient({**batch, "features": batch["features"] * lengths})
    torch.testing.assert_close(scaled_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled_gradient * lengths, gradient, rtol=1e-9, atol=1e-14)


def test_no_gradient_through_predictions_labels_or_weights():
    batch = plain_batch()
    others = [batch[name].requires_grad_() for name in ("labels", "predictions", "weights")]
    for formulation in ("exact", "reference"):
        value_and_gradient({**batch, "formulation": formulation})
    assert all(tensor.grad is None for tensor in others)


# ---- slices of anchors, counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["exact", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "anchors"])
def test_the_parts_add_up_to_the_whole(formulation, reduction):
    batch = {**plain_batch(dtype=torch.float64), "formulation": formulation, "reduction": reduction}
    whole, gradient = value_and_gradient(batch)
    slices = [slice(0, 7), slice(7, 20), slice(20, -4), slice(-4, None)]
    parts = [value_and_gradient({**batch, "anchors": anchors}) for anchors in slices]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(part for _, part in parts), gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-7, 1e-3, 0.5, 3.0, 20.0])
def test_angles_are_exact_however_small(size, dtype):
    """The arc cosine of a dot product makes 0 or 3e-4 of every smaller angle in float32."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(30, 2, generator=generator) * 1.2 - 0.6
    a = (base * size if size > 1 else base).to(dtype)
    b = (a + size * torch.randn(30, 2, generator=generator).to(dtype)).to(dtype)
    found = label_distance(a, b, "angular")
    assert found.dtype == dtype
    for i in range(30):
        for j in range(30):
            exact = _exact_angle(a[i].tolist(), b[j].tolist())
            rounding = torch.finfo(dtype).eps * (exact + 4 * (a[i].abs().max() + b[j].abs().max()) * (size > 1))
            assert abs(found[i, j] - exact) <= 8 * rounding


def _exact_angle(a, b):
    """In 50 digits."""
    with mpmath.workdps(50):
        (p, y), (q, z) = ([mpmath.mpf(angle) for angle in direction] for direction in (a, b))
        dot = mpmath.cos(p) * mpmath.cos(q) * mpmath.cos(y - z) + mpmath.sin(p) * mpmath.sin(q)
        return float(mpmath.acos(dot))


def test_angles_are_distances():
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 0.3, 3.0, 100.0):
        a, b = size * torch.randn(2, 60, 2, generator=generator)
        angles = label_distance(a, b, "angular")
        torch.testing.assert_close(label_distance(b, a, "angular"), angles.T, rtol=1e-6, atol=0)
        assert ((angles >= 0) & (angles <= math.pi + 1e-6)).all()
        assert torch.equal(label_distance(a, a, "angular").diagonal(), torch.zeros(60))
    poles = torch.tensor([[math.pi / 2, 0.3], [math.pi / 2, -2.0], [-math.pi / 2, 1.0], [0.0, 0.0], [0.0, math.pi]])
    expected = torch.tensor([[0, 0, 2, 1, 1], [0, 0, 2, 1, 1], [2, 2, 0, 1, 1], [1, 1, 1, 0, 2], [1, 1, 1, 2, 0]])
    torch.testing.assert_close(label_distance(poles, poles, "angular"), expected * math.pi / 2, rtol=1e-6, atol=3e-7)
    degrees = label_distance(a.double(), b.double(), "angular").diagonal().rad2deg()
    assert np.allclose(degrees, [np.degrees(reference.angle_between(*pair)) for pair in zip(a, b, strict=True)])


def test_statistics_are_those_of_loops():
    for seed in range(60):
        batch = reference.random_batch(seed)
        loss, statistics = conr_loss(**batch, return_statistics=True)
        arguments = (batch[name] for name in ("labels", "predictions", "window", "distance"))
        partners = list(zip(*reference.find_partners(*arguments), strict=True))[batch["anchors"] or slice(None)]
        partners = [(positives, negatives) for positives, negatives in partners if positives and negatives]
        assert isinstance(statistics, PairStatistics)
        assert all(count.dtype == torch.int64 for count in statistics)
        assert [int(count) for count in statistics] == [
            len(partners),
            sum(len(positives) for positives, _ in partners),
            sum(len(negatives) for _, negatives in partners),
        ]
        torch.testing.assert_close(loss, conr_loss(**batch), rtol=0, atol=0)


def test_the_module_is_the_function():
    batch = plain_batch()
    tensors = {name: batch[name] for name in ("features", "labels", "predictions", "weights")}
    criterion = ConRLoss(window=2.0, push_scale=0.1, push="linear", formulation="reference", reduction="anchors")
    expected = conr_loss(
        **tensors, window=2.0, push_scale=0.1, push="linear", formulation="reference", reduction="anchors"
    )
    assert criterion(**tensors) == expected
    loss, statistics = criterion(**tensors, anchors=slice(0, 9), return_statistics=True)
    assert loss < expected
    assert statistics.anchors <= 9
    assert "window=2.0" in repr(criterion)
    assert list(criterion.parameters()) == []


# ---- who is similar ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1000.0, 0.001])
def test_the_unit_of_the_labels_does_not_choose_the_pairs(dtype, scale):
    integers = torch.arange(100)
    scaled = torch.tensor([k * 0.1 * scale for k in range(100)], dtype=dtype)
    expected = (integers[:, None] - integers).abs() <= 2
    assert torch.equal(within_window(label_distance(integers, integers), 2, integers), expected)
    assert torch.equal(within_window(label_distance(scaled, scaled), 0.2 * scale, scaled), expected)

    # Predictions are judged in the same way.
    zeros, other = torch.zeros(100, dtype=dtype), torch.arange(100, dtype=dtype) * 1e6
    for labels, predictions, which in ((other, scaled, 2), (scaled, zeros, 1)):
        reaches = tuple(window_reach(0.2 * scale, values, dtype) for values in (labels, predictions))
        found = find_pairs(labels, predictions, reaches)[which]
        assert torch.equal(found.bool(), expected & ~torch.eye(100, dtype=torch.bool))


def test_label_distances():
    a, b = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 3.0]])
    torch.testing.assert_close(label_distance(a, b), torch.tensor([[3.5, 0.0, 2.0], [1.5, 2.0, 0.0]]))
    assert torch.equal(label_distance(a, b, "euclidean")[0], torch.tensor([5.0, 0.0, math.sqrt(10)]))
    assert label_distance(a, b, lambda x, y: (x - y).abs().amax(-1)).tolist() == [[4, 0, 3], [2, 3, 0]]
    assert label_distance(torch.tensor([1, 5]), torch.tensor([2])).tolist() == [[1], [3]]
    assert label_distance(a.half(), b.bfloat16()).dtype == torch.float32
    assert label_distance(a, b.double()).dtype == torch.float64
    many = torch.full((64, 3), 1234.567)  # equal labels have distance 0, not a rounding
    assert label_distance(many, many, "euclidean").max() == 0


def test_a_distance_of_the_user():
    def great_circle(a, b):
        return torch.arccos((a * b).sum(-1).clamp(-1, 1))

    directions = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    loss, statistics = conr_loss(
        torch.eye(20),
        directions,
        directions.roll(1, 0),
        window=0.8,
        push_scale=1.0,
        distance=great_circle,
        return_statistics=True,
    )
    angles = great_circle(directions[:, None], directions[None]) + 9 * torch.eye(20)
    assert loss > 0
    assert 0 < statistics.positives <= (angles <= 0.8).sum()


def test_a_row_is_no_negative_of_its_own():
    def rough(a, b):  # as an arccos in float32 is, 3e-4 from a direction to itself
        return (a - b).abs().mean(-1) + 1e-3 * (a + b).abs().mean(-1)

    labels, predictions = torch.tensor([2000.0, 2001.0, 9000.0]), torch.tensor([0.0, 50.0, 100.0])
    _, positives, negatives = find_pairs(labels, predictions, (1.0, 1.0), rough)
    assert not negatives.any()
    assert not positives.any()


# ---- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formulation", ["exact", "reference"])
def test_low_precision_features(dtype, formulation):
    batch = {**plain_batch(), "formulation": formulation}
    batch["features"] = batch["features"].to(dtype)
    expected = value_and_gradient({**batch, "features": batch["features"].double()})
    loss, gradient = value_and_gradient(batch)
    assert gradient.dtype == dtype
    assert_close_in_norm(loss, expected[0], 1e-3)
    assert_close_in_norm(gradient, expected[1], 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64])
def test_labels_of_any_dtype(dtype):
    batch = plain_batch()
    batch["labels"], batch["weights"] = batch["labels"].to(dtype), batch["weights"].half()
    batch["predictions"] = batch["predictions"].to(dtype)
    loss, gradient = value_and_gradient(batch)
    assert loss.dtype == torch.float32
    assert loss > 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["features", "labels", "predictions"])
def test_one_float64_tensor_means_float64(name):
    batch = plain_batch()
    batch[name] = batch[name].double()
    loss, gradient = value_and_gradient(batch)
    assert loss.dtype == torch.float64
    assert gradient.dtype == batch["features"].dtype


def test_autocast_changes_nothing():
    for anchors in (None, slice(8, 30)):
        batch = {**plain_batch(), "anchors": anchors}
        expected = value_and_gradient(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = value_and_gradient(batch)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])


# ---- never nan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["exact", "reference"])
@pytest.mark.parametrize("push", ["exponential", "linear"])
@pytest.mark.parametrize("edge", EDGES)
def test_never_nan(edge, push, formulation):
    batch = {
        **SETTINGS,
        "features": torch.eye(4),
        "predictions": torch.zeros(4),
        **EDGES[edge],
        "push": push,
        "formulation": formulation,
    }
    for reduction in ("mean", "anchors"):
        for features in (batch["features"], batch["features"].double()):
            loss, gradient = value_and_gradient({**batch, "features": features, "reduction": reduction})
            assert loss.isfinite()
            assert loss >= 0
            assert gradient.isfinite().all()


def test_without_anchors_the_loss_is_0_and_still_connected():
    for edge in ("no rows", "one row", "equal labels", "no positive", "no negative"):
        for reduction in ("mean", "anchors"):
            loss, gradient = value_and_gradient({**SETTINGS, **EDGES[edge], "reduction": reduction})
            assert str(loss.item()) == "0.0"  # not -0.0, which would be logged
            assert not gradient.any()


def test_a_feature_of_zeros_gets_a_gradient_of_ordinary_size():
    batch = plain_batch()
    usual = value_and_gradient(batch)[1].norm(dim=1).max()
    batch["features"][3] = 0
    gradient = value_and_gradient(batch)[1]
    assert 0 < gradient[3].norm() < 100 * usual


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 3, 4)}, r"features has shape \(2, 3, 4\)"),
        ({"labels": torch.zeros(47)}, r"labels has shape \(47,\); it must be \(48,\)"),
        ({"labels": torch.zeros(48, 1, 1)}, r"labels has shape \(48, 1, 1\)"),
        ({"predictions": torch.zeros(48, 1)}, r"predictions has shape \(48, 1\); it must be that of labels, \(48,\)"),
        ({"weights": torch.ones(48, 1)}, r"weights has shape \(48, 1\)"),
        ({"window": -1.0}, "window is -1.0; it must be finite and at least 0"),
        ({"window": math.inf}, "window is inf"),
        ({"window": math.nan}, "window is nan"),
        ({"push_scale": -0.1}, "push_scale is -0.1"),
        ({"push_scale": math.nan}, "push_scale is nan"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be finite and greater than 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"push": "cubic"}, "push is 'cubic'; it must be one of exponential, linear"),
        ({"formulation": "paper"}, "formulation is 'paper'; it must be one of exact, reference"),
        ({"reduction": "sum"}, "reduction is 'sum'; it must be one of mean, anchors"),
        ({"distance": "cosine"}, "distance is 'cosine'; it must be one of mean_abs, euclidean, angular, or a"),
        ({"distance": "angular"}, r"distance is 'angular' and labels have 1 dimension; .* of shape \(M, 2\)"),
        ({"distance": lambda a, b: (a - b).abs()}, r"distance returned shape \(48, 48, 1\)"),
        ({"distance": lambda a, b: (a - b).sum(-1)}, "distance returned -"),
        ({"distance": lambda a, b: (a - b).sum(-1) / 0.0}, "distance returned nan for labels 0 and 0"),
        ({"algorithm": "fast"}, "algorithm is 'fast'; it must be one of auto, dense, windowed"),
        ({"anchors": slice(0, 9, 2)}, "it must be a slice of consecutive rows"),
        ({"anchors": 3}, "anchors is 3; it must be a slice"),
    ],
)
def test_a_wrong_argument_is_named_with_its_mend(change, message):
    with pytest.raises(ValueError, match=message):
        conr_loss(**{**plain_batch(), **change})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["features", "labels", "predictions", "weights"])
def test_a_number_that_is_not_finite_is_named(name, value):
    batch = plain_batch()
    batch[name][3] = value
    place = r"\[3, 0\]" if name == "features" else r"\[3\]"
    with pytest.raises(ValueError, match=f"^{name}{place} is {value}; "):
        conr_loss(**batch)


def test_numbers_whose_sum_overflows_are_not_refused():
    batch = plain_batch()
    batch["features"] = torch.full((48, 16), 1e18)
    batch["features"][:, 0] = 3e38
    batch["labels"][:] = 3e38
    assert conr_loss(**batch).isfinite()


def test_a_negative_weight_is_named():
    batch = plain_batch()
    batch["weights"][5] = -0.5
    with pytest.raises(ValueError, match=r"^weights\[5\] is -0.5; it must be at least 0"):
        conr_loss(**batch)


def test_the_module_refuses_a_wrong_setting_when_it_is_made():
    with pytest.raises(ValueError, match="temperature is 0"):
        ConRLoss(window=1.0, push_scale=0.1, temperature=0)


# ---- compiled ----------------------------------------------------------------------------------------------------


def assert_compiled_equals_eager(compiled, batch):
    expected, actual = value_and_gradient(batch), value_and_gradient(batch, compiled)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=0)
    assert_close_in_norm(actual[1], expected[1], 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"formulation": "reference", "push": "linear", "distance": "euclidean"},
        {"anchors": slice(4, 20), "reduction": "anchors"},
    ],
)
def test_compiles_without_a_graph_break(settings):
    torch._dynamo.reset()
    compiled = torch.compile(conr_loss, fullgraph=True, backend="aot_eager")
    for rows in (48, 31, 40):  # the last batch of an epoch is short
        assert_compiled_equals_eager(compiled, {**plain_batch(rows), **settings})


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_code_equals_eager():
    torch._dynamo.reset()
    compiled = torch.compile(conr_loss, fullgraph=True)
    assert_compiled_equals_eager(compiled, {**plain_batch(), "formulation": "reference"})


# ---- base losses -------------------------------------------------------------------------------------------------


def test_regression_losses_of_rows():
    residuals = torch.tensor([-2.0, 0.5, 0.0])
    torch.testing.assert_close(l1(residuals), torch.tensor([2.0, 0.5, 0.0]))
    torch.testing.assert_close(mse(residuals), torch.tensor([4.0, 0.25, 0.0]))
    torch.testing.assert_close(huber(residuals, 1.0), torch.tensor([1.5, 0.125, 0.0]))
    torch.testing.assert_close(huber(residuals, 0.25), torch.tensor([0.46875, 0.09375, 0.0]))


@pytest.mark.parametrize("loss", [l1, mse, huber])
def test_regression_losses_average_over_label_dimensions(loss):
    residuals = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(loss(residuals), torch.stack([loss(column) for column in residuals.T]).mean(0))
    assert loss(residuals).dtype == torch.float64
    assert loss(residuals.bfloat16()).dtype == torch.float32
    assert loss(torch.full((2,), 300.0, dtype=torch.float16)).isfinite().all()
    assert loss(residuals[:0]).shape == (0,)
    with pytest.raises(ValueError, match="residuals has shape"):
        loss(residuals[None])


def test_huber_needs_a_delta():
    with pytest.raises(ValueError, match="delta is 0"):
        huber(torch.ones(2), 0)


def test_no_anchors_of_its_own_is_zero_with_a_gradient_of_zero():
    """A process whose rows all repeat others still takes part in the exchange of gradients."""
    features = torch.randn(6, 3, requires_grad=True)
    for reduction in ("mean", "anchors"):
        loss = conr_loss(
            features,
            torch.arange(6.0),
            torch.zeros(6),
            window=1.0,
            push_scale=0.1,
            reduction=reduction,
            anchors=slice(6, 6),
        )
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss.item() == 0
        assert not gradient.any()
