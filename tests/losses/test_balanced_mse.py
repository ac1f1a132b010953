"""Balanced MSE: against loops, by hand, against each other, and for noise from tiny to huge."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F

from conr_hf.losses import blockwise, bmc, bni, gai, make_mixture, mse


def random_case(seed, dims):
    """Predictions, labels, noise, and what the three losses balance by, in float64; labels have ties."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = (6,) if dims is None else (6, dims)
    labels = (normal(*rows) * 2).round() / 2
    others = (normal(5, *rows[1:]) * 2).round() / 2
    roots = normal(4, dims or 1, dims or 1)
    shares = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
    return {
        "predictions": labels + normal(*rows),
        "labels": labels,
        "noise": 0.3 + torch.rand((), generator=generator, dtype=torch.float64),
        "candidates": torch.cat([labels, others]),
        "weights": shares / shares.sum(),
        "means": normal(4, dims or 1),
        "covariances": roots @ roots.mT,
        "centres": normal(4, *rows[1:]),
    }


def by_batch(p, y, noise, case):
    return bmc(p, y, case["candidates"], noise)


def by_mixture(p, y, noise, case):
    return gai(p, y, make_mixture(case["weights"], case["means"], case["covariances"]), noise)


def by_bins(p, y, noise, case):
    return bni(p, y, case["centres"], case["weights"], noise)


LOOPS = {
    by_batch: lambda p, y, noise, case: reference.bmc(p, y, case["candidates"], noise),
    by_mixture: lambda p, y, noise, case: reference.gai(
        p, y, case["weights"], case["means"], case["covariances"], noise
    ),
    by_bins: lambda p, y, noise, case: reference.bni(p, y, case["centres"], case["weights"], noise),
}


def value_and_gradients(function, case):
    """Losses, and gradients of a weighted sum of them in the predictions and in the noise."""
    predictions, noise = (case[name].clone().requires_grad_() for name in ("predictions", "noise"))
    losses = function(predictions, case["labels"], noise, case)
    (losses * torch.linspace(0.5, 2.0, len(losses), dtype=losses.dtype)).sum().backward()
    return losses.detach(), predictions.grad, noise.grad


@pytest.mark.parametrize("loss", LOOPS)
@pytest.mark.parametrize("dims", [None, 1, 2, 3])
def test_agrees_with_loops(loss, dims):
    for seed in range(10):
        case = random_case(seed, dims)
        results, slow_results = value_and_gradients(loss, case), value_and_gradients(LOOPS[loss], case)
        for found, expected in zip(results, slow_results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10, msg=f"seed {seed}")


