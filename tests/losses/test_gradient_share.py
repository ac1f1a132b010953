"""A term at a share of the base loss's gradient: its weight against plain sums, and what must not change it."""

import math

import pytest
import torch
from torch import nn

from conr_hf.losses import ConRLoss, GradientShare, conr_loss
from conr_hf.losses.gradient_share import LIMIT, MOMENTUM


def norm(loss, features):
    return torch.autograd.grad(loss, features, retain_graph=True)[0].norm().item()


class Counted(torch.autograd.Function):
    """The identity, which counts how often something goes backward through it."""

    @staticmethod
    def forward(ctx, tensor, calls):
        ctx.calls = calls
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        ctx.calls.append(None)
        return gradient, None


def test_the_weight_is_that_of_the_steps_before_and_the_gradient_is_that_of_the_weighed_term():
    torch.manual_seed(0)
    share = GradientShare(0.3)
    bases, terms = [], []
    for step in range(6):
        below = torch.randn(8, 3, requires_grad=True)
        weights = torch.rand(3), 0.2 * torch.rand(3)

        def losses(below=below, weights=weights):
            features = 2 * below
            return features, (features @ weights[0]).square().mean(), (features * weights[1]).sin().sum()

        features, base, term = losses()
        base_now, term_now = norm(base, features), norm(term, features)
        weight = 0.0
        if step:
            ages = [MOMENTUM**age for age in reversed(range(step))]
            mean = [sum(age * one**2 for age, one in zip(ages, found, strict=True)) for found in (bases, terms)]
            weight = 0.3 * math.sqrt(mean[0] / mean[1])
            weight = min(weight, LIMIT * 0.3 * base_now / term_now)
        bases.append(base_now)
        terms.append(term_now)
        weighed = share(term, base, features)
        assert weighed.item() == pytest.approx(weight * term.item(), rel=1e-5)
        (base + weighed).backward()
        _, base, term = losses()
        (expected,) = torch.autograd.grad(base + weight * term, below)
        torch.testing.assert_close(below.grad, expected, rtol=1e-5, atol=1e-7)


def test_each_gradient_is_computed_once():
    """Or the term, or even the network, would cost a step twice its time."""
    share = GradientShare(0.3)
    below, above, inside = [], [], []
    for _ in range(2):
        features = Counted.apply(torch.randn(4, 3, requires_grad=True), below) * 2
        base = Counted.apply(features, above).square().sum()
        (base + share(Counted.apply(features, inside).sin().sum(), base, features)).backward()
    assert (len(below), len(above), len(inside)) == (2, 4, 2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_the_share_is_held_whatever_the_features_scale_and_the_labels_unit(scale, unit):
    """A fixed weight is a hundred times as strong where features are a hundredth as long."""
    torch.manual_seed(0)
    rows, labels = torch.randn(32, 8), torch.randn(32)
    share = GradientShare(0.3)
    for _ in range(3):
        features = (scale * rows).requires_grad_() * 1
        predictions = features[:, 0] / scale
        base = (predictions - labels).abs().mean() / scale
        term = conr_loss(features, unit * labels, unit * predictions, window=0.3 * unit, push_scale=1 / unit)
        weighed = share(term, base, features)
        held = norm(weighed, features) / norm(base, features)
    assert held == pytest.approx(0.3, rel=1e-5)


def test_a_term_that_comes_back_is_bounded():
    """A weight that had grown without end while nothing was confused would end a run."""
    share = GradientShare(0.3)
    features = torch.ones(2, 2, requires_grad=True) * 1
    for step in range(300):
        size = 1.0 if step in (0, 299) else 1e-12 if step % 2 else 0.0
        weighed = share(size * features.sum(), features.square().sum(), features)
    assert norm(weighed, features) == pytest.approx(LIMIT * 0.3 * norm(features.square().sum(), features), rel=1e-5)
    nothing = GradientShare(0.3)
    for _ in range(3):
        weighed = nothing(0 * features.sum(), features.sum(), features)
        assert norm(weighed, features) == 0
    assert norm(nothing(features.sum(), features.sum(), features), features) == 0  # not known yet
    assert norm(nothing(features.sum(), 0 * features.sum(), features), features) == 0


def test_a_step_that_is_not_finite_leaves_no_trace():
    share = GradientShare(0.3)
    features = torch.ones(2, requires_grad=True) * 1
    share(features.sum(), features.sum(), features)
    before = share.means
    share(features.sum(), features.sum() * torch.inf, features)
    assert torch.equal(share.means, before)


def test_half_precision_and_evaluation():
    share = GradientShare(0.3)
    features = torch.full((4096,), 0.1, dtype=torch.bfloat16, requires_grad=True) * 1
    for _ in range(2):  # 4096 squares of 1, which bfloat16 does not add up
        weighed = share(features.float().sum(), 2 * features.float().sum(), features)
    (gradient,) = torch.autograd.grad(weighed, features)
    assert gradient.dtype == torch.bfloat16
    assert gradient.float().mean().item() == pytest.approx(0.6, rel=1e-2)
    before = share.means
    assert share(torch.tensor(2.0), torch.tensor(1.0), features.detach()).item() == pytest.approx(1.2, rel=1e-5)
    assert torch.equal(share.means, before)


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ValueError, match=r"^share is -0.1; it must be finite and at least 0"):
        GradientShare(-0.1)
    features = torch.ones(2, requires_grad=True) * 1
    for name, losses in {"term": (torch.ones(2, requires_grad=True).sum(), features.sum()), "base_loss": None}.items():
        losses = losses or (features.sum(), torch.ones(2, requires_grad=True).sum())
        with pytest.raises(ValueError, match=rf"^{name} was not computed from features"):
            GradientShare(0.3)(*losses, features)


def gratings(count, seed):
    """Noise with a grating as strong as the label, which is rare where it is large."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.empty(count).exponential_(1.0, generator=generator).clamp(max=4)
    pixels = torch.rand(count, 1, 16, 16, generator=generator) - 0.5
    signs = torch.randint(0, 2, (count, 1, 1, 1), generator=generator) * 2 - 1
    return pixels + 0.25 * labels[:, None, None, None] * signs * (1.6 * torch.arange(16)).sin(), labels


def error_of(share, weight=0.0):
    """Test MAE of a small network without norm layers, whose features have a norm of 0.002 at first."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    backbone, head = nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], 3e-3)
    criterion = ConRLoss(window=0.04, push_scale=0.25)
    (pixels, labels), (unseen, wanted) = gratings(512, 0), gratings(512, 1)
    for _ in range(8):
        for rows in torch.randperm(512).split(64):
            features = 0.01 * backbone(pixels[rows])
            predictions = head(features).squeeze(-1)
            base = loss = (predictions - labels[rows]).abs().mean()
            if share or weight:
                conr = criterion(features, labels[rows], predictions)
                loss = base + (share(conr, base, features) if share else weight * conr)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (head(0.01 * backbone(unseen)).squeeze(-1) - wanted).abs().mean().item()


def test_a_network_with_small_features_learns_as_without_conr():
    """With a fixed weight, of the default's size, it predicts one number for all."""
    plain, shared, fixed = error_of(None), error_of(GradientShare(0.3)), error_of(None, 0.05)
    print(f"plain {plain:.3f}, share {shared:.3f}, fixed weight {fixed:.3f}")
    assert shared < 1.1 * plain
    assert fixed > 2 * plain
