"""Training on maps: what a step computes, what has no influence, and what a run comes to."""

import copy

import datasets
import numpy as np
import pytest
import reference
import torch
from small import build, map_models, maps, models
from transformers import TrainerCallback

from conr_hf.data.augmentation import Augmentation
from conr_hf.imbalance import make_bins, make_density
from conr_hf.models.outputs import prediction, resized
from conr_hf.training.objective.batch import Forwarded, collect_batch
from conr_hf.training.objective.pixel_sampling import resize_to_features


def trainer_of(folder, data, model="upernet", evaluation=None, **changed):
    settings = {"per_device_train_batch_size": 4, "bin_width": 4.0, "conr_window": 3.0, "conr_weight": 0.5}
    return build(*map_models[model](), folder, data, evaluation, **{**settings, **changed})


def ready(trainer):
    """The trainer where its first step would begin, and that step's batch."""
    trainer._hp_search_setup(None)
    trainer.create_optimizer()
    loader = trainer.get_train_dataloader()
    trainer.loaders.order.epoch = 0
    trainer.model.train()
    return next(iter(loader))


def batch_of(inputs, features, predictions, labels):
    """A whole step of one process."""
    samples = len(inputs["labels"])
    return collect_batch(inputs, Forwarded(features, predictions, labels), [samples], samples)


def valid_pixels(data):
    labels = np.array(data["label"][:], np.float32)
    return labels[np.isfinite(labels)]


def every_triple(points, labels):
    """Rank-N-Contrast at temperature 2 from a tensor of all anchors by all others by all that may be farther."""
    scores, distances = -torch.cdist(points, points) / 2, (labels[:, None] - labels).abs()
    others = ~torch.eye(len(labels), dtype=torch.bool)
    farther = (distances[:, None] >= distances[:, :, None] - 1e-5) & others[:, None]
    sums = scores[:, None].masked_fill(~farther, -torch.inf).logsumexp(2)
    return (sums - scores)[others].mean()


# ---- A step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("formulation", "push"), [("exact", "exponential"), ("reference", "linear")])
def test_losses_over_all_pixels_are_the_double_loops(tmp_path, formulation, push):
    """With more pixels to draw than there are, all that have a label are compared: value and gradient."""
    data = maps(1, map_size=8)
    settings = {"conr_formulation": formulation, "conr_push": push, "conr_pixels": 10**6, "num_views": 2}
    settings["rnc_weight"] = 2.0
    trainer = trainer_of(tmp_path, data, per_device_train_batch_size=1, **settings)
    batch, objective = ready(trainer), trainer.training_objective
    labels, pixels = batch["labels"].flatten(0, 1), batch["pixel_values"].flatten(0, 1)
    predictions = prediction(trainer.model(pixel_values=pixels))
    features = trainer.head.take_features().detach()
    predictions = resized(predictions, labels.shape[-2:]).detach()

    measured = features.clone().requires_grad_()
    views = batch_of(batch, measured, predictions, labels)
    loss = objective.regularisers(objective.contrast_rows(views), views)
    (gradient,) = torch.autograd.grad(loss, measured)

    slow = features.double().requires_grad_()
    points, own = slow.movedim(1, -1).flatten(0, 2), resize_to_features(labels, features.shape[2:]).flatten()
    valid = own.isfinite()
    density = make_density(valid_pixels(data), make_bins(valid_pixels(data), 4.0), "sqrt_inverse")
    expected = 0.5 * reference.conr_loss(
        points[valid],
        own[valid],
        resize_to_features(predictions, features.shape[2:]).flatten()[valid],
        density.weights(own[valid]),
        window=3.0,
        push_scale=trainer.resolved.push_scale,
        push=push,
        formulation=formulation,
    ) + 2 * every_triple(points[valid], own[valid])
    (slow_gradient,) = torch.autograd.grad(expected, slow)
    assert valid.sum() > 50
    assert expected > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient.double(), slow_gradient, atol=1e-5 * slow_gradient.abs().max())


