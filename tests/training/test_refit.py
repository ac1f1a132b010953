"""`refit_head`: the line that is fitted, the rows that it is fitted on, and the model that holds it."""

import contextlib
import itertools
import json

import numpy as np
import pytest
import small
import torch
from command_line import table_rows
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation, TrainerCallback

from conr_hf import write_results
from conr_hf.data.splits import stratified_folds
from conr_hf.imbalance import make_bins
from conr_hf.inference.conformal import load_intervals
from conr_hf.training.refit import fit_line, fit_lines

TRAIN, VALIDATION = small.images(48), small.images(90, seed=1)


def build(folder, train=TRAIN, validation=VALIDATION, name="vit", **changed):
    torch.manual_seed(0)
    settings = {
        "refit_head": "affine",
        "bin_width": 5.0,
        "num_views": 1,
        "conr_weight": 0.0,
        "max_steps": 6,
        "learning_rate": 3e-3,
    }
    settings |= changed
    return small.build(*small.models[name](), folder, train, validation, **settings)


class SaveBefore(TrainerCallback):
    """Saves the model when training ends, which is before the re-fit."""

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.save_model(f"{args.output_dir}/before")


def with_callback(trainer):
    save = SaveBefore()
    save.trainer = trainer
    trainer.add_callback(save)
    return trainer


def predicted(folder, rows, processor, auto=AutoModelForImageClassification):
    """What plain transformers predicts."""
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**processor(images=rows["image"][:], return_tensors="pt")).logits
    return logits.double().numpy()


def bins_alike(labels, width=5.0):
    """Weights with which bins of a width weigh alike."""
    bins = np.floor(labels / width)
    return np.array([1 / (bins == own).sum() for own in bins])


def least_error(p, y, weights):
    """The least weighted absolute error of a line: one of those that pass through two of the points is the best."""
    errors = []
    for i, j in itertools.combinations(range(len(p)), 2):
        if p[i] != p[j]:
            slope = (y[i] - y[j]) / (p[i] - p[j])
            errors.append((weights * np.abs(y - slope * (p - p[i]) - y[i])).sum())
    return min(errors)


# ---- The line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_line_is_the_best_of_all_through_two_points(seed):
    random = np.random.default_rng(seed)
    y = np.round(random.exponential(20, 40), seed % 3)  # with ties
    p, weights = 0.4 * y + random.normal(size=40), random.random(40) ** 2
    slope, intercept = fit_line(p, y, weights)
    assert (weights * np.abs(slope * p + intercept - y)).sum() == pytest.approx(least_error(p, y, weights), rel=1e-9)
    far = fit_line(1e6 * p - 3e6, 1e6 * y + 5e6, weights)
    assert far == pytest.approx((slope, 1e6 * intercept + 5e6 + 3e6 * slope), rel=1e-6)


def test_a_dimension_without_gain_stays_as_it_is():
    random = np.random.default_rng(0)
    labels = random.exponential(20, (60, 3))
    predictions = labels.copy()
    predictions[:, 1] = 0.5 * labels[:, 1] + random.normal(size=60)
    predictions[:, 2] = -labels[:, 2]
    bins, folds = make_bins(labels, 10.0), np.arange(60) % 5
    found = fit_lines(predictions, labels, bins, folds, lambda values: values)
    assert found.slope[[0, 2]].tolist() == [1.0, 1.0]
    assert found.intercept[[0, 2]].tolist() == [0.0, 0.0]
    assert found.slope[1] == pytest.approx(2, rel=0.1)
    assert found.after < found.before


# ---- A run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = build(folder, max_steps=12, num_train_epochs=2)
    trainer.train()
    return folder, trainer, write_results(trainer, small.images(12, seed=2), unit="years")


def test_the_saved_model_is_the_best_one_and_the_best_line(run):
    folder, trainer, results = run
    refit = results["refit_head"]
    before = predicted(trainer.state.best_model_checkpoint, VALIDATION, trainer.processing_class)[:, 0]
    after = predicted(folder, VALIDATION, trainer.processing_class)[:, 0]
    np.testing.assert_allclose(after, refit["slope"] * before + refit["intercept"], rtol=1e-5)
    rows = np.setdiff1d(np.arange(len(VALIDATION)), kept_rows(folder))
    labels = np.array(VALIDATION["label"])[rows]
    error = (bins_alike(labels) * np.abs(after[rows] - labels)).sum()
    assert error == pytest.approx(least_error(before[rows], labels, bins_alike(labels)), rel=1e-5)
    assert refit["bmae_after"] < refit["bmae_before"]
    assert json.loads((folder / "results.json").read_text())["refit_head"] == refit


