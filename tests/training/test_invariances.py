"""What must not change with the batch's shape, the way rows come in, or how a metric is asked for."""

import numpy as np
import pytest
import small
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from conr_hf import shot_metrics
from conr_hf.metrics import flat

STEPS = 20
# One view of each image as it is, so that what a step sees can be computed by hand.
PLAIN = {"num_views": 1, "crop_padding": 0.0, "horizontal_flip": False}


def as_pixels(data, processor):
    return processor(images=list(data["image"]), return_tensors="pt")["pixel_values"]


class Dictionaries(Dataset):
    """Rows ready for the model, as a user's own data set gives them."""

    def __init__(self, data, processor):
        self.pixels, self.labels = as_pixels(data, processor), torch.tensor(data["label"][:])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class Start(TrainerCallback):
    """Notes what the model predicts for some pixels before the first step."""

    def __init__(self, pixels):
        self.pixels = pixels

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            self.predictions = model.eval()(pixel_values=self.pixels).logits.numpy()


def figures(trainer, name):
    return np.array([entry[name] for entry in trainer.state.log_history if name in entry])


# ---- Batch shapes ---------------------------------------------------------------------------------------------------


def train(name, folder, rows, batch, accumulation, **changed):
    model, processor = small.models[name]()
    trainer = small.build(
        model,
        processor,
        folder,
        small.images(rows),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1e-3}),
        max_grad_norm=0.0,
        save_strategy="no",
        **{"conr_weight": 0.0, "max_steps": STEPS, **changed},
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("rows", [16, 13])  # 13: the last step of an epoch has 5 samples, in parts of 4 and 1
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", ["vit", "convnextv2"])
def test_accumulation_changes_nothing(name, views, rows, tmp_path):
    """Without this, a run on a smaller GPU is another run: Trainer's regression loss grows with the accumulation."""
    whole = train(name, tmp_path / "8x1", rows, 8, 1, num_views=views)
    parts = train(name, tmp_path / "4x2", rows, 4, 2, num_views=views)
    deviations = {}
    for figure in ("loss", "base_loss", "grad_norm"):
        assert len(figures(whole, figure)) == STEPS
        deviations[figure] = np.abs(figures(parts, figure) / figures(whole, figure) - 1).max()
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    deviations["weights"] = max((a - b).abs().max().item() for a, b in pairs)
    print(name, views, rows, {figure: f"{deviation:.1e}" for figure, deviation in deviations.items()})
    assert max(deviations.values()) < 1e-5


def test_the_logged_loss_is_the_mean_over_samples(tmp_path):
    """Logged once an epoch, of two steps of unequal size, the base loss is that of all samples since the last log."""
    every = train("vit", tmp_path / "1", 13, 4, 2)
    seldom = train("vit", tmp_path / "20", 13, 4, 2, logging_steps=STEPS)
    expected = figures(every, "base_loss").reshape(-1, 2) @ np.array([8, 5]) / 13
    assert figures(seldom, "base_loss") == pytest.approx(expected, rel=1e-5)


def stock_gradient_norms(folder, batch, accumulation):
    """Gradient norms of transformers' own Trainer on standardised labels, and what it logs as loss."""
    model, processor = small.models["vit"]()
    data = Dictionaries(small.images(16), processor)
    data.labels = (data.labels - data.labels.mean()) / data.labels.std()
    settings = small.settings(folder).to_dict()
    stock = {name: settings[name] for name in ("report_to", "disable_tqdm", "use_cpu", "logging_steps", "seed")}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        max_grad_norm=1e9,
        learning_rate=0.0,
        save_strategy="no",
        **stock,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    return figures(trainer, "grad_norm")


def test_the_stock_trainer_needs_it(tmp_path):
    """
    Upstream's bug, measured: Trainer's regression loss and gradient grow with gradient accumulation.

    A model whose forward takes keyword arguments is trusted to divide by the number of samples itself, and its mean
    squared error does not. If this test is skipped, transformers has mended that.
    """
    ratio = stock_gradient_norms(tmp_path / "4x2", 4, 2) / stock_gradient_norms(tmp_path / "8x1", 8, 1)
    wider = stock_gradient_norms(tmp_path / "2x4", 2, 4) / stock_gradient_norms(tmp_path / "8x1", 8, 1)
    print("gradient norm, 4x2 against 8x1:", ratio, "2x4 against 8x1:", wider)
    if np.abs(ratio - 1).max() < 1e-3:
        pytest.skip("this transformers scales its regression loss rightly: 4x2 and 8x1 give one gradient")
    assert ratio.min() > 1.5
    assert wider.min() > 1.5