def test_the_published_form_compares_means_of_maps(tmp_path):
    data = maps(4, map_size=8)
    published = {"conr_pixels": 0, "conr_formulation": "reference", "conr_push": "linear"}
    trainer = trainer_of(tmp_path, data, **published)
    batch = ready(trainer)
    features, labels = torch.randn(8, 5, 8, 8), batch["labels"].flatten(0, 1)
    predictions = 20 + 5 * torch.randn(8, 32, 32)
    views = batch_of(batch, features, predictions, labels)
    rows = trainer.training_objective.contrast_rows(views)
    for view in range(8):
        known = resize_to_features(labels, (8, 8))[view].isfinite()
        assert torch.allclose(rows.features[view], features[view][:, known].mean(1), atol=1e-5)
        assert torch.allclose(rows.labels[view], resize_to_features(labels, (8, 8))[view][known].mean())
        assert torch.allclose(rows.predictions[view], resize_to_features(predictions, (8, 8))[view][known].mean())
    loss = trainer.training_objective.regularisers(rows, views)
    expected = 0.5 * reference.conr_loss(
        rows.features.double(),
        rows.labels,
        rows.predictions,
        trainer.training_objective.conr_density.weights(rows.labels),
        window=3.0,
        push_scale=trainer.resolved.push_scale,
        push="linear",
        formulation="reference",
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_views_lose_at_their_edges_is_made_up_for(tmp_path):
    """Or the base loss would be smaller beside ConR, the more the views are shifted."""
    data = maps(64, map_size=4)
    means = []
    for padding in (0.0, 0.25):
        settings = {"conr_weight": 0.0, "num_views": 8, "per_device_train_batch_size": 64}
        trainer = trainer_of(tmp_path, data, crop_padding=padding, **settings)
        batch = ready(trainer)
        labels = batch["labels"].flatten(0, 1)
        constant = torch.full_like(labels, 30.0)
        means.append(trainer.training_objective.base(batch_of(batch, None, constant, labels)).item())
    assert means[1] == pytest.approx(means[0], rel=0.03)
    assert Augmentation(crop_padding=0.25).visible_fraction((32, 32)) < 0.8


def test_gradients_at_the_features_are_measured(tmp_path):
    """By which a user is warned where ConR swamps the base loss; and measuring changes nothing."""
    trainer = trainer_of(tmp_path, maps(4), conr_pixels=64)
    batch = ready(trainer)

    def gradients(measures):
        trainer.training_objective.measures_gradients = measures
        trainer.model.zero_grad()
        torch.manual_seed(0)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=4)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    (plain, expected), (loss, found) = gradients(False), gradients(True)
    trainer.training_objective.meter.end_step(skipped=False)
    figures = trainer.training_objective.read_figures()
    assert loss == pytest.approx(plain, rel=1e-6)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())
    assert figures["conr_gradient"] > 0
    assert -1 <= figures["conr_cosine"] <= 1


@pytest.mark.parametrize("reweight", ["none", "inverse"])
def test_the_base_loss_is_the_weighted_mean_over_labelled_pixels(tmp_path, reweight):
    data = maps(4)
    trainer = trainer_of(tmp_path, data, reweight=reweight, conr_weight=0.0, crop_padding=0.0, num_views=1)
    batch = ready(trainer)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=4)
    with torch.no_grad():
        predicted = prediction(trainer.model(pixel_values=batch["pixel_values"][:, 0]))
    labels = batch["labels"][:, 0]
    known = labels.isfinite()
    density = make_density(valid_pixels(data), trainer.bins, reweight).weights(labels[known])
    losses = density * (predicted[known] - labels[known]).abs() / trainer.resolved.label_scale
    # The step holds the whole data set: its share of labelled pixels is the mean one.
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)