def kept_rows(folder):
    return np.array(
        [int(row["row"]) for row in table_rows(folder / "predictions.csv") if row["split"] == "validation"]
    )


def test_its_rows_neither_choose_nor_calibrate_nor_are_measured(run):
    folder, trainer, results = run
    kept = kept_rows(folder)
    assert len(kept) == len(set(kept)) == 60
    assert results["refit_head"]["rows"] == 30
    assert results["validation"]["all"]["n"] == 60
    assert sum(group.n for group in load_intervals(str(folder)).groups["label"]) == 60
    *chosen, last = [log["eval_mae"] for log in trainer.state.log_history if "eval_mae" in log]
    assert trainer.state.best_metric == min(chosen)
    labels = np.array(VALIDATION["label"])[kept]
    best = predicted(trainer.state.best_model_checkpoint, VALIDATION, trainer.processing_class)[kept, 0]
    assert np.abs(best - labels).mean() == pytest.approx(min(chosen), rel=1e-5)
    assert results["validation"]["all"]["mae"] == pytest.approx(last, rel=1e-6)


def test_the_card_names_the_gain(run):
    folder, trainer, results = run
    text = (folder / "README.md").read_text()
    refit = results["refit_head"]
    assert f"takes the balanced MAE from {refit['bmae_before']:.4g} to {refit['bmae_after']:.4g} years" in text
    (folder / "results.json").rename(folder / "elsewhere.json")  # as of a run in Python without write_results
    trainer.create_model_card()
    (folder / "elsewhere.json").rename(folder / "results.json")
    assert f"| all | 60 | {results['validation']['all']['mae']:.4g} |" in (folder / "README.md").read_text()


def test_each_bin_gives_a_third():
    labels = np.random.default_rng(0).exponential(20, 500)
    bins = make_bins(labels, 5.0)
    folds = stratified_folds(labels, bins, 3, seed=1)
    assert (folds == stratified_folds(labels, bins, 3, seed=1)).all()
    assert (folds != stratified_folds(labels, bins, 3, seed=2)).any()
    for own in np.unique(bins.index(labels)):
        counts = np.bincount(folds[bins.index(labels)[:, 0] == own], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_labels_in_another_unit(tmp_path):
    def other(rows):
        labels = (1024 * np.array(rows["label"]) + 5120).tolist()
        return rows.remove_columns("label").add_column("label", labels)

    ours, theirs = build(tmp_path / "a"), build(tmp_path / "b", other(TRAIN), other(VALIDATION), bin_width=5 * 1024.0)
    for trainer in (ours, theirs):
        trainer.train()
    predictions = [trainer.predict(small.images(12, seed=2)).predictions for trainer in (ours, theirs)]
    np.testing.assert_allclose(predictions[1], 1024 * predictions[0] + 5120, rtol=1e-3)
    slopes = [log_of(trainer)["refit_slope"] for trainer in (ours, theirs)]
    assert slopes[0] != 1
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2)


def log_of(trainer):
    return next(log for log in trainer.state.log_history if "refit_rows" in log)


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_a_resumed_run_is_the_uninterrupted_one_and_a_broken_one_keeps_its_head(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "load_best_model_at_end": False}
    whole, broken = build(tmp_path / "a", **settings), build(tmp_path / "b", callbacks=[Interrupt()], **settings)
    whole.train()
    with contextlib.suppress(KeyboardInterrupt):
        broken.train()
    assert not any("refit_rows" in log for log in broken.state.log_history)
    resumed = build(tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=True)
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert log_of(resumed) == log_of(whole)