# ---- Evaluation -----------------------------------------------------------------------------------------------------


def evaluated(folder, evaluation, train_rows=16, **changed):
    model, processor = small.models["vit"]()
    with torch.no_grad():
        model.classifier.weight.mul_(500)  # predictions that differ from row to row
        model.classifier.bias.fill_(40.0)
    return small.build(model, processor, folder, small.images(train_rows), evaluation, **changed)


def test_metrics_are_those_of_predict(tmp_path):
    data = small.images(11, seed=1)
    trainer = evaluated(tmp_path, data, train_rows=26, per_device_eval_batch_size=4)
    found = trainer.evaluate()
    predictions, labels = trainer.predict(data).predictions, np.array(data["label"])
    assert found["eval_mae"] == pytest.approx(np.abs(predictions - labels).mean(), rel=1e-6)
    expected = flat(shot_metrics(predictions, labels, trainer.train_dataset["label"][:]), prefix="eval_")
    assert expected["eval_few_n"] == 11
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_a_perfect_predictor_has_no_error(tmp_path):
    """Predictions of shape (N, 1) minus labels of shape (N,) would give a perfect model an error."""
    data = small.images(11, seed=1)
    trainer = evaluated(tmp_path, data)
    predictions = trainer.predict(data.remove_columns("label")).predictions
    assert np.ptp(predictions) > 1
    perfect = data.remove_columns("label").add_column("label", predictions.astype(float).tolist())
    found = trainer.evaluate(perfect)
    assert found["eval_mae"] < 1e-5
    assert found["eval_pearson"] == pytest.approx(1)
    assert found["eval_loss"] < 1e-6


@pytest.mark.parametrize("columns", [1, 2])
def test_predictions_have_the_same_shape_without_labels(columns, tmp_path):
    model, processor = small.models["vit"](["a", "b"][:columns])
    data = small.images(11, dimensions=columns)
    labels = [name for name in data.column_names if name != "image"]
    trainer = small.build(
        model, processor, tmp_path, data, label_columns=labels, per_device_eval_batch_size=4, bin_width=1.0
    )
    with_labels, without = trainer.predict(data), trainer.predict(data.remove_columns(labels))
    assert with_labels.predictions.shape == ((11,) if columns == 1 else (11, 2))
    np.testing.assert_array_equal(with_labels.predictions, without.predictions)
    assert with_labels.label_ids.shape == with_labels.predictions.shape
    assert without.label_ids is None


def test_drop_last_keeps_every_evaluation_row(tmp_path):
    data = small.images(11)
    trainer = evaluated(tmp_path, data, dataloader_drop_last=True, num_train_epochs=1)
    trainer.train()
    assert trainer.state.global_step == 2  # training drops nothing of 16 rows in batches of 8
    assert trainer.state.log_history[-2]["eval_n"] == 11
    assert len(trainer.predict(data).predictions) == 11
    assert trainer.args.dataloader_drop_last


def test_drop_last_drops_the_short_training_batch(tmp_path):
    trainer = evaluated(tmp_path, None, train_rows=13, dataloader_drop_last=True, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_metrics_of_the_user_are_added(tmp_path):
    shapes = []

    def own(prediction):
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"worst": float(np.abs(prediction.predictions - prediction.label_ids).max())}

    trainer = evaluated(tmp_path, small.images(11), compute_metrics=own)
    found = trainer.evaluate()
    assert shapes == [((11,), (11,))]
    assert found["eval_worst"] >= found["eval_mae"] > 0


def test_preprocess_logits_of_the_user_gets_predictions_in_the_labels_shape(tmp_path):
    trainer = evaluated(
        tmp_path, small.images(11), preprocess_logits_for_metrics=lambda logits, labels: logits.clamp(max=labels.max())
    )
    data = small.images(11)
    assert trainer.predict(data).predictions.shape == (11,)
    assert trainer.predict(data).predictions.max() <= max(data["label"])


