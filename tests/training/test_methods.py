"""The companion methods in the trainer: each alone, together, and what makes no sense together."""

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
import yaml
from torch import nn
from transformers import AutoModelForImageClassification, TrainerCallback

from conr_hf import ConRConfig
from conr_hf.cli import recipe
from conr_hf.cli.main import main
from conr_hf.imbalance import make_bins
from conr_hf.losses import bni
from conr_hf.training.conr_state import load_training_state
from conr_hf.training.objective.base_loss import BalancedMSE
from conr_hf.training.optimizer import layer_ids

METHODS = {
    "re-weighting": {"reweight": "sqrt_inverse"},
    "inverse": {"reweight": "inverse"},
    "lds": {"reweight": "sqrt_inverse", "lds": "gaussian"},
    "resample": {"resample": "sqrt_inverse"},
    "fds": {"fds": "gaussian", "fds_momentum": 0.5},
    "focal_l1": {"base_loss": "focal_l1", "focal_beta": 0.2},
    "focal_mse": {"base_loss": "focal_mse"},
    "huber": {"base_loss": "huber", "huber_delta": 10.0},
    "bmc": {"base_loss": "bmc", "noise_sigma": 8.0},
    "gai": {"base_loss": "gai", "gai_components": 2},
    "bni": {"base_loss": "bni"},
    "ranksim": {"ranksim_weight": 1.0},
    "rnc": {"rnc_weight": 1.0},
    "cmixup": {"cmixup_alpha": 1.0, "conr_weight": 0.0, "cmixup_bandwidth": 5.0},
    "layer decay": {"layer_decay": 0.5},
    "ema": {"ema_decay": 0.9},
    "head alone": {"freeze_backbone": True},
    "together": {
        "base_loss": "focal_l1",
        "reweight": "sqrt_inverse",
        "lds": "laplace",
        "fds": "triangular",
        "ranksim_weight": 1.0,
        "rnc_weight": 0.5,
        "conr_weight": 0.5,
        "ema_decay": 0.9,
        "layer_decay": 0.8,
    },
}
ROWS = 22
# What a change of the label unit changes a setting by.
UNITS = {"bin_width": 1, "conr_window": 1, "huber_delta": 1, "noise_sigma": 1, "cmixup_bandwidth": 1, "focal_beta": -1}


def train(folder, data, name="vit", **changed):
    torch.manual_seed(0)
    model, processor = small.models[name]()
    settings = {
        "num_train_epochs": 3,
        "save_strategy": "no",
        "conr_weight": 0.5,
        "conr_window": 3.0,
        "bin_width": 10.0,
        "learning_rate": 3e-3,
        "max_grad_norm": 0.0,
    }
    trainer = small.build(model, processor, folder, data, **{**settings, **changed})
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_does_not_depend_on_the_unit(method, tmp_path):
    """Years or days: the same model, whatever is switched on, and another model than without it."""
    data = small.images(ROWS)
    settings = {"bin_width": 10.0, "conr_window": 3.0, **METHODS[method]}
    trainer = train(tmp_path / "y", data, **settings)
    expected = trainer.predict(data).predictions
    factors = {name: settings[name] * 1000.0**power for name, power in UNITS.items() if name in settings}
    mapped = data.map(lambda row: {"label": 1000 * row["label"] + 5})
    # Bins lie on multiples of their width, so the offset must not carry a label over an edge.
    other = train(tmp_path / "z", mapped, **{**settings, **factors})
    assert [list(c) for c in other.bins.train_counts] == [list(c) for c in trainer.bins.train_counts]
    predictions = (other.predict(mapped).predictions - 5) / 1000
    deviation = np.abs(predictions - expected).max() / trainer.resolved.label_scale
    print(f"{method}: {deviation:.1e} label scales")
    assert deviation < 1e-5
    plain = train(tmp_path / "plain", data, conr_weight=settings.get("conr_weight", 0.5))
    difference = np.abs(plain.predict(data).predictions - expected).max()
    assert difference / trainer.resolved.label_scale > 1e-4, "the method changed nothing"