@pytest.mark.parametrize("loss", LOOPS)
@pytest.mark.parametrize("dims", [None, 2])
@pytest.mark.parametrize("numbers", [1, 16, 17])
def test_rows_in_blocks_agree_with_loops(loss, dims, numbers, monkeypatch):
    """Of one row, and of a few of which the last are fewer."""
    monkeypatch.setattr(blockwise, "NUMBERS", numbers)
    case = random_case(8, dims)
    results, slow_results = value_and_gradients(loss, case), value_and_gradients(LOOPS[loss], case)
    for found, expected in zip(results, slow_results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_many_rows_and_bins_keep_no_tensor_of_both_for_the_backward():
    rows, bins = 3 * blockwise.NUMBERS // 50, 50
    generator = torch.Generator().manual_seed(0)
    predictions, labels = (torch.randn(rows, generator=generator) for _ in range(2))
    centres, shares, noise = torch.linspace(-2, 2, bins), torch.full((bins,), 1 / bins), torch.tensor(0.5)
    predictions.requires_grad_()
    noise.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda t: t
    ):
        losses = bni(predictions, labels, centres, shares, noise)
    assert sum(kept) <= 4 * rows
    found = torch.autograd.grad(losses.mean(), (predictions, noise))
    nearness = -(predictions[:, None] - centres).square() / (2 * noise.square()) + shares.log()
    plain = (predictions - labels).square() / (2 * noise.square()) + nearness.logsumexp(1)
    plain = 2 * noise.detach().square() * plain
    torch.testing.assert_close(losses, plain, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(plain.mean(), (predictions, noise))
    torch.testing.assert_close(found[0] * rows, expected[0] * rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOOPS)
@pytest.mark.parametrize("dims", [None, 2])
def test_gradients_are_those_of_finite_differences(loss, dims):
    case = random_case(0, dims)
    # The factor 2 s^2 has no gradient: without it, the rest must have the true one.
    assert torch.autograd.gradcheck(
        lambda p, s: loss(p, case["labels"], s, case) / (2 * s.detach().square()),
        (case["predictions"].clone().requires_grad_(), case["noise"].clone().requires_grad_()),
    )


def test_worked_by_hand():
    def number(*values):
        return torch.tensor(values, dtype=torch.float64)

    one = torch.tensor(1.0, dtype=torch.float64)
    # bmc, s = 1, labels 0 and 1. p = 1/2 is as near to both: 2 log 2. p = y = 1: 2 log(1 + exp(-1/2)).
    losses = bmc(number(0.5, 1.0), number(0.0, 1.0), number(0.0, 1.0), one)
    torch.testing.assert_close(losses, number(2 * math.log(2), 2 * math.log1p(math.exp(-0.5))))
    # gai, one standard normal, p = 1, y = 2: 2 (1/2 + log 1 - 1/2 log 2 - 1/2 1/2). With s = 2, s^2 = 4:
    # 8 (1/8 + 1/2 log 4 - 1/2 log 5 - 1/2 1/5).
    mixture = make_mixture(number(1.0), number([0.0]), number([[1.0]]))
    losses = gai(number(1.0), number(2.0), mixture, one)
    torch.testing.assert_close(losses, number(0.5 - math.log(2)))
    losses = gai(number(1.0), number(2.0), mixture, 2 * one)
    torch.testing.assert_close(losses, number(1 + 4 * math.log(4 / 5) - 0.8))
    # bni, s = 1, centres 0 (1/4) and 2 (3/4), p = 1, y = 0: 2 (1/2 + log(1/4 exp(-1/2) + 3/4 exp(-1/2))) = 0;
    # p = 0: 2 log(1/4 + 3/4 exp(-2)).
    losses = bni(number(1.0, 0.0), number(0.0, 0.0), number(0.0, 2.0), number(0.25, 0.75), one)
    torch.testing.assert_close(losses, number(0.0, 2 * math.log(0.25 + 0.75 * math.exp(-2))))


def test_bmc_is_the_cross_entropy_of_finding_the_own_label():
    case = random_case(1, None)
    predictions, labels, noise = case["predictions"], case["labels"], case["noise"]
    logits = -(predictions[:, None] - labels).square() / (2 * noise.square())
    expected = 2 * noise.square() * F.cross_entropy(logits, torch.arange(len(labels)), reduction="none")
    torch.testing.assert_close(bmc(predictions, labels, labels, noise), expected)


def test_gai_with_one_very_wide_component_is_the_squared_error_but_for_a_constant():
    case = random_case(2, 2)
    wide = make_mixture(torch.ones(1), torch.zeros(1, 2), 1e8 * torch.eye(2)[None])
    losses, gradient, _ = value_and_gradients(lambda p, y, s, _: gai(p, y, wide, s), case)
    squared, squared_gradient, _ = value_and_gradients(lambda p, y, s, _: 2 * mse(p - y) + 0 * s, case)
    torch.testing.assert_close(losses - losses[0], squared - squared[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, squared_gradient, rtol=0, atol=1e-6)


def test_bni_over_a_finely_drawn_mixture_is_gai():
    case = random_case(3, None)
    weights, means, covariances = case["weights"], case["means"], case["covariances"] + 0.05
    centres = torch.linspace(-15, 15, 3001, dtype=torch.float64)
    deviations = covariances.reshape(-1).sqrt()
    densities = torch.distributions.Normal(means.reshape(-1), deviations).log_prob(centres[:, None]).exp() @ weights
    mixture = make_mixture(weights, means, covariances)
    drawn = value_and_gradients(lambda p, y, s, _: bni(p, y, centres, densities / densities.sum(), s), case)
    exact = value_and_gradients(lambda p, y, s, _: gai(p, y, mixture, s), case)
    for found, expected in zip(drawn, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_bmc_of_equal_bins_is_bni_but_for_the_number_of_bins():
    case = random_case(4, 2)
    count, noise = len(case["candidates"]), case["noise"]
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    of_bins = bni(case["predictions"], case["labels"], case["candidates"], shares, noise)
    of_batch = bmc(case["predictions"], case["labels"], case["candidates"], noise)
    torch.testing.assert_close(
        of_batch - of_bins, torch.full((6,), 2 * noise.item() ** 2 * math.log(count), dtype=torch.float64)
    )


@pytest.mark.parametrize("loss", LOOPS)
@pytest.mark.parametrize("dims", [None, 2])
@pytest.mark.parametrize("noise", [1e-3, 1e-2, 1.0, 1e2, 1e3])
def test_float32_agrees_with_float64_for_any_noise(loss, dims, noise):
    case = random_case(5, dims)
    lower = {key: value.float() for key, value in {**case, "noise": torch.tensor(noise)}.items()}
    case = {key: value.double() for key, value in lower.items()}  # the same numbers
    wide = value_and_gradients(loss, case)
    losses, gradient, noise_gradient = value_and_gradients(loss, lower)
    assert losses.dtype == torch.float32
    # The logarithms, of order 1, are rounded before 2 s^2 multiplies them.
    torch.testing.assert_close(losses.double(), wide[0], rtol=1e-5, atol=1e-5 + 2e-6 * noise**2)
    # Halfway between two labels, a rounding of the prediction moves the choice by its share of s^2.
    torch.testing.assert_close(gradient.double(), wide[1], rtol=1e-4, atol=1e-5 + 1e-8 / noise**2)
    torch.testing.assert_close(noise_gradient.double(), wide[2], rtol=1e-3, atol=1e-5 / noise)


@pytest.mark.parametrize("loss", LOOPS)
def test_low_precision_is_computed_in_float32(loss):
    case = {key: value.float() for key, value in random_case(6, 2).items()}
    lower = {**case, "predictions": case["predictions"].bfloat16()}
    losses, gradient, noise_gradient = value_and_gradients(loss, lower)
    expected, expected_gradient, expected_noise = value_and_gradients(
        loss, {**case, "predictions": lower["predictions"].float()}
    )
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(noise_gradient, expected_noise, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, *_ = value_and_gradients(loss, lower)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOOPS)
def test_one_label_dimension_may_be_a_column(loss):
    case = random_case(7, 1)
    flat = {**case, **{key: case[key].squeeze(1) for key in ("predictions", "labels", "candidates", "centres")}}
    for found, expected in zip(value_and_gradients(loss, case), value_and_gradients(loss, flat), strict=True):
        torch.testing.assert_close(found.reshape(-1), expected.reshape(-1), rtol=1e-12, atol=0)


def test_refuses_what_does_not_fit():
    p, one, shares = torch.zeros(3), torch.tensor(1.0), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"candidates holds 1 label.*larger batch, or base_loss gai or bni"):
        bmc(p[:1], p[:1], p[:1], one)
    with pytest.raises(ValueError, match=r"^predictions has shape \(3, 1, 1\)"):
        bmc(p[:, None, None], p[:, None, None], p, one)
    with pytest.raises(ValueError, match=r"^labels has shape \(2,\); it must be that of predictions, \(3,\)"):
        bmc(p, p[:2], p, one)
    with pytest.raises(ValueError, match=r"^candidates has shape \(3, 2\)"):
        bmc(p, p, torch.zeros(3, 2), one)
    with pytest.raises(ValueError, match=r"^noise has shape \(1,\)"):
        bmc(p, p, p, torch.ones(1))
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"^noise is {value}; it must be greater than 0"):
            bmc(p, p, p, torch.tensor(value))
    with pytest.raises(ValueError, match=r"^frequencies has shape \(3,\); it must be \(2,\)"):
        bni(p, p, p[:2], torch.ones(3) / 3, one)
    with pytest.raises(ValueError, match=r"^frequencies has sum 1\.0 and smallest entry 0\.0"):
        bni(p, p, p[:2], torch.tensor([1.0, 0.0]), one)
    with pytest.raises(ValueError, match=r"^frequencies has sum 7\.0"):
        bni(p, p, p[:2], torch.tensor([3.0, 4.0]), one)
    with pytest.raises(ValueError, match=r"^mixture\.means has shape \(2, 2\)"):
        gai(p, p, make_mixture(shares, torch.zeros(2, 2), torch.eye(2).repeat(2, 1, 1)), one)
    with pytest.raises(ValueError, match=r"^means has shape \(2,\)"):
        make_mixture(shares, torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"^covariances has shape \(2, 1\); it must be \(2, 1, 1\)"):
        make_mixture(shares, torch.zeros(2, 1), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"^covariances\[1\] has the eigenvalues \[-1\.0\]"):
        make_mixture(shares, torch.zeros(2, 1), torch.tensor([[[1.0]], [[-1.0]]]))