def test_of_several_evaluation_sets_the_first_chooses(tmp_path):
    sets = {"near": small.images(11, seed=1), "far": small.images(9, seed=2)}
    trainer = evaluated(tmp_path, sets, num_train_epochs=3, learning_rate=1e-2)
    assert trainer.args.metric_for_best_model == "eval_near_mae"
    assert trainer.args.greater_is_better is False
    trainer.train()
    near = figures(trainer, "eval_near_mae")
    assert len(near) == len(figures(trainer, "eval_far_mae")) == 3
    assert trainer.state.best_metric == near.min()
    assert trainer.evaluate(sets["near"])["eval_mae"] == pytest.approx(near.min(), rel=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin", "convnextv2"])
def test_the_checkpoint_with_the_smallest_error_is_kept(name, tmp_path):
    """Trainer takes `mae` for a metric that should be large, and keeps the worst checkpoint."""
    model, processor = small.models[name]()
    data = small.images(16)
    # Labels that do not vary: the better the training data is fitted, the worse this becomes.
    same = data.map(lambda row: {"label": float(np.mean(data["label"]))})
    trainer = small.build(
        model, processor, tmp_path, data, same, num_train_epochs=3, learning_rate=3e-3, save_total_limit=1
    )
    trainer.train()
    errors = figures(trainer, "eval_mae")
    assert errors.argmin() == 0  # not the last, which is loaded anyway
    assert errors.max() > 1.1 * errors.min()
    assert trainer.state.best_metric == errors.min()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.evaluate()["eval_mae"] == pytest.approx(errors.min(), rel=1e-5)


# ---- Ways in for rows, weights and losses ---------------------------------------------------------------------------


def first_step(folder, data, own_processor=True, **changed):
    """Loss and gradient norm of a step over all 16 rows, and the predictions before it."""
    model, made = small.models["vit"]()
    start = Start(as_pixels(small.images(16), made))
    trainer = small.build(
        model,
        made if own_processor else None,
        folder,
        data,
        callbacks=[start],
        per_device_train_batch_size=16,
        max_steps=1,
        save_strategy="no",
        **{"conr_weight": 0.0, **PLAIN, **changed},
    )
    trainer.train()
    return trainer, start.predictions[:, 0]


def test_the_first_loss_is_that_of_hand_computation(tmp_path):
    data = small.images(16)
    trainer, predictions = first_step(tmp_path, data)
    expected = np.abs(predictions - data["label"]).mean() / np.std(data["label"])
    assert figures(trainer, "loss")[0] == pytest.approx(expected, rel=1e-6)
    assert figures(trainer, "base_loss")[0] == pytest.approx(expected, rel=1e-6)


def test_sample_weight_multiplies_the_base_loss(tmp_path):
    data = small.images(16)
    weights = np.linspace(0, 3, 16)
    trainer, predictions = first_step(tmp_path, data.add_column("sample_weight", weights.tolist()))
    expected = (weights * np.abs(predictions - data["label"])).mean() / np.std(data["label"])
    assert figures(trainer, "loss")[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("base_loss", ["mse", "huber"])
def test_other_base_losses_read_standardised_residuals(base_loss, tmp_path):
    data = small.images(16)
    trainer, predictions = first_step(tmp_path, data, base_loss=base_loss)
    residuals = torch.tensor((predictions - data["label"]) / np.std(data["label"]))
    functions = {"mse": torch.nn.functional.mse_loss, "huber": torch.nn.functional.huber_loss}
    expected = functions[base_loss](residuals, torch.zeros_like(residuals)).item()
    assert figures(trainer, "loss")[0] == pytest.approx(expected, rel=1e-6)


def with_transform(data, processor):
    def transform(rows):
        pixels = processor(images=rows["image"], return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": rows["label"]}

    return data.with_transform(transform)


def collate(rows):
    _, processor = small.models["vit"]()
    pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


@pytest.mark.parametrize("way", ["transform", "torch data set", "collator", "own views"])
@pytest.mark.parametrize("conr_weight", [0.0, 0.5])
def test_rows_of_the_users_own_making_give_the_same_step(way, conr_weight, tmp_path):
    data = small.images(16)
    expected, _ = first_step(tmp_path / "raw", data, conr_weight=conr_weight)
    _, processor = small.models["vit"]()
    changed = {}
    if way == "transform":
        data = with_transform(data, processor)
    elif way == "collator":
        changed["data_collator"] = collate
    else:
        data = Dictionaries(data, processor)
        if way == "own views":
            data.pixels = data.pixels[:, None]  # (V, C, H, W) with V = 1
    trainer, _ = first_step(tmp_path / "own", data, own_processor=False, conr_weight=conr_weight, **changed)
    assert trainer.resolved == expected.resolved
    for figure in ("loss", "base_loss", "grad_norm"):
        assert figures(trainer, figure)[0] == pytest.approx(figures(expected, figure)[0], rel=1e-5), figure
    assert trainer.predict(data).predictions.shape == (16,)


def test_two_views_of_the_users_own_count_as_one_sample(tmp_path):
    data = small.images(16)
    expected, _ = first_step(tmp_path / "raw", data)
    _, processor = small.models["vit"]()
    own = Dictionaries(data, processor)
    own.pixels = own.pixels[:, None].expand(-1, 2, -1, -1, -1)
    trainer, _ = first_step(tmp_path / "own", own, own_processor=False)
    for figure in ("loss", "grad_norm"):
        assert figures(trainer, figure)[0] == pytest.approx(figures(expected, figure)[0], rel=1e-5)


def squared(outputs, labels, num_items_in_batch=None):
    """A loss of the user's own, in label units, in the form that Trainer asks for."""
    errors = (outputs.logits[:, 0] - labels) ** 2
    return errors.mean() if num_items_in_batch is None else errors.sum() / num_items_in_batch


def test_a_loss_of_the_users_own_takes_the_base_loss_place(tmp_path):
    data = small.images(16)
    trainer, predictions = first_step(tmp_path, data, compute_loss_func=squared, conr_weight=0.5)
    expected = ((predictions - data["label"]) ** 2).mean() + 0.5 * figures(trainer, "conr_loss")[0]
    assert figures(trainer, "conr_loss")[0] > 0.1
    assert figures(trainer, "loss")[0] == pytest.approx(expected, rel=1e-6)
    found = trainer.evaluate(data)
    assert found["eval_loss"] == pytest.approx(found["eval_mse"], rel=1e-5)


def test_a_loss_of_the_users_own_need_not_read_the_predictions(tmp_path):
    def of_hidden(outputs, labels, num_items_in_batch=None):
        return outputs.hidden_states[-1].square().mean()

    data = small.images(16)
    model, processor = small.models["vit"]()
    model.config.output_hidden_states = True
    small.build(model, processor, tmp_path, data, compute_loss_func=of_hidden, rnc_weight=1.0, max_steps=1).train()
    share = small.build(
        model, processor, tmp_path, data, compute_loss_func=of_hidden, rnc_gradient_share=0.3, rnc_weight=None
    )
    with pytest.raises(ValueError, match=r"rnc_gradient_share is a share .* of which compute_loss_func reads none"):
        share.train()


def test_a_loss_of_the_users_own_is_independent_of_accumulation(tmp_path):
    # Two steps: with plain SGD a squared error in label units soon diverges.
    changed = {"compute_loss_func": squared, "max_steps": 2, "num_views": 2}
    whole = train("vit", tmp_path / "8x1", 13, 8, 1, **changed)
    parts = train("vit", tmp_path / "4x2", 13, 4, 2, **changed)
    for figure in ("loss", "grad_norm"):
        np.testing.assert_allclose(figures(parts, figure), figures(whole, figure), rtol=1e-5)


def test_no_base_loss_is_logged_that_was_not_computed(tmp_path):
    trainer, _ = first_step(tmp_path, small.images(16), compute_loss_func=squared)
    assert len(figures(trainer, "base_loss")) == 0


def test_conr_is_part_of_the_loss_by_its_weight(tmp_path):
    trainer, _ = first_step(tmp_path, small.images(16), conr_weight=0.5, num_views=2)
    loss, base, conr = (figures(trainer, name)[0] for name in ("loss", "base_loss", "conr_loss"))
    assert conr > 0.1
    assert loss == pytest.approx(base + 0.5 * conr, rel=1e-6)
    assert 0 < figures(trainer, "conr_anchors")[0] <= 1


@pytest.mark.parametrize("own_loss", [False, True])
def test_a_loss_that_is_not_finite_stops_training(own_loss, tmp_path):
    """transformers would log the last finite loss again and go on, to a model that predicts nan."""
    model, processor = small.models["vit"]()
    diverging = {
        True: {"compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs.logits.sum() * float("nan")},
        False: {"learning_rate": 1e38},
    }
    trainer = small.build(model, processor, tmp_path, small.images(16), conr_weight=0, **diverging[own_loss])
    with pytest.raises(FloatingPointError, match=r"loss is nan at step \d, on rows .*: training diverged\. Lower"):
        trainer.train()