def test_uniform_labels_have_nothing_to_correct(tmp_path):
    """Re-weighting, LDS and resampling of balanced labels are the plain loss."""
    data = small.images(16).map(lambda row, index: {"label": float(index % 4)}, with_indices=True)
    plain = train(tmp_path / "plain", data, bin_width=1.0)
    for settings in ({"reweight": "inverse"}, {"reweight": "sqrt_inverse", "lds": "gaussian", "lds_kernel_size": 1}):
        other = train(tmp_path / "other", data, bin_width=1.0, **settings)
        np.testing.assert_allclose(other.predict(data).predictions, plain.predict(data).predictions, rtol=0, atol=1e-5)


# ---- Steps ---------------------------------------------------------------------------------------------------------


class Forwards:
    """Counts the rows that a model reads while it trains."""

    def __init__(self, model):
        self.rows = []
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, inputs, arguments):
        if module.training:
            self.rows.append(len(arguments["pixel_values"]))


@pytest.mark.parametrize("method", ["fds", "bmc", "bni", "together"])
def test_no_image_is_read_twice(method, tmp_path):
    """The published code of FDS runs over the whole training set once more after each epoch."""
    model, processor = small.models["vit"]()
    forwards = Forwards(model)
    settings = {"save_strategy": "no", "num_train_epochs": 2, "bin_width": 10.0}
    small.build(model, processor, tmp_path, small.images(ROWS), **settings, **METHODS[method]).train()
    assert forwards.rows == [16, 16, 12] * 2


def test_fds_smooths_from_the_second_epoch_on(tmp_path):
    """Before, there are no statistics to smooth by."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            smoothing = trainer.training_objective.smoothing
            features = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
            labels = torch.tensor(trainer.data.training_labels()).float()
            seen.append(not torch.equal(smoothing.smooth(features, labels), features))

    model, processor = small.models["vit"]()
    settings = {"fds": "gaussian", "bin_width": 10.0, "num_train_epochs": 3, "save_strategy": "no"}
    trainer = small.build(model, processor, tmp_path, small.images(ROWS), callbacks=[Watch()], **settings)
    trainer.train()
    assert seen == [False] * 3 + [True] * 6
    assert trainer.head.smooth is None  # the model is the user's again


def test_feature_statistics_do_not_depend_on_how_a_step_is_split(tmp_path):
    """8 x 1 and 4 x 2, the last step short: the same features of every epoch, each counted once."""
    data, states = small.images(13), []
    for batch, accumulated in ((8, 1), (4, 2)):
        trainer = train(
            tmp_path,
            data,
            fds="gaussian",
            conr_weight=0.0,  # whose pairs are those of a micro-batch
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=2,
        )
        trainer.training_objective.begin_epoch(2)
        states.append(trainer.training_objective.smoothing.state())
        assert states[-1]["counts"].sum() == 0
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, rtol=1e-3, atol=1e-5)
    assert states[0]["seen"].sum() > 2
    assert states[0]["variance"].max() > 0


def test_mixed_precision_gives_nearly_the_same(tmp_path):
    """On average: a ranking of features that bf16 turns over moves single predictions further."""
    data = small.images(ROWS)
    settings = METHODS["together"] | {"num_train_epochs": 2}
    exact, mixed = (train(tmp_path, data, **settings, bf16=bf16).predict(data).predictions for bf16 in (False, True))
    deviation = np.abs(mixed - exact).mean() / np.std(data["label"])
    print(f"{deviation:.1e} label scales")
    assert 0 < deviation < 0.03
    assert np.ptp(exact) / np.std(data["label"]) > 0.1  # it learned something


@pytest.mark.parametrize("method", ["inverse", "lds", "resample", "bmc", "gai", "bni", "ranksim", "rnc", "cmixup"])
def test_several_label_dimensions(method, tmp_path):
    data = small.images(ROWS, dimensions=2)
    columns = ["label0", "label1"]
    torch.manual_seed(0)
    model, processor = small.models["vit"](columns)
    settings = {"conr_weight": 0.5, **METHODS[method], "label_columns": columns, "num_train_epochs": 8}
    settings |= {"learning_rate": 1e-2, "save_strategy": "no"}
    trainer = small.build(model, processor, tmp_path, data, **settings)
    trainer.train()
    logs = [entry["base_loss"] for entry in trainer.state.log_history if "base_loss" in entry]
    assert np.mean(logs[-3:]) < np.mean(logs[:3])
    labels = np.stack([data[column] for column in columns], 1)
    assert np.abs(trainer.predict(data).predictions - labels).mean() < np.abs(labels - labels.mean(0)).mean()


def test_the_noise_follows_its_gradient(tmp_path):
    """Its first step is that of Adam: the learning rate against the gradient's sign, of the logarithm."""
    data = small.images(ROWS)
    trainer = train(tmp_path, data, base_loss="bni", noise_sigma=30.0, num_train_epochs=1)
    noise = [entry["noise_sigma"] for entry in trainer.state.log_history if "noise_sigma" in entry]
    assert len(noise) == 3
    steps = np.abs(np.diff(np.log([30.0, *noise])))
    np.testing.assert_allclose(steps[0], 0.01, rtol=1e-3)
    assert (steps > 0).all()
    fixed = train(tmp_path, data, base_loss="bni", noise_sigma=30.0, num_train_epochs=1, noise_learning_rate=0.0)
    assert fixed.state.log_history[-2]["noise_sigma"] == pytest.approx(30.0)