def test_pixels_without_label_have_no_part_in_gradients(tmp_path):
    data = maps(4).map(lambda row: {"label": [[float("nan")] * 8 + line[8:] for line in row["label"]]})
    trainer = trainer_of(tmp_path, data, conr_pixels=10**6, crop_padding=0.0, horizontal_flip=False)
    batch = ready(trainer)
    seen = {}
    hook = trainer.head.register_forward_hook(lambda _m, inputs, output: seen.update(x=inputs[0], y=output))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=4)
    hook.remove()
    for gradient in torch.autograd.grad(loss, [seen["y"], seen["x"]]):
        width = gradient.shape[-1]
        assert gradient[..., width // 2 :].abs().amin(1).any()
        # But for the last column, which linear interpolation carries over the border.
        assert not gradient[..., : width // 2 - 1].any()


def test_a_batch_without_any_label_comes_to_nothing(tmp_path):
    """Such maps are refused before training; a user's own collator may still give them."""
    trainer = trainer_of(tmp_path, maps(4))
    batch = ready(trainer)
    loss = trainer.compute_loss(trainer.model, {**batch, "labels": batch["labels"] * torch.nan}, False, 4)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


# ---- A run ----------------------------------------------------------------------------------------------------------


class Weights(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))


def weights_after(folder, data, **changed):
    noted = Weights()
    settings = {"num_train_epochs": 2, "save_strategy": "no", "conr_pixels": 32, "callbacks": [noted]}
    trainer = trainer_of(folder, data, **{**settings, **changed})
    trainer.train()
    return noted.weights, trainer


def with_masked(data, value):
    """The data with `value` stored where there is no label."""
    cells = np.array(data["label"][:])
    cells[np.isnan(cells)] = value
    return data.remove_columns("label").add_column("label", [cell.tolist() for cell in cells])


METHODS = [
    {},
    {"fds": "gaussian", "reweight": "sqrt_inverse", "lds": "gaussian"},
    {"base_loss": "bni", "resample": None},
    {"base_loss": "huber", "resample": "inverse", "conr_pixels": 0},
]


@pytest.mark.parametrize("changed", METHODS)
def test_what_is_stored_where_there_is_no_label_changes_nothing(tmp_path, changed):
    data = maps(6)
    plain, trainer = weights_after(tmp_path, data, evaluation=data, **changed)
    evaluation = trainer.evaluate()
    for value, invalid in ((np.inf, None), (-9999.0, -9999.0), (1e6, 1e6)):
        other = with_masked(data, value)
        theirs, other_trainer = weights_after(tmp_path, other, evaluation=other, map_invalid=invalid, **changed)
        assert all(torch.equal(a, b) for a, b in zip(plain, theirs, strict=True))
        found = other_trainer.evaluate()
        figures = [name for name in evaluation if "mae" in name or "rmse" in name]
        assert len(figures) > 3
        assert {name: found[name] for name in figures} == {name: evaluation[name] for name in figures}


def test_smoothing_leaves_points_without_a_label_as_they_are_and_out(tmp_path):
    trainer = trainer_of(tmp_path, maps(4), fds="gaussian")
    ready(trainer)
    objective = trainer.training_objective
    generator = torch.Generator().manual_seed(0)
    labels = 12 * torch.rand(2, 6, 6, generator=generator) + float(trainer.bins.edges[0][0])
    labels[:, :2, 1:] = float("nan")
    features = torch.randn(2, objective.smoothing.dims, 3, 3, generator=generator) + labels.nanmean()
    objective.update_fds(features, labels)
    own = resize_to_features(labels, (3, 3))
    known = own.isfinite()
    counts = objective.smoothing.state()["counts"].sum()
    assert counts == known.sum()
    assert 0 < counts < known.numel()
    objective.begin_epoch(1)
    objective.labels = labels
    smoothed, points = objective.smooth(features).movedim(1, -1), features.movedim(1, -1)
    assert torch.equal(smoothed[~known], points[~known])
    assert torch.equal(smoothed[known], objective.smoothing.smooth(points[known], own[known]))
    assert (smoothed[known] != points[known]).any(1).sum() > counts / 2


def test_label_maps_stay_on_their_process(tmp_path, monkeypatch):
    """Only BMC, which is not for maps, compares the labels of all processes."""

    def gathered(tensors, *others):
        raise AssertionError(f"{[tuple(rows.shape) for rows in tensors]} were gathered")

    monkeypatch.setattr("conr_hf.training.objective.objective.gather_rows", gathered)
    _, trainer = weights_after(tmp_path, maps(4), base_loss="bni", conr_weight=0.0)
    assert trainer.state.global_step > 0


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """Seven maps, so that the last step is short."""
    data = maps(7)
    settings = {"conr_weight": 0.0, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "model": "dpt"}
    one, _ = weights_after(tmp_path, data, per_device_train_batch_size=4, **settings)
    two, _ = weights_after(tmp_path, data, per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)
    assert len(one) == len(two) == 4
    assert torch.allclose(one[-1], two[-1], atol=1e-5)
    assert not torch.allclose(one[-1], one[0], atol=1e-5)


@pytest.mark.parametrize(("changed", "offset"), [(METHODS[0], 5.0), (METHODS[1], 0.0), (METHODS[2], 0.0)])
def test_training_does_not_depend_on_the_unit(tmp_path, changed, offset):
    """Bins lie on multiples of their width, so that methods that read them go along with a factor alone."""
    data = maps(6)
    _, trainer = weights_after(tmp_path, data, model="segformer", **changed)
    cells = [[[1000 * cell + offset for cell in line] for line in lines] for lines in data["label"]]
    other = data.remove_columns("label").add_column("label", cells)
    units = {"bin_width": 4000.0, "conr_window": 3000.0}
    _, in_other_unit = weights_after(tmp_path, other, model="segformer", **{**changed, **units})
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        predicted = prediction(trainer.model.eval()(pixel_values=pixels))
        theirs = prediction(in_other_unit.model.eval()(pixel_values=pixels))
    assert ((theirs - offset) / 1000 - predicted).abs().max() < 1e-3 * trainer.resolved.label_scale


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


@pytest.mark.parametrize(
    "changed", [{"conr_anchors": 20, "rnc_weight": 0.5}, {"fds": "gaussian", "base_loss": "bni", "ema_decay": 0.9}]
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, changed):
    data = maps(6)
    settings = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1, **changed}
    whole, _ = weights_after(tmp_path / "whole", data, **settings)
    weights_after(tmp_path / "stopped", data, **settings, callbacks=[Stop()])
    noted = Weights()
    late = trainer_of(tmp_path / "stopped", data, conr_pixels=32, num_train_epochs=2, callbacks=[noted], **settings)
    late.train(resume_from_checkpoint=True)
    assert len(noted.weights) == 4
    assert torch.equal(noted.weights[-1], whole[-1])


