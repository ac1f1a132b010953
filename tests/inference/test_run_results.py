"""`write_results`: a run of `ConRTrainer` leaves the folder that `conr-hf train` leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import conr, table_rows
from small import build, images, models
from transformers import AutoModelForImageClassification, pipeline

import conr_hf.pipeline  # noqa: F401, which registers it
from conr_hf import write_results
from conr_hf.cli.recipe import read_recipe
from conr_hf.cli.recipe_data import load_data
from conr_hf.inference.conformal import load_intervals
from conr_hf.training.conr_state import load_state

TEST = images(12, seed=2)
LOW, HIGH = 29.0, 32.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trainer, what `write_results` returned, and what the trainer measures."""
    folder = tmp_path_factory.mktemp("run")
    train, validation = images(32), images(24, seed=1)
    bounds = {"label_min": 20.0, "label_max": 85.0, "shot_thresholds": [1, 3], "bin_width": 5.0}
    trainer = build(*models["vit"](), folder, train, validation, learning_rate=3e-3, **bounds)
    trainer.train()
    results = write_results(trainer, TEST, unit="years")
    return folder, results, {**trainer.predict(TEST).metrics, **trainer.evaluate()}


def test_every_file_of_a_run_is_there_and_says_the_same(run):
    folder, results, measured = run
    assert {"model.safetensors", "results.json", "predictions.csv", "density.png", "intervals.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["test"]["all"]["mae"] == pytest.approx(measured["test_mae"])
    assert results["validation"]["all"]["mae"] == pytest.approx(measured["eval_mae"])
    assert (results["unit"], results["steps"], results["bins"]["thresholds"]) == ("years", 4, [1.0, 3.0])
    rows = [row for row in table_rows(folder / "predictions.csv") if row["split"] == "test"]
    assert [float(row["label"]) for row in rows] == pytest.approx(TEST["label"])
    card = (folder / "README.md").read_text()
    assert f"| all | 12 | {results['test']['all']['mae']:.4g} |" in card
    assert "over 3, 1 to 3, or under 1" in card


def test_the_commands_take_its_folder(run):
    folder, _, _ = run
    made, args, options = read_recipe([str(folder / "recipe.yaml"), "--data", "photos", "--model", "timm/test_resnet"])
    assert (args.learning_rate, args.label_min, options["num_train_epochs"]) == (3e-3, [20.0], 1)
    assert args.per_device_train_batch_size == 8
    assert conr("card", folder).code == 0
    with pytest.raises(ValueError, match="names neither data nor a benchmark"):
        load_data(replace(made, data=None), args)
    predict = pipeline("image-regression", model=str(folder))
    found = predict(TEST[0]["image"], interval=True)
    assert found["label_low"] <= found["label"] <= found["label_high"]


def test_bounds_are_kept_and_cut_what_is_measured_and_shown(tmp_path):
    validation = images(24, seed=1)
    narrow = [row for row, label in enumerate(validation["label"]) if LOW <= label <= HIGH]
    bounded = build(
        *models["vit"](),
        tmp_path,
        images(32).select([row for row, label in enumerate(images(32)["label"]) if LOW <= label <= HIGH]),
        validation.select(narrow * 10),
        label_min=LOW,
        label_max=HIGH,
        max_steps=2,
        learning_rate=1.0,
    )
    bounded.train()
    results = write_results(bounded)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    pixels = bounded.processing_class(images=[row["image"] for row in validation.select(narrow)], return_tensors="pt")
    with torch.no_grad():
        own = plain(**pixels).logits[:, 0].numpy()
    assert ((own < LOW) | (own > HIGH)).any()  # the saved model is a vanilla one
    cut = np.tile(np.clip(own, LOW, HIGH), 10)
    rows = table_rows(tmp_path / "predictions.csv")
    np.testing.assert_allclose([float(row["prediction"]) for row in rows], cut, rtol=1e-5)
    labels = np.array(validation.select(narrow * 10)["label"])
    assert results["validation"]["all"]["mae"] == pytest.approx(np.abs(cut - labels).mean(), rel=1e-5)
    assert bounded.evaluate()["eval_mae"] == pytest.approx(results["validation"]["all"]["mae"], rel=1e-5)
    assert load_state(str(tmp_path))[0].label_min == (LOW,)
    intervals = load_intervals(str(tmp_path))
    middle, low, high = intervals.ends(np.array([[LOW - 50], [30.0], [HIGH + 50]]))
    assert middle[:, 0].tolist() == [LOW, 30.0, HIGH]
    assert (low >= LOW).all()
    assert (high <= HIGH).all()
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_named_sets_of_a_run_without_validation_data(tmp_path, capsys):
    trainer = build(*models["resnet"](), tmp_path, images(8))
    results = write_results(trainer, {"near": TEST, "far": TEST.select(range(6))})
    assert (results["near"]["all"]["n"], results["far"]["all"]["n"]) == (12, 6)
    assert not (tmp_path / "intervals.json").exists()
    assert "\nnear " in capsys.readouterr().out