def test_the_gradient_of_the_noise_is_that_of_a_parameter(tmp_path):
    """It is taken aside from the model's backward; autograd over the whole loss agrees."""
    labels = np.array([20.0, 21.0, 30.0, 60.0])
    trainer = small.build(*small.models["vit"](), tmp_path, small.images(8), base_loss="bmc", bin_width=10.0)
    balanced = BalancedMSE(trainer.resolved, labels, trainer.bins, torch.device("cpu"), 2, 0.01, 0)
    predictions, rows = torch.tensor([22.0, 25.0, 31.0, 40.0]), torch.tensor(labels).float()
    factors = torch.tensor([0.1, 0.2, 0.3, 0.4])
    predictions.requires_grad_()
    losses = [balanced(predictions, rows, rows, factors) for _ in range(2)]
    (losses[0] * factors).sum().backward()  # of the model, which does not touch that of the noise
    sigma, scale = trainer.resolved.noise_sigma, trainer.resolved.loss_scale

    def loss(log_sigma):
        noise = log_sigma.exp() / scale
        scores = -(((predictions.detach()[:, None] - rows) / scale) ** 2) / (2 * noise**2)
        losses = nn.functional.cross_entropy(scores, torch.arange(4), reduction="none")
        return (losses * 2 * noise.detach() ** 2 * factors).sum()

    log_sigma = torch.tensor(np.log(sigma), dtype=torch.float32, requires_grad=True)
    loss(log_sigma).backward()
    torch.testing.assert_close(balanced.take_gradient(), 2 * log_sigma.grad, rtol=1e-4, atol=1e-7)
    assert balanced.take_gradient() == 0


@pytest.mark.parametrize("dims", [1, 2])
def test_bins_stand_at_the_mean_of_their_labels(dims, tmp_path):
    """Of two label dimensions the joint bins; empty ones, and those between, play no part."""
    labels = np.array([[20.0, 5.0], [21.0, 6.0], [29.0, 17.0], [60.0, 5.0], [61.0, 5.5], [20.0, 18.0]])[:, :dims]
    trainer = small.build(*small.models["vit"](), tmp_path, small.images(8), base_loss="bni", bin_width=10.0)
    bins = make_bins(labels, 10.0)
    balanced = BalancedMSE(trainer.resolved, labels, bins, torch.device("cpu"), 2, 0.0, 0)
    groups = [[0, 1, 2, 5], [3, 4]] if dims == 1 else [[0, 1], [2, 5], [3, 4]]
    scale, rows = trainer.resolved.loss_scale, torch.tensor(labels)
    predictions = rows + torch.linspace(-9, 9, rows.numel()).view_as(rows)
    expected = bni(
        predictions / scale,
        rows / scale,
        torch.stack([rows[group].mean(0) for group in groups]) / scale,
        torch.tensor([len(group) / 6 for group in groups], dtype=torch.float64),
        torch.tensor(trainer.resolved.noise_sigma / scale),
    )
    losses = balanced(predictions, rows, rows, torch.ones(6))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_resampling_draws_rare_rows_more_often(tmp_path):
    data = small.images(40).map(lambda row, index: {"label": 60.0 if index < 4 else 20.0}, with_indices=True)
    trainer = small.build(*small.models["vit"](), tmp_path, data, resample="inverse", bin_width=10.0)
    sampler = trainer._get_train_sampler()
    drawn = []
    for epoch in range(200):
        sampler.epoch = epoch
        drawn += [draw.row for draw in sampler]
    share = np.mean(np.array(drawn) < 4)  # 4 rows of weight 1/5 beside 36 of 1/36
    assert share == pytest.approx(0.8 / 1.8, abs=0.02)