def test_evaluation_is_of_the_labels_own_pixels(tmp_path):
    data = maps(5, map_size=8)
    trainer = trainer_of(tmp_path, data, evaluation=data, per_device_eval_batch_size=2)
    predicted = trainer.predict(data)
    model, processor = trainer.model.eval(), trainer.processing_class
    pixels = processor(images=[row["image"] for row in data], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = resized(prediction(model(pixel_values=pixels)), (8, 8))
    labels = torch.tensor(data["label"][:])
    known = labels.isfinite()
    errors = (outputs[known] - labels[known]).abs()
    assert predicted.metrics["test_n"] == int(known.sum())
    assert predicted.metrics["test_mae"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert predicted.metrics["test_rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)
    evaluated = trainer.evaluate()
    assert evaluated["eval_mae"] == pytest.approx(predicted.metrics["test_mae"])
    assert np.allclose(predicted.predictions, outputs, atol=1e-5)  # which predict gives, as it was asked to


@pytest.mark.parametrize("name", map_models)
def test_every_kind_of_model_learns(tmp_path, name):
    """After a few steps the error on the training maps is smaller."""
    data = maps(8, map_size=4)
    settings = {"num_train_epochs": 30, "learning_rate": 3e-3, "conr_weight": 0.0, "num_views": 1, "crop_padding": 0.0}
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 100}
    trainer = trainer_of(tmp_path, data, model=name, evaluation=data, **settings, **quiet)
    ready(trainer)
    before = trainer.evaluate()["eval_mae"]
    trainer.train()
    assert trainer.evaluate()["eval_mae"] < 0.9 * before


def test_frozen_backbones_and_a_retrained_head(tmp_path):
    data = maps(6)
    _, trainer = weights_after(tmp_path, data, freeze_backbone=True, conr_weight=0.0)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    fresh = map_models["upernet"]()[0].state_dict()
    same = {key: torch.equal(value, fresh[key]) for key, value in trainer.model.state_dict().items()}
    assert [key for key in same if not same[key]] == ["decode_head.classifier.weight", "decode_head.classifier.bias"]


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ranksim_weight": 1.0}, "ranksim_weight is 1.0, which compares whole images and has no form.*Set it to 0"),
        ({"base_loss": "bmc"}, "base_loss is bmc.*Set it to bni or gai"),
        ({"cmixup_alpha": 1.0, "conr_weight": 0.0}, "cmixup_alpha is 1.0"),
        ({"conr_pixels": -1}, "conr_pixels is -1"),
        ({"conr_anchors": -1}, "conr_anchors is -1"),
    ],
)
def test_methods_without_a_form_for_maps_are_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, maps(4), **changed)


