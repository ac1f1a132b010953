"""Label dimensions in units of their own: with `scale_each` a model does not depend on any of them."""

import copy
import math

import numpy as np
import pytest
import small
import torch
from optimizers import OPTIMIZERS, STEPS, batches
from torch import nn
from transformers import TrainerCallback

from conr_hf import ConRConfig, conr_loss
from conr_hf.imbalance import make_density
from conr_hf.models.head import LinearHead
from conr_hf.training.config.resolved_config import resolve
from conr_hf.training.optimizer import scale_row_steps

COLUMNS = {"label_columns": ["label0", "label1"], "scale_each": True}


class Start(TrainerCallback):
    """Notes the weights that training starts from, and the factors of the head's gradient."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        (self.factors,) = [head.gradient_factor for head in model.modules() if isinstance(head, LinearHead)]


def in_other_units(data):
    return data.map(lambda row: {"label0": row["label0"], "label1": 1024 * row["label1"] + 512})


def train(folder, data, optimizer="adamw", clip=1.0, resume=None, **changed):
    model, processor = small.models["vit"](["label0", "label1"])
    untouched, start = copy.deepcopy(model), Start()
    optimizer_class, arguments = OPTIMIZERS[optimizer]
    trainer = small.build(
        model,
        processor,
        folder,
        data,
        callbacks=[start],
        optimizer_cls_and_kwargs=(optimizer_class, dict(arguments)),
        learning_rate=arguments["lr"],
        weight_decay=arguments["weight_decay"],
        max_grad_norm=clip,
        **{**COLUMNS, "max_steps": STEPS, "save_strategy": "no", **changed},
    )
    trainer.train(resume)
    return trainer, untouched, start


@pytest.fixture(scope="module")
def data():
    return small.images(18, dimensions=2)


def test_what_the_scales_come_to():
    labels = np.array([[1.0, 1000.0], [3.0, 5000.0], [2.0, 3000.0]])
    found = resolve(ConRConfig("out", **COLUMNS), labels)
    stds = labels.std(0)
    assert np.array(found.relative_scales) * found.label_scale == pytest.approx(stds)
    assert found.label_scale == pytest.approx(math.sqrt((stds**2).mean()))
    assert found.label_range == pytest.approx(np.mean([2, 4000] / stds) * found.label_scale)
    assert found.window == pytest.approx(0.01 * found.label_range)
    alike = found.to_common_scale(torch.from_numpy(labels))
    assert alike.std(0, correction=0).numpy() == pytest.approx([found.label_scale] * 2)
    joint = resolve(ConRConfig("out", label_columns=COLUMNS["label_columns"]), labels)
    assert joint.relative_scales == (1.0, 1.0)
    assert joint.label_range == pytest.approx(np.mean([2, 4000]))
    labels[:, 0] = 5.0  # of a dimension that does not vary
    constant = resolve(ConRConfig("out", **COLUMNS), labels)
    assert constant.relative_scales[0] == 1
    assert resolve(ConRConfig("out", **COLUMNS), np.ones((3, 2))).relative_scales == (1.0, 1.0)


# Without density weights: their bins lie on multiples of a width, and fall otherwise where an offset is added.
PAIRS = {"conr_weight": 0.5, "conr_reweight": "none"}
MODES = {
    "plain": {"conr_weight": 0.0},
    "conr": {**PAIRS, "rnc_weight": 0.5},
    "euclidean": {**PAIRS, "conr_distance": "euclidean", "ranksim_weight": 0.1},
    "balanced": {"conr_weight": 0.0, "base_loss": "gai", "gai_components": 1},
    "huber, mixed": {"conr_weight": 0.0, "base_loss": "huber", "cmixup_alpha": 1.0},
}


@pytest.mark.parametrize(
    ("optimizer", "mode"), [("sgd", "conr"), ("lion", "plain"), *(("adamw", mode) for mode in MODES)]
)
def test_another_unit_of_one_dimension_gives_the_same_model(optimizer, mode, data, tmp_path):
    """An age in years beside a weight in grams or tonnes."""
    trainer, *_ = train(tmp_path / "y", data, optimizer, **MODES[mode])
    expected = trainer.predict(data).predictions
    mapped, *_ = train(tmp_path / "z", in_other_units(data), optimizer, **MODES[mode])
    predictions = mapped.predict(data.remove_columns(["label0", "label1"])).predictions
    predictions[:, 1] = (predictions[:, 1] - 512) / 1024
    deviation = np.abs(predictions - expected).max() / trainer.resolved.label_scale
    print(f"{optimizer}, {mode}: {deviation:.1e} label scales")
    assert deviation < 2e-5
    assert np.ptp(expected, axis=0).min() > 1  # not only the mean label
    losses = [[e["base_loss"] for e in run.state.log_history if "base_loss" in e] for run in (trainer, mapped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_without_it_the_larger_unit_takes_over(data, tmp_path):
    runs = []
    for name, rows in (("y", data), ("z", in_other_units(data))):
        trainer, *_ = train(tmp_path / name, rows, conr_weight=0.0, scale_each=False)
        runs.append(trainer.predict(rows).predictions[:, 0])
    assert np.abs(runs[0] - runs[1]).max() > 0.1 * np.std(data["label0"])


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_same_as_an_ordinary_head_over_labels_standardised_each(optimizer, clip, data, tmp_path):
    """A plain loop of PyTorch, with decoupled weight decay (AdamW, Lion) and the other kind (SGD)."""
    rows = in_other_units(data)
    settings = {"per_device_train_batch_size": 5, "num_views": 3, "conr_weight": 0.5 * (optimizer != "lion")}
    trainer, network, start = train(tmp_path, rows, optimizer, clip, **settings)
    labels = trainer.data.training_labels()
    means, stds = torch.tensor(labels.mean(0)).float(), torch.tensor(labels.std(0)).float()
    torch.testing.assert_close(start.factors, stds)
    settled, density = trainer.resolved, make_density(labels, trainer.bins, "sqrt_inverse")
    network.load_state_dict(start.weights)
    head = network.classifier
    assert type(head) is nn.Linear
    assert (head.weight.std(1) / stds / 0.02 - 1).abs().max() < 0.6
    torch.testing.assert_close(head.bias.detach(), means)
    with torch.no_grad():
        head.weight.div_(stds[:, None])
        head.bias.sub_(means).div_(stds)
    started = head.weight.clone()
    network.train()
    features = []
    head.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
    groups = [[p for p in network.parameters() if (p.dim() > 1) is decays] for decays in (True, False)]
    optimizer_class, arguments = OPTIMIZERS[optimizer]
    plain = optimizer_class([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], **arguments)
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 1 - step / STEPS)
    for batch in batches(trainer):
        pixels = batch["pixel_values"]
        standardised = ((batch["labels"] - means) / stds).float().repeat_interleave(pixels.shape[1], 0)
        predictions = network(pixel_values=pixels.flatten(0, 1)).logits
        loss = (predictions - standardised).abs().mean()
        if settings["conr_weight"]:
            loss = loss + settings["conr_weight"] * conr_loss(
                features[-1],
                standardised,
                predictions.detach(),
                density.weights(batch["labels"]).repeat_interleave(pixels.shape[1]),
                window=settled.window / settled.label_scale,
                push_scale=settled.push_scale * settled.label_scale,
            )
        plain.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        plain.step()
        schedule.step()
    weight = trainer.head.weight.detach() / stds[:, None] - head.weight.detach()
    bias = (trainer.head.bias.detach() - means) / stds - head.bias.detach()
    print(f"{optimizer}, clip {clip}: {weight.abs().max():.1e} {bias.abs().max():.1e}")
    assert max(weight.abs().max(), bias.abs().max()) < 2e-5
    assert (started - head.weight).abs().max() > 1e-3


def test_resumed_is_uninterrupted(data, tmp_path):
    rows = in_other_units(data)
    run = {"num_train_epochs": 2, "max_steps": -1, "save_strategy": "epoch", "conr_weight": 0.5, "ema_decay": 0.9}
    whole, *_ = train(tmp_path / "whole", rows, **run)
    steps = whole.state.max_steps
    resumed, *_ = train(tmp_path / "resumed", rows, **run, resume=str(tmp_path / f"whole/checkpoint-{steps // 2}"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_the_card_tells_it(data, tmp_path):
    trainer, *_ = train(tmp_path, data, max_steps=1, conr_weight=0.0)
    trainer.create_model_card()
    assert "errors of each label dimension divided by its standard deviation" in (tmp_path / "README.md").read_text()


def test_a_step_that_moves_nothing_leaves_every_bit():
    head = LinearHead(5, 3)
    kept = [parameter.detach().clone() for parameter in head.parameters()]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.0)
    scale_row_steps(optimizer, head, torch.tensor([0.3, 1.7, 1e-3]))
    for parameter in head.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(50):
        optimizer.step()
    for parameter, before in zip(head.parameters(), kept, strict=True):
        assert torch.equal(parameter, before)


def test_a_compiled_model_learns_the_same(data, tmp_path):
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        trainer, *_ = train(
            tmp_path, data, max_steps=3, conr_weight=0.0, torch_compile=compiled, torch_compile_backend="aot_eager"
        )
        runs.append(trainer.head.weight.detach() / trainer.resolved.head_scale[:, None])
    torch.testing.assert_close(*runs, rtol=0, atol=1e-6)


def test_refused_settings():
    with pytest.raises(ValueError, match=r"^loss_space is log1p and scale_each is true"):
        ConRConfig("out", scale_each=True, loss_space="log1p")


def test_an_optimizer_of_the_users_own_is_refused(data, tmp_path):
    model, processor = small.models["vit"](["label0", "label1"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"^scale_each needs an optimizer made by the trainer"):
        small.build(model, processor, tmp_path, data, optimizers=(optimizer, None), **COLUMNS)
