"""A sample of rows as anchors: in the mean over draws the losses, gradients and figures over all rows."""

import dataclasses
import math

import pytest
import torch
from small import build, images, map_models, maps, models

from conr_hf.training.objective.batch import Forwarded, collect_batch

WEIGHTS = {"conr_weight": 0.5, "rnc_weight": 2.0, "conr_window": 4.0, "bin_width": 4.0}


def ready(folder, kind, **changed):
    """A run's objective, and a batch of it with features of their own: 12 views, or some 280 pixels of 8 views."""
    torch.manual_seed(0)
    if kind == "pixels":
        settings = {"per_device_train_batch_size": 4, "conr_pixels": 36, **WEIGHTS, **changed}
        trainer = build(*map_models["dpt"](), folder, maps(4), **settings)
        shape, features = (8, 32, 32), torch.randn(8, trainer.head.weight.shape[1], 16, 16)
    else:
        settings = {"per_device_train_batch_size": 6, **WEIGHTS, **changed}
        trainer = build(*models["vit"](), folder, images(6), **settings)
        shape, features = (12,), torch.randn(12, 5)
    trainer._hp_search_setup(None)
    inputs = next(iter(trainer.get_train_dataloader()))
    labels = inputs["labels"].flatten(0, 1) if kind == "pixels" else inputs["labels"].repeat_interleave(2)
    features = features.requires_grad_() * 1
    predictions = labels.nan_to_num(20.0) + 6 * torch.randn(shape) + features.mean()
    forwarded = Forwarded(features, predictions, labels)
    return trainer.training_objective, collect_batch(inputs, forwarded, [len(inputs["labels"])], None)


def with_anchors(objective, count):
    objective.resolved = dataclasses.replace(objective.resolved, conr_anchors=count)


def losses_and_gradient(objective, rows, batch):
    loss = objective.regularisers(rows, batch)
    (gradient,) = torch.autograd.grad(loss, batch.features, retain_graph=True)
    return torch.cat([loss.detach()[None], gradient.flatten()])


@pytest.mark.parametrize(
    ("kind", "anchors", "changed"),
    [
        ("views", 3, {"conr_reduction": "anchors", "ranksim_weight": 1.0}),
        ("views", 1, {"conr_formulation": "reference"}),
        ("pixels", 40, {}),
    ],
)
def test_the_mean_over_draws_is_the_loss_over_all_rows(tmp_path, kind, anchors, changed):
    """Value, gradient and figures; a factor that is a little wrong would go unnoticed in a run."""
    objective, batch = ready(tmp_path, kind, **changed)
    rows = objective.contrast_rows(batch)
    with_anchors(objective, 0)
    full = losses_and_gradient(objective, rows, batch)
    objective.meter.end_step(skipped=False)
    expected = objective.read_figures()
    with_anchors(objective, 10**6)
    assert torch.equal(losses_and_gradient(objective, rows, batch), full)
    objective.meter.end_step(skipped=True)

    with_anchors(objective, anchors)
    draws = []
    for objective._epoch in range(100):
        draws.append(losses_and_gradient(objective, rows, batch))
        objective.meter.end_step(skipped=False)
    found = torch.stack(draws)
    assert torch.equal(losses_and_gradient(objective, rows, batch), found[-1])  # drawn by seed, epoch and position
    errors = found.std(0) / math.sqrt(len(draws))
    assert errors[0] > 0
    assert ((found.mean(0) - full).abs() <= 5 * errors + 1e-4 * full.abs().max()).all()
    figures = objective.read_figures()
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-5 if name == "ranksim_loss" else 0.1), name


def test_the_gradient_that_is_logged_is_that_over_all_rows(tmp_path):
    """At the features of anchors that of a sample is many times as large: each run on maps would be warned of it."""
    objective, batch = ready(tmp_path, "pixels")
    rows = objective.contrast_rows(batch)
    gradients = {}
    for anchors, draws in ((0, 1), (40, 50)):
        with_anchors(objective, anchors)
        objective.measures_gradients = True
        squares = []
        for objective._epoch in range(draws):
            objective(batch)
            squares.append(losses_and_gradient(objective, rows, batch)[1:].square().sum())
            objective.optimizer_step(skipped=False)
        gradients[anchors] = objective.read_figures(), torch.stack(squares).mean()
    (full, square), (sampled, noisy) = gradients.values()
    assert noisy > 2 * square
    for name in ("conr_gradient", "rnc_gradient", "conr_cosine", "rnc_cosine"):
        assert sampled[name] == pytest.approx(full[name], rel=0.1, abs=0.05 if "cosine" in name else 0), name


def test_a_share_is_of_the_gradient_over_all_rows(tmp_path):
    """The noise of the sample makes the norm several times what it is, and ConR would be a fraction of its share."""
    shares = {"conr_weight": None, "conr_gradient_share": 0.3, "rnc_weight": None, "rnc_gradient_share": 0.3}
    objective, batch = ready(tmp_path, "pixels", **shares)
    weights = []
    for anchors, draws in ((0, 1), (40, 40)):
        with_anchors(objective, anchors)
        for term in objective.shares.terms.values():
            term.means = torch.zeros(3)
        for objective._epoch in range(draws):
            objective(batch)
            objective.optimizer_step(skipped=False)
        means = torch.stack([term.means for term in objective.shares.terms.values()])
        weights.append((means[:, 0] / means[:, 1]).sqrt())
    assert means[0, 2] > 2 * means[0, 1]  # of ConR
    torch.testing.assert_close(weights[1], weights[0], rtol=0.2, atol=0)