def test_metrics_of_ones_own_are_called_batch_by_batch(tmp_path):
    data, seen = maps(5), []

    def own(batch, compute_result):
        seen.append((batch.predictions.shape, compute_result))
        return {"batches": len(seen)} if compute_result else {}

    settings = {"evaluation": data, "per_device_eval_batch_size": 2, "max_steps": 1}
    trainer = trainer_of(tmp_path, data, compute_metrics=own, **settings)
    trainer.train()
    assert seen == [((2, 16, 16), False), ((2, 16, 16), False), ((1, 16, 16), True)]
    assert trainer.state.log_history[-2]["eval_batches"] == 3
    with pytest.raises(ValueError, match="must take a second argument, compute_result"):
        trainer_of(tmp_path, data, compute_metrics=lambda batch: {}, **settings).train()


def test_a_loss_of_ones_own_gets_predictions_in_the_size_of_the_labels(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        known = labels.isfinite()
        return (outputs.logits[known] - labels[known]).abs().mean()

    data = maps(5)
    trainer = trainer_of(tmp_path, data, evaluation=data, compute_loss_func=own, max_steps=2)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_rows_without_labels_are_predicted(tmp_path):
    trainer = trainer_of(tmp_path, maps(4))
    predicted = trainer.predict(maps(3).remove_columns("label")).predictions
    assert predicted.shape == (3, 32, 32)
    assert trainer.head.features is None


def test_mixed_precision_is_close_to_float32(tmp_path):
    data = maps(4)
    settings = {"model": "dpt", "max_steps": 3, "conr_pixels": 64}
    weights = [weights_after(tmp_path, data, bf16=bf16, **settings)[1] for bf16 in (False, True)]
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in weights]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[1] != losses[0]


def test_settings_changed_after_construction_are_checked_again(tmp_path):
    trainer = trainer_of(tmp_path, maps(4))
    trainer.args.ranksim_weight = 1.0
    with pytest.raises(ValueError, match=r"ranksim_weight is 1\.0, which compares whole images"):
        trainer.train()


def test_maps_and_numbers_are_not_mixed_up(tmp_path):
    numbers = datasets.Dataset.from_dict({"image": maps(4)["image"], "label": [1.0, 2.0, 3.0, 4.0]})
    trainer = trainer_of(tmp_path, numbers)
    with pytest.raises(ValueError, match='predicts maps, but the labels in column "label" are numbers'):
        trainer.train()
    other = build(*models["vit"](), tmp_path, maps(4))
    with pytest.raises(ValueError, match="are maps, but ViTForImageClassification predicts one number an image"):
        other.train()


def test_labels_that_a_model_cannot_predict_are_refused(tmp_path):
    below = with_masked(maps(4), np.nan).map(lambda row: {"label": [[c - 30 for c in line] for line in row["label"]]})
    with pytest.raises(ValueError, match=r"run down to .* but DPTForDepthEstimation predicts nothing below 0"):
        trainer_of(tmp_path, below, model="dpt").train()
    above = maps(4).map(lambda row: {"label": [[c + 50 for c in line] for line in row["label"]]})
    with pytest.raises(ValueError, match=r"predicts nothing above 100\. Load it with a greater max_depth"):
        trainer_of(tmp_path, above, model="glpn").train()


def test_a_processor_that_crops_is_refused(tmp_path):
    model, processor = map_models["dpt"]()
    cropping = copy.copy(processor)
    cropping.do_center_crop, cropping.crop_size = True, {"height": 16, "width": 16}
    with pytest.raises(ValueError, match="do_center_crop on, so that the model sees another part"):
        build(model, cropping, tmp_path, maps(4))