def test_conr_brings_resampling_and_rank_n_contrast(tmp_path):
    data = small.images(ROWS)
    trainer = train(tmp_path, data, resample=None, rnc_weight=None)
    assert trainer.loaders.row_weights() is not None
    assert all(entry["rnc_loss"] > 0 for entry in trainer.state.log_history if "conr_loss" in entry)
    plain = train(tmp_path / "plain", data, resample=None, rnc_weight=None, conr_weight=0.0)
    assert plain.loaders.row_weights() is None
    assert not any("rnc_loss" in entry for entry in plain.state.log_history)
    weighed = data.add_column("sample_weight", [1.0] * ROWS)
    assert train(tmp_path / "weighed", weighed, resample=None).loaders.row_weights() is None
    stream = data.to_iterable_dataset()
    assert train(tmp_path / "stream", stream, resample=None, rnc_weight=None).resolved.resample == "none"


def test_what_the_data_decide_is_told_when_they_are_known(tmp_path, caplog):
    """Weighted rows are not drawn by density, so that ConR alone is left on, and smoothed densities weigh nothing."""
    data = small.images(ROWS)
    weighed = data.add_column("sample_weight", [1.0] * ROWS)
    settings = {"conr_weight": None, "resample": None, "max_steps": 1}
    train(tmp_path, data, cmixup_alpha=1.0, **settings)
    with pytest.raises(ValueError, match=r"cmixup_alpha is 1.0 and ConR is on"):
        train(tmp_path, weighed, cmixup_alpha=1.0, **settings)
    idle = "Set, but without effect: lds (needs reweight, resample or, with ConR, conr_reweight)."
    train(tmp_path, weighed, lds="gaussian", **settings)
    assert idle not in caplog.text
    train(tmp_path, weighed, lds="gaussian", **{**settings, "conr_weight": 0.0})
    assert idle in caplog.text


def test_log1p_compares_logarithms_and_predicts_labels(tmp_path):
    data = small.images(8)
    trainer = train(tmp_path, data, loss_space="log1p", conr_weight=0.0, max_steps=1, learning_rate=0.0)
    labels = np.array(data["label"])
    predictions = trainer.predict(data).predictions
    expected = np.abs(np.log1p(predictions) - np.log1p(labels)).mean() / np.std(np.log1p(labels))
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert predictions.min() > 20
    below = data.map(lambda row: {"label": row["label"] - 30})
    with pytest.raises(ValueError, match="loss_space is log1p, but the label of usable training row"):
        train(tmp_path, below, loss_space="log1p")


# ---- What is frozen, averaged or decayed ---------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"freeze_backbone": True}, {"retrain_head": True, "reweight": "inverse"}])
def test_a_frozen_backbone_keeps_every_weight_and_statistic(changed, tmp_path):
    """Batch norm would drift with the new views although nothing of it learns."""
    before = {}

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            before.update({name: value.clone() for name, value in model.state_dict().items()})

    trainer = train(tmp_path, small.images(ROWS), "timm-resnet", callbacks=[Note()], **changed)
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert "conr_loss" not in trainer.state.log_history[0]  # no feature could follow it


def test_retraining_starts_a_trained_head_anew(tmp_path):
    data = small.images(ROWS)
    first = train(tmp_path / "one", data)
    first.save_model(tmp_path / "stage-one")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "stage-one")
    trained = model.classifier.weight.detach().clone()
    second = small.build(
        model,
        first.processing_class,
        tmp_path / "two",
        data,
        retrain_head=True,
        reweight="sqrt_inverse",
        learning_rate=0.0,
        save_strategy="no",
    )
    second.train()
    assert not torch.equal(second.head.weight, trained)
    assert second.head.bias.item() == pytest.approx(np.mean(data["label"]), rel=1e-6)


