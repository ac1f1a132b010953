"""
Training does not depend on the labels' unit.

The second opinion is a plain loop of PyTorch: the same network with an ordinary head over standardised labels, an
ordinary optimizer, and the same batches.
"""

import copy

import numpy as np
import pytest
import small
import torch
from optimizers import OPTIMIZERS, STEPS, batches
from torch import nn
from transformers import TrainerCallback

from conr_hf import conr_loss
from conr_hf.imbalance import make_density
from conr_hf.models.head import LinearHead


class Start(TrainerCallback):
    """Notes the weights that training starts from, and the factor of the head's gradient."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        (self.factor,) = {head.gradient_factor for head in model.modules() if isinstance(head, LinearHead)}


def scaled(data, factor, offset):
    return data.map(lambda row: {"label": factor * row["label"] + offset})


def train(folder, data, optimizer, clip=0.0, model=None, **changed):
    """A short run of ViT; returns the trainer, the untouched network, and what was noted of the start."""
    made, processor = small.models["vit"]()
    model = made if model is None else model
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
        max_steps=STEPS,
        save_strategy="no",
        **changed,
    )
    trainer.train()
    return trainer, untouched, start


def train_plainly(trainer, network, start, optimizer, clip):
    """Trains `network` on standardised labels with an ordinary head, ordinary optimizer and ordinary loop."""
    mean, scale = np.mean(trainer.data.training_labels()), np.std(trainer.data.training_labels())
    settings = trainer.resolved
    density = make_density(trainer.data.training_labels(), trainer.bins, trainer.args.conr_reweight)
    network.load_state_dict(start)
    head = network.classifier
    assert type(head) is nn.Linear
    with torch.no_grad():
        head.weight.div_(scale)
        head.bias.sub_(mean).div_(scale)
    network.train()
    features = []
    head.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
    decayed = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    optimizer_class, arguments = OPTIMIZERS[optimizer]
    optimizer = optimizer_class([{"params": decayed}, {"params": others, "weight_decay": 0.0}], **arguments)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for batch in batches(trainer):
        pixels = batch["pixel_values"]
        labels = ((batch["labels"] - mean) / scale).float().repeat_interleave(pixels.shape[1])
        predictions = network(pixel_values=pixels.flatten(0, 1)).logits[:, 0]
        loss = (predictions - labels).abs().mean()
        if trainer.args.conr_weight > 0:
            loss = loss + trainer.args.conr_weight * conr_loss(
                features[-1],
                labels,
                predictions.detach(),
                density.weights(batch["labels"]).repeat_interleave(pixels.shape[1]),
                window=settings.window / scale,
                push_scale=settings.push_scale * scale,
                temperature=0.07,
            )
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        schedule.step()
    return mean, scale


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize(
    ("optimizer", "conr_weight"), [("sgd", 0.0), ("adamw", 0.0), ("lion", 0.0), ("sgd", 0.5), ("adamw", 0.5)]
)
def test_same_as_an_ordinary_head_over_standardised_labels(optimizer, conr_weight, clip, tmp_path):
    # Odd numbers of rows: where as many residuals are positive as negative, some gradients of L1 are 0 but for
    # rounding, and Lion, which reads signs only, would follow the rounding.
    data = small.images(18)  # batches of 5, 5, 5 and 3
    batch = {"per_device_train_batch_size": 5, "num_views": 3}
    trainer, network, start = train(tmp_path, data, optimizer, clip, conr_weight=conr_weight, **batch)
    mean, scale = train_plainly(trainer, network, start.weights, optimizer, clip)
    predictions = trainer.predict(data).predictions
    pixels = trainer.processing_class(images=list(data["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = network.eval()(pixel_values=pixels).logits[:, 0].numpy()
    with torch.no_grad():
        weight = trainer.head.weight / scale - network.classifier.weight
        bias = (trainer.head.bias - mean) / scale - network.classifier.bias
    deviations = [np.abs((predictions - mean) / scale - expected).max(), weight.abs().max(), bias.abs().max()]
    print(f"{optimizer}, ConR {conr_weight}, clip {clip}:", " ".join(f"{float(d):.1e}" for d in deviations))
    assert max(deviations) < 1e-5
    moved = (start.weights["classifier.weight"] / scale - network.classifier.weight).abs().max()
    assert moved > 1e-3  # it learned something, or little was shown


@pytest.mark.parametrize(
    ("optimizer", "strength"),
    [*((name, {"conr_weight": 0.5}) for name in OPTIMIZERS), ("sgd", {"conr_gradient_share": 0.5})],
)
def test_another_unit_gives_the_same_model(optimizer, strength, tmp_path):
    """Metres or millimetres: without this, every learning rate would have to be found anew."""
    data = small.images(20)
    trainer, _, _ = train(tmp_path / "y", data, optimizer, clip=1.0, bin_width=1.0, **strength)
    expected = trainer.predict(data).predictions
    mapped = scaled(data, 1000, 5)
    other, _, _ = train(tmp_path / "z", mapped, optimizer, clip=1.0, bin_width=1000.0, **strength)
    predictions = (other.predict(data.remove_columns("label")).predictions - 5) / 1000
    deviation = np.abs(predictions - expected).max() / trainer.resolved.label_scale
    print(f"{optimizer}: {deviation:.1e} label scales")
    assert deviation < 1e-5
    assert other.resolved.window == pytest.approx(1000 * trainer.resolved.window)
    assert np.ptp(expected) > 1  # not only the mean label


def test_an_optimizer_of_the_users_own_sees_an_ordinary_head(tmp_path):
    model, processor = small.models["vit"]()
    optimizer, start = torch.optim.SGD(model.parameters(), lr=1e-3), Start()
    trainer = small.build(
        model,
        processor,
        tmp_path,
        small.images(16),
        optimizers=(optimizer, None),
        callbacks=[start],
        save_strategy="no",
    )
    trainer.train()
    assert start.factor == 1
    assert len(optimizer.param_groups) == 1


def test_our_optimizer_has_the_head_in_groups_of_its_own_at_the_end(tmp_path):
    trainer, _, start = train(tmp_path, small.images(16), "adamw", lr_scheduler_type="constant")
    scale = trainer.resolved.label_scale
    *others, weight, bias = trainer.optimizer.param_groups
    assert [weight["params"], bias["params"]] == [[trainer.head.weight], [trainer.head.bias]]
    assert weight["lr"] == bias["lr"] == pytest.approx(1e-3 * scale)
    assert weight["weight_decay"] == pytest.approx(0.1 / scale)
    assert bias["weight_decay"] == 0
    assert all(group["lr"] == 1e-3 for group in others)
    assert start.factor == scale
    assert trainer.head.gradient_factor == 1  # what the user does with the model later is theirs


@pytest.mark.parametrize("name", ["vit", "resnet", "timm-resnet"])
def test_a_fresh_head_starts_at_the_mean_label(name, tmp_path):
    """The first predictions are the mean label, not 0 and not the model family's own idea of a start."""
    data = small.images(16)

    def start(seed):
        model, processor = small.models[name]()
        start = Start()
        trainer = small.build(
            model,
            processor,
            tmp_path,
            data,
            callbacks=[start],
            seed=seed,
            max_steps=1,
            learning_rate=0.0,
            save_strategy="no",
        )
        trainer.train()
        weight, bias = trainer.head.weight.detach().clone(), trainer.head.bias.detach().clone()
        assert any(torch.equal(weight, parameter) for parameter in start.weights.values())
        return weight / trainer.resolved.label_scale, bias

    weight, bias = start(seed=3)
    assert bias.item() == pytest.approx(np.mean(data["label"]))
    assert 0.012 < weight.std().item() < 0.028
    assert torch.equal(weight, start(seed=3)[0])
    assert not torch.equal(weight, start(seed=4)[0])


def test_a_trained_head_keeps_its_values(tmp_path):
    model, _ = small.models["vit"]()
    with torch.no_grad():
        model.classifier.bias.fill_(33.0)
    weight = model.classifier.weight.detach().clone()
    trainer, _, start = train(tmp_path, small.images(16), "sgd", model=model)
    assert torch.equal(start.weights["classifier.weight"], weight)
    assert start.weights["classifier.bias"].item() == 33.0
    assert start.factor == trainer.resolved.label_scale  # it is trained in the same way


def test_constant_labels_train(tmp_path):
    """The standard deviation is 0, and so the label scale 1; the range is 0, and so there is no push."""
    data = scaled(small.images(8), 0, 7.0)
    trainer, _, _ = train(tmp_path, data, "sgd")
    assert trainer.resolved.label_scale == 1
    assert trainer.resolved.push_scale == 0
    assert np.abs(trainer.predict(data).predictions - 7).max() < 0.5
