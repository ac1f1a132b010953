"""Per-row losses of residuals: Focal-R against loops, at 0, and at its limits."""

import math

import pytest
import reference
import torch

from conr_hf.losses import focal_l1, focal_mse, l1, mse

FOCAL = [(focal_l1, l1, 1), (focal_mse, mse, 2)]


def random_residuals(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3)])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_agrees_with_loops(focal, plain, power, shape, gamma):
    fast, slow = (random_residuals(0, shape).requires_grad_() for _ in range(2))
    losses, expected = focal(fast, 1.5, gamma), reference.focal(slow, 1.5, gamma, power)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
    factors = torch.arange(1.0, 8.0, dtype=torch.float64)
    (losses * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-10, atol=0)


def test_focal_worked_by_hand():
    # beta |r| = log 3: sigmoid is 3/4, and the factor 1/2. |r| = 2: 2 / 2, and 4 / 2; gamma 2: 2 / 4, and 4 / 4.
    residuals, beta = torch.tensor([-2.0, 0.0], dtype=torch.float64), math.log(3) / 2
    torch.testing.assert_close(focal_l1(residuals, beta), torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(focal_mse(residuals, beta), torch.tensor([2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(focal_l1(residuals, beta, 2.0), torch.tensor([0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(focal_mse(residuals, beta, 2.0), torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
def test_focal_with_gamma_0_is_the_plain_loss(focal, plain, power):
    fast, slow = (torch.cat([random_residuals(1, (6, 2)), torch.zeros(1, 2)]).requires_grad_() for _ in range(2))
    losses, expected = focal(fast, 0.7, gamma=0), plain(slow)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=0, atol=0)


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
def test_focal_tends_to_the_plain_loss_for_a_large_beta(focal, plain, power):
    residuals = torch.tensor([0.5, -3.0])
    torch.testing.assert_close(focal(residuals, 100.0), plain(residuals), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_is_flat_at_0_and_finite_beside_it(focal, plain, power, gamma, dtype):
    smallest = torch.finfo(dtype).tiny
    residuals = torch.tensor([0.0, smallest, -smallest, 1e-30, 1e-10, 1e15], dtype=dtype).requires_grad_()
    losses = focal(residuals, 0.2, gamma)
    losses[:-1].sum().backward()
    assert losses[0] == 0
    assert residuals.grad[0] == 0
    assert losses[:-1].isfinite().all()
    assert residuals.grad.isfinite().all()
    assert residuals.grad[:-1].abs().max() < 0.5


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
def test_focal_gradient_is_that_of_finite_differences(focal, plain, power):
    residuals = random_residuals(2, (5, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: focal(r, 0.8, 1.5), residuals)


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_focal_of_low_precision_is_computed_in_float32(focal, plain, power, dtype):
    residuals = random_residuals(3, (9, 2)).to(dtype)
    losses = focal(residuals, 0.2)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, focal(residuals.float(), 0.2), rtol=0, atol=0)


@pytest.mark.parametrize(("focal", "plain", "power"), FOCAL)
def test_focal_refuses(focal, plain, power):
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^beta is {beta}; it must be finite and greater than 0"):
            focal(torch.zeros(2), beta)
    with pytest.raises(ValueError, match=r"^gamma is -1; it must be finite and at least 0"):
        focal(torch.zeros(2), 1.0, -1)
    with pytest.raises(ValueError, match=r"^residuals has shape \(2, 1, 1\)"):
        focal(torch.zeros(2, 1, 1), 1.0)