def test_the_average_is_evaluated_and_saved_and_the_weights_go_on(tmp_path):
    data = small.images(ROWS)
    history = []

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            history.append(model.classifier.weight.detach().clone())

    settings = {"ema_decay": 0.6, "save_strategy": "epoch", "num_train_epochs": 2, "load_best_model_at_end": False}
    trainer = train(tmp_path, data, callbacks=[Note()], **settings)
    average = None
    for step, weight in enumerate(history, 1):
        decay = min(1 - (1 + step) ** (-2 / 3), 0.6)
        start = trainer_start_weight(tmp_path, data) if average is None else average
        average = decay * start + (1 - decay) * weight
        if step == 3:
            middle = average
    torch.testing.assert_close(trainer.head.weight, average, rtol=1e-5, atol=1e-5)
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-3")
    torch.testing.assert_close(saved.classifier.weight, middle, rtol=1e-5, atol=1e-5)
    raw = load_training_state(tmp_path / "checkpoint-3")["raw.classifier.weight"]
    assert torch.equal(raw, history[2])


def trainer_start_weight(folder, data):
    weights = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            weights.append(model.classifier.weight.detach().clone())

    train(folder / "start", data, callbacks=[Note()], max_steps=1)
    return weights[0]


@pytest.mark.parametrize("name", ["vit", "swin", "convnextv2", "timm-vit"])
def test_lower_layers_learn_more_slowly(name, tmp_path):
    data = small.images(8)
    trainer = train(tmp_path, data, name, layer_decay=0.5, max_steps=1, lr_scheduler_type="constant")
    depths = layer_ids(trainer.model)
    assert set(depths) == {name for name, _ in trainer.model.named_parameters()}
    last = max(depths.values())
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    own = {id(parameter) for parameter in trainer.head.parameters()}
    for parameter_name, parameter in trainer.model.named_parameters():
        expected = 3e-3 * 0.5 ** (last - depths[parameter_name])
        if id(parameter) in own:
            assert depths[parameter_name] == last
            expected = 3e-3 * trainer.resolved.label_scale
        assert rates[id(parameter)] == pytest.approx(expected), parameter_name
    order = [depths[name] for name, _ in trainer.model.named_parameters() if "embed" in name]
    assert set(order) == {0}
    assert last >= 3


def test_blocks_of_a_transformer_are_its_layers(tmp_path):
    model, _ = small.models["vit"]()
    depths = layer_ids(model)
    for name, depth in depths.items():
        expected = 0 if "embeddings" in name else 3
        for layer in (0, 1):
            expected = layer + 1 if f".{layer}." in name else expected
        assert depth == expected, name


# ---- What makes no sense together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"reweight": "inverse", "resample": "inverse"}, ["reweight=inverse and resample=inverse", "twice"]),
        ({"base_loss": "bmc", "reweight": "inverse"}, ["base_loss=bmc", "twice"]),
        ({"base_loss": "gai", "resample": "sqrt_inverse"}, ["base_loss=gai", "twice"]),
        ({"cmixup_alpha": 1.0}, ["cmixup_alpha is 1.0 and rnc_weight 1.0", "Set one of them to 0"]),
        ({"cmixup_alpha": 1.0, "rnc_weight": 0.0, "resample": "none"}, ["conr_weight 0.05"]),
        ({"cmixup_alpha": 1.0, "conr_weight": 0.0, "reweight": "inverse"}, ["reweight inverse", "lies between"]),
        ({"resample": "inverse", "train_sampling_strategy": "sequential"}, ["sequential", "no order"]),
        ({"cmixup_alpha": 1.0, "conr_weight": 0.0, "fds": "gaussian"}, ["fds gaussian", "samples of a bin"]),
        ({"retrain_head": True}, ["retrain_head", "reweight to sqrt_inverse"]),
        ({"fds": "gaussian", "label_columns": ["pitch", "yaw"]}, ["fds is gaussian", "one label"]),
        ({"fds": "cubic"}, ['fds is "cubic"', "gaussian, triangular, laplace"]),
        ({"base_loss": "l3"}, ['base_loss is "l3"', "bmc, gai, bni"]),
        ({"loss_space": "log"}, ['loss_space is "log"', "log1p"]),
        ({"lds_kernel_size": 4}, ["lds_kernel_size is 4", "odd"]),
        ({"fds_clip": 0.5}, ["fds_clip is 0.5", "1 or more"]),
        ({"fds_momentum": 1.5}, ["fds_momentum is 1.5", "between 0 and 1"]),
        ({"ema_decay": -0.1}, ["ema_decay is -0.1", "between 0 and 1"]),
        ({"focal_beta": 0.0}, ["focal_beta is 0.0", "greater than 0"]),
        ({"noise_sigma": -1.0}, ["noise_sigma is -1.0", "greater than 0"]),
        ({"rnc_weight": -1.0}, ["rnc_weight is -1.0", "0 or more"]),
        ({"gai_components": 0}, ["gai_components is 0", "greater than 0"]),
    ],
)
def test_what_makes_no_sense_is_refused(settings, parts):
    with pytest.raises(ValueError) as error:
        ConRConfig("out", use_cpu=True, **settings)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_loss": "bmc", "conr_reweight": "inverse"},
        {"resample": "inverse", "conr_reweight": "inverse", "lds": "gaussian"},
        {"lds": "gaussian", "conr_reweight": "none"},  # of resampling
        {"base_loss": "gai", "lds": "gaussian", "fds": "gaussian", "ranksim_weight": 1.0},
        {"freeze_backbone": True, "fds": "gaussian", "reweight": "inverse"},
        {"cmixup_alpha": 1.0, "conr_weight": 0.0, "resample": "inverse"},
        {"cmixup_alpha": 1.0, "freeze_backbone": True},
        {"cmixup_alpha": 1.0, "rnc_weight": 0.0},
    ],
)
def test_what_makes_sense_is_not(settings):
    ConRConfig("out", use_cpu=True, **settings)


