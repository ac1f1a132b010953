"""Terms at a share of the base loss's gradient, in a run: what is trained on, and where it is measured."""

import dataclasses

import pytest
import torch
from small import build, images, map_models, maps, models

from conr_hf.training.config.validation import check_settings
from conr_hf.training.objective.batch import Forwarded, collect_batch, forward_views, view_labels

WEIGHT = 0.2


def own_loss(outputs, labels, num_items_in_batch=None):
    return (outputs.logits.squeeze(-1) - labels).square().sum() / 100 / num_items_in_batch


CASES = {
    "views": ("vit", {}),
    "FDS": ("vit", {"fds": "gaussian", "bin_width": 10.0}),
    "parts": ("vit", {"forward_batch_size": 3}),
    "own loss": ("vit", {"compute_loss_func": own_loss}),
    "anchors": ("timm-resnet", {"conr_anchors": 7}),
    "two labels": ("convnextv2", {"label_columns": ["label0", "label1"]}),
    "maps": ("upernet", {}),
    "maps, means": ("dpt", {"conr_pixels": 0, "conr_window": 0.5}),
}


def ready(folder, case):
    """A run that is about to begin, with FDS in its second epoch, and a batch of it."""
    name, changed = CASES[case]
    torch.manual_seed(0)
    settings = {"conr_gradient_share": 0.3, "rnc_weight": None, "rnc_gradient_share": 0.4, "conr_window": 4.0}
    settings |= {"per_device_train_batch_size": 8, **changed}
    if case.startswith("maps"):
        settings = {"conr_pixels": 32, "bin_width": 4.0, **settings}
        trainer = build(*map_models[name](), folder, maps(8), **settings)
    else:
        columns = changed.get("label_columns", ["label"])
        trainer = build(*models[name](columns), folder, images(8, dimensions=len(columns)), **settings)
    trainer._hp_search_setup(None)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    objective = trainer.training_objective
    if "fds" in changed:
        with torch.no_grad():
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=8)
        objective.begin_epoch(1)
    objective.meter.end_step(skipped=True)
    objective.shares.end_step(skipped=True)
    return trainer, batch, objective


def gradient(trainer, batch):
    """The gradient in all parameters."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=10).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_weights(tmp_path, case):
    """That of a run whose fixed weights are those which the shares came to, and which are logged."""
    trainer, batch, objective = ready(tmp_path, case)
    share, resolved = objective.shares, objective.resolved
    gradient(trainer, batch)
    objective.optimizer_step(skipped=False)
    objective.read_figures()
    objective.measures_gradients = True
    found = gradient(trainer, batch)
    objective.optimizer_step(skipped=False)
    figures = objective.read_figures()
    weights = {name: figures[f"{name}_weight_now"] for name in ("conr", "rnc")}
    assert min(weights.values()) > 0
    assert figures["conr_gradient"] == pytest.approx(0.3, rel=1e-3)  # of the same batch again
    assert figures["rnc_gradient"] == pytest.approx(0.4, rel=1e-3)

    share.terms = {}
    objective.resolved = dataclasses.replace(
        resolved, weight=weights["conr"], rnc_weight=weights["rnc"], conr_gradient_share=0.0, rnc_gradient_share=0.0
    )
    torch.testing.assert_close(found, gradient(trainer, batch), rtol=1e-3, atol=1e-5 * found.abs().max().item())
    objective.resolved = dataclasses.replace(objective.resolved, weight=0.0, rnc_weight=0.0)
    assert (found - gradient(trainer, batch)).norm() > 0.01 * found.norm()


@pytest.mark.parametrize(
    ("name", "smooths"),
    [("vit", True), ("vit", False), ("timm-resnet", False), *((name, False) for name in map_models), ("dpt", True)],
)
def test_the_base_gradient_is_found_without_the_way_through_the_model(tmp_path, name, smooths):
    """Of compiled models, and of batches in parts, there is no such way."""
    is_map = name in map_models
    changed = {"fds": "gaussian", "bin_width": 10.0} if smooths else {}
    make, data = (map_models[name], maps(4)) if is_map else (models[name], images(4))
    trainer = build(*make(), tmp_path, data, per_device_train_batch_size=4, **changed)
    trainer._hp_search_setup(None)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    objective = trainer.training_objective
    if smooths:
        with torch.no_grad():
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=4)
        objective.begin_epoch(1)
    labels = objective.labels = view_labels(batch, is_map)
    outputs, predictions = forward_views(trainer.model, batch, labels)
    features = trainer.head.take_features()
    loss = objective.base(collect_batch(batch, Forwarded(features, predictions, labels, outputs), [4], None))
    expected, of_predictions = torch.autograd.grad(loss, (features, predictions))
    found = trainer.head.gradient_at_features(features, of_predictions)
    assert found.shape == features.shape
    deviation = ((found - expected).norm() / expected.norm()).item()
    print(f"{name}: {deviation:.1e}")
    assert expected.norm() > 0
    assert deviation < 1e-5


def test_accumulation_leaves_the_norms_of_a_step(tmp_path):
    """A step in parts is of the same rows: its base loss has the same gradient, and a term that of its parts."""
    means = []
    for parts in ((8,), (5, 3)):
        trainer, batch, objective = ready(tmp_path, "views")
        first = 0
        for size in parts:
            some = slice(first, first + size)
            part = {name: value[some] if torch.is_tensor(value) else value for name, value in batch.items()}
            trainer.compute_loss(trainer.model, part, num_items_in_batch=8)
            first += size
        objective.optimizer_step(skipped=False)
        means.append(objective.shares.terms["conr"].means)
    assert means[1][0].item() == pytest.approx(means[0][0].item(), rel=1e-5)
    assert 0.2 < means[1][1] / means[0][1] < 5


def test_features_that_nothing_below_learns_from_have_no_term(tmp_path):
    trainer, batch, objective = ready(tmp_path, "views")
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad = name.startswith("classifier")
    for _ in range(2):
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=8)
        objective.optimizer_step(skipped=False)
    labels = batch["labels"].repeat_interleave(2)
    with torch.no_grad():
        _, predictions = forward_views(trainer.model, batch, labels)
    expected = (predictions - labels).abs().mean() / trainer.resolved.label_scale
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_sharded_model_is_refused(tmp_path):
    trainer = ready(tmp_path, "views")[0]
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"^conr_gradient_share needs the whole head on each process; set conr"):
        check_settings(trainer, trainer.args, trainer.data, True)


def test_a_checkpoint_without_the_running_means_is_of_another_run(tmp_path):
    objective = ready(tmp_path, "views")[-1]
    state = objective.state()
    assert {"share.conr", "share.rnc"} <= set(state)
    objective.load(state)
    with pytest.raises(ValueError, match=r"^The checkpoint holds no state of .* a gradient share"):
        objective.load({"epoch": torch.tensor(1)})
    objective.shares.terms = {}
    objective.load({"epoch": torch.tensor(1)})  # of a run from before there were shares