def test_two_dimensions_with_averaged_weights(tmp_path):
    """Each has a line of its own, of the average, which is what is saved."""
    train, validation = small.images(48, dimensions=2), small.images(90, seed=1, dimensions=2)
    torch.manual_seed(0)
    model, processor = small.models["vit"](["first", "second"])
    columns = {"label_columns": ["label0", "label1"], "bin_width": 10.0, "ema_decay": 0.5, "save_strategy": "no"}
    settings = {"refit_head": "affine", "max_steps": 6, "learning_rate": 3e-3, **columns}
    trainer = with_callback(small.build(model, processor, tmp_path, train, validation, **settings))
    trainer.train()
    trainer.save_model(tmp_path / "after")
    found = log_of(trainer)
    before, after = (predicted(tmp_path / name, validation, processor) for name in ("before", "after"))
    for dimension, name in enumerate(columns["label_columns"]):
        line = found[f"refit_slope_{name}"] * before[:, dimension] + found[f"refit_intercept_{name}"]
        np.testing.assert_allclose(after[:, dimension], line, rtol=1e-5)
    assert found["refit_slope_label0"] != found["refit_slope_label1"]


def test_maps(tmp_path):
    train, validation = small.maps(8), small.maps(15, seed=1)
    model, processor = small.map_models["upernet"]()
    settings = {"refit_head": "affine", "max_steps": 4, "bin_width": 4.0, "per_device_train_batch_size": 4}
    trainer = with_callback(small.build(model, processor, tmp_path, train, validation, **settings))
    trainer.train()
    trainer.save_model(tmp_path / "after")
    found = log_of(trainer)
    assert found["refit_rows"] == 5
    auto = AutoModelForSemanticSegmentation
    before, after = (predicted(tmp_path / name, validation, processor, auto) for name in ("before", "after"))
    np.testing.assert_allclose(after, found["refit_slope"] * before + found["refit_intercept"], rtol=1e-4)
    # All pixels of these small maps are read, so the line is the best of theirs.
    rows = trainer.data.refit_rows()[0].indices
    labels = np.array(validation["label"][:])[rows]
    p = np.stack([trainer.predict(validation.select(rows)).predictions[place] for place in range(5)])
    there = ~np.isnan(labels)
    y, p = labels[there], p[there].astype(np.float64)
    slope, intercept = fit_line(p, y, bins_alike(y, 4.0))
    assert (slope, intercept) == pytest.approx((1, 0), abs=1e-3)  # nothing is left to be gained


def test_the_copy_that_an_adapter_trains_holds_the_line(tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = small.models["timm-resnet"]()
    lora = peft.LoraConfig(target_modules=["conv1.3"], modules_to_save=["timm_model.fc"])
    settings = {"refit_head": "affine", "bin_width": 5.0, "max_steps": 3, "rnc_weight": 0.5}
    trainer = small.build(peft.get_peft_model(model, lora), processor, tmp_path, TRAIN, VALIDATION, **settings)
    trainer.train()
    assert log_of(trainer)["refit_slope"] != 1
    trainer.save_model(tmp_path / "saved")
    merged = peft.PeftModel.from_pretrained(small.models["timm-resnet"]()[0], tmp_path / "saved").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    found = predicted(tmp_path / "merged", VALIDATION, processor)[:, 0]
    rest = trainer.predict(VALIDATION)
    kept = trainer.data.load_split(VALIDATION, "eval_dataset")[0].indices
    np.testing.assert_allclose(found[kept], rest.predictions, rtol=1e-4)


# ---- What cannot be re-fitted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validation", "changed", "sentence"),
    [
        (None, {}, "there is no evaluation set"),
        (TRAIN, {}, "eval_dataset is train_dataset"),
        (VALIDATION.select(range(45)), {}, "is 15 rows"),
        (VALIDATION, {"bin_width": 50.0}, "30 rows in 2 label bins"),
    ],
)
def test_refused_before_training(tmp_path, validation, changed, sentence):
    trainer = build(tmp_path, validation=validation, **changed)
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_output_behind_relu_is_refused(tmp_path):
    model, processor = small.map_models["dpt"]()
    trainer = small.build(model, processor, tmp_path, small.maps(4), small.maps(15, seed=1), refit_head="affine")
    with pytest.raises(ValueError, match="followed by a relu"):
        trainer.train()


def test_a_collator_of_ones_own(tmp_path):
    """Its rows' labels are read for the bins alone."""
    _, processor = small.models["vit"]()

    def collate(rows):
        pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    trainer = build(tmp_path, data_collator=collate)
    trainer.train()
    assert trainer.evaluate()["eval_n"] == 60
    assert log_of(trainer)["refit_rows"] == 30