@pytest.mark.parametrize(("rows", "batch"), [(9, 8), (8, 1)])
def test_a_batch_of_one_is_no_batch_for_bmc(rows, batch, tmp_path):
    """Its loss would be 0 whatever is predicted."""
    with pytest.raises(ValueError, match=r"base_loss is bmc.* has one sample"):
        train(tmp_path, small.images(rows), base_loss="bmc", per_device_train_batch_size=batch)


def test_an_optimizer_of_the_users_own_has_no_layers_to_decay(tmp_path):
    model, processor = small.models["vit"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="layer_decay"):
        small.build(model, processor, tmp_path, small.images(8), optimizers=(optimizer, None), layer_decay=0.5)


def test_a_checkpoint_of_other_methods_is_not_gone_on_from(tmp_path):
    data = small.images(ROWS)
    train(tmp_path, data, save_strategy="epoch", num_train_epochs=1)
    settings = {"fds": "gaussian", "num_train_epochs": 2, "bin_width": 10.0}
    other = small.build(*small.models["vit"](), tmp_path, data, **settings)
    with pytest.raises(ValueError, match="holds no state of base_loss or fds"):
        other.train(resume_from_checkpoint=True)


# ---- Recipes -------------------------------------------------------------------------------------------------------

FOLDER = Path(recipe.FOLDER, "methods")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_a_method_differs_from_the_plain_recipe_in_its_own_lines_only(name):
    plain, options = (yaml.safe_load(Path(FOLDER, f"{n}.yaml").read_text()) for n in ("vanilla", name))
    changed = {key for key in {*plain, *options} if plain.get(key) != options.get(key)}
    assert not changed & {"model", "benchmark", "image_size", "pretrained", "learning_rate", "num_train_epochs"}
    assert bool(changed) == (name != "vanilla")
    assert len(changed) <= 5
    lines = Path(FOLDER, f"{name}.yaml").read_text().splitlines()
    assert lines[0] == f"# conr-hf train recipes/methods/{name}.yaml"


def test_the_recipe_of_rrt_trains_both_stages(tmp_path, capsys):
    quick = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--report_to", "none"]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["train", "methods/rrt", "--output_dir", str(out), *quick])
    assert ended.value.code == 0, capsys.readouterr()
    one, two = (
        AutoModelForImageClassification.from_pretrained(folder).state_dict() for folder in (out / "stage-one", out)
    )
    differing = {name for name in two if not torch.equal(one[name], two[name])}
    assert differing == {"timm_model.fc.weight", "timm_model.fc.bias"}
    first = json.loads((out / "stage-one" / "results.json").read_text())["recipe"]
    assert (first["reweight"], first["retrain_head"], first["max_steps"]) == ("none", False, 2)
    assert (out / "results.json").is_file()
