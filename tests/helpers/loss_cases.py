"""Batches for the losses, at their edges too."""

import torch

from conr_hf.losses import conr_loss

SETTINGS = {"window": 1.0, "push_scale": 0.01}


def value_and_gradient(batch, function=conr_loss):
    """Loss and gradient with respect to the features; the batch is left as it is."""
    features = batch["features"].clone().requires_grad_()
    loss = function(**{**batch, "features": features})
    loss.backward()
    return loss.detach(), features.grad


def assert_close_in_norm(actual, expected, tolerance):
    """Relative to the largest entry: a gradient's small entries are differences of large ones."""
    assert actual.isfinite().all()
    assert (actual.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max()


def plain_batch(rows=48, dims=16, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(20, 30, (rows,), generator=generator).to(dtype)
    return {
        "features": torch.randn(rows, dims, generator=generator).to(dtype),
        "labels": labels,
        "predictions": labels + 3 * torch.randn(rows, generator=generator).to(dtype),
        "weights": torch.rand(rows, generator=generator).to(dtype) + 0.5,
        **SETTINGS,
    }


def column(*values):
    return torch.tensor(values, dtype=torch.float32)


EDGES = {
    "no rows": {"features": torch.zeros(0, 4), "labels": torch.zeros(0), "predictions": torch.zeros(0)},
    "one row": {"features": torch.ones(1, 4), "labels": column(3), "predictions": column(4)},
    "equal labels": {"features": torch.randn(5, 4), "labels": torch.ones(5), "predictions": torch.arange(5.0)},
    "no positive": {"features": torch.randn(5, 4), "labels": torch.arange(5.0) * 9, "predictions": torch.zeros(5)},
    "no negative": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "predictions": column(1, 1, 5, 5)},
    "duplicates": {"features": torch.ones(4, 4), "labels": column(1, 1, 5, 5), "predictions": torch.zeros(4)},
    "zero features": {"features": torch.zeros(4, 4), "labels": column(1, 1, 5, 5), "predictions": torch.zeros(4)},
    "one zero feature": {"features": torch.eye(4) - torch.eye(4)[:1], "labels": column(1, 1, 5, 5)},
    "tiny features": {"features": torch.randn(4, 4) * 1e-30, "labels": column(1, 1, 5, 5)},
    "subnormal features": {"features": torch.randn(4, 4) * 1e-42, "labels": column(1, 1, 5, 5)},
    "huge features": {"features": torch.randn(4, 4) * 1e30, "labels": column(1, 1, 5, 5)},
    "huge labels": {"features": torch.randn(4, 4), "labels": column(-3e38, -3e38, 3e38, 3e38)},
    "no feature dimension": {"features": torch.zeros(4, 0), "labels": column(1, 1, 5, 5)},
    "weights of 0": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "weights": torch.zeros(4)},
    "a weight of 0 and no positive": {
        "features": torch.randn(2, 4),
        "labels": column(1, 5),
        "predictions": torch.zeros(2),
        "weights": torch.zeros(2),
    },
    "an overflowing push": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "push_scale": 1e38},
    "huge labels without a push": {"labels": column(-3e38, -3e38, 3e38, 3e38), "push_scale": 0.0},
    "an overflowing push of weight 0": {
        "labels": column(-3e38, -3e38, 3e38, 3e38),
        "push_scale": 1e38,
        "weights": torch.zeros(4),
    },
    "a large push": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "push_scale": 1000.0},
    "no push": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "push_scale": 0.0},
    "a cold temperature": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "temperature": 0.01},
    "a very cold temperature": {"features": torch.ones(4, 4), "labels": column(1, 1, 5, 5), "temperature": 1e-6},
    "a window of 0": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "window": 0.0},
    "a window around all": {"features": torch.randn(4, 4), "labels": column(1, 1, 5, 5), "window": 1e30},
}
