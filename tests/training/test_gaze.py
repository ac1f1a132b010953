"""Gaze through the trainer and the command line: angles in results and logs, and labels that are no radians."""

import json
import math

import numpy as np
import pytest
import torch
from command_line import OPTIONS, conr
from small import build, images, models, settings
from transformers import pipeline

import conr_hf.pipeline  # noqa: F401
from conr_hf import ConRTrainer, load_benchmark
from conr_hf.imbalance import make_bins
from conr_hf.metrics import angular_error, sample_shots
from conr_hf.metrics.gaze import label_errors

GAZE = {"label_columns": ["pitch", "yaw"]}


@pytest.fixture(scope="module")
def eyes():
    data = load_benchmark("eyes", "rows=120, size=16")
    return data["train"], data["validation"].select(range(60))


def gaze_trainer(folder, train, evaluation, **changed):
    return build(*models["timm-resnet"](["pitch", "yaw"]), folder, train, evaluation, **{**GAZE, **changed})


def in_degrees(rows):
    return rows.map(lambda row: {name: math.degrees(row[name]) for name in ("pitch", "yaw")})


def test_angles_of_every_shot():
    """Against means by hand over the shots' rows."""
    random = np.random.default_rng(0)
    train = random.normal(0, 0.2, (2000, 2))
    labels = random.uniform(-0.5, 0.5, (300, 2))
    predictions = labels + random.normal(0, 0.1, (300, 2))
    bins = make_bins(train, 0.05)
    found = label_errors(predictions, labels, bins, ["pitch", "yaw"])
    angles, shots = angular_error(predictions, labels), sample_shots(labels, bins)
    assert found["all"]["angular_error"] == pytest.approx(angles.mean())
    assert set(found) == {"all", "many", "median", "few"}
    for shot, rows in shots.items():
        assert found[shot]["angular_error"] == pytest.approx(angles[rows].mean())
        assert found[shot]["n"] == rows.sum()
    for columns in (["yaw", "pitch"], ["a", "b"]):
        assert "angular_error" not in label_errors(predictions, labels, bins, columns)["all"]
    of_degrees = label_errors(predictions, 60 * labels, make_bins(60 * train), ["pitch", "yaw"])
    assert "angular_error" not in of_degrees["all"]


@pytest.mark.parametrize("mode", [{}, {"conr_distance": "angular"}])
def test_a_run_on_eyes(eyes, tmp_path, mode):
    trainer = gaze_trainer(
        tmp_path, *eyes, metric_for_best_model="eval_few_angular_error", **mode, rnc_weight=0.5, conr_weight=0.05
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_mae" in entry]
    assert len(logged) == 1
    output = trainer.predict(eyes[1])
    angles = angular_error(output.predictions, output.label_ids)
    assert logged[0]["eval_angular_error"] == pytest.approx(angles.mean())
    assert output.metrics["test_angular_error"] == pytest.approx(angles.mean())
    few = sample_shots(output.label_ids, trainer.bins)["few"]
    assert logged[0]["eval_few_angular_error"] == pytest.approx(angles[few].mean())
    assert trainer.state.best_metric == logged[0]["eval_few_angular_error"]
    assert trainer.args.greater_is_better is False
    if mode:
        assert trainer.resolved.distance == "angular"
        step = next(entry for entry in trainer.state.log_history if "conr_loss" in entry)
        assert step["conr_anchors"] > 0
        assert step["rnc_loss"] > 0


def test_angles_choose_other_pairs_than_differences(eyes, tmp_path):
    losses = []
    for distance in ("mean_abs", "angular"):
        trainer = gaze_trainer(tmp_path, *eyes, conr_distance=distance, max_steps=1, conr_push_scale=50.0)
        trainer.train()
        losses.append(next(entry["conr_loss"] for entry in trainer.state.log_history if "conr_loss" in entry))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_degrees_are_warned_of_before_training(eyes, tmp_path, caplog):
    train, evaluation = map(in_degrees, eyes)
    trainer = gaze_trainer(tmp_path, train, evaluation, max_steps=1)
    trainer.train()
    messages = [record.message for record in caplog.records if "np.radians" in record.message]
    assert len(messages) == 2
    low, high = np.array([train["pitch"], train["yaw"]]).min(), np.array([train["pitch"], train["yaw"]]).max()
    assert messages[0] == (
        f"pitch and yaw of train_dataset run from {low:.1f} to {high:.1f}, more than a half turn: radians are "
        "expected; np.radians makes them of degrees. The angular error is left out."
    )
    metrics = trainer.evaluate()
    assert "eval_mae" in metrics
    assert not any("angular" in name for name in metrics)


def test_radians_in_training_and_degrees_in_evaluation_do_not_end_a_run(eyes, tmp_path, caplog):
    trainer = gaze_trainer(tmp_path, eyes[0], in_degrees(eyes[1]), max_steps=1)
    trainer.train()
    assert any("of eval_dataset run from" in record.message for record in caplog.records)
    assert "eval_angular_error" not in trainer.evaluate()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"conr_distance": "angular"}, "^conr_distance is angular, and pitch and yaw of train_dataset run from -"),
        (
            {"metric_for_best_model": "eval_angular_error"},
            "^metric_for_best_model is eval_angular_error, and pitch and yaw of train_dataset run from -",
        ),
        (
            {"metric_for_best_model": "eval_angular_error", "label_columns": ["yaw", "pitch"]},
            r"^metric_for_best_model is eval_angular_error, but label_columns is \['yaw', 'pitch'\]; the angle is",
        ),
    ],
)
def test_what_needs_radians_refuses_degrees_before_training(eyes, tmp_path, changed, says):
    trainer = gaze_trainer(tmp_path, *map(in_degrees, eyes), **changed)
    with pytest.raises(ValueError, match=says):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_command_line_tells_angles(tmp_path):
    options = {**OPTIONS, "label_columns": ["pitch", "yaw"], "conr_distance": "angular", "image_size": 16}
    flags = [word for name, value in options.items() for word in (f"--{name}", *np.atleast_1d(value))]
    drawn = ["--benchmark", "eyes", "--benchmark_source", "rows=200, size=16"]
    ended = conr("train", *drawn, *flags, "--output_dir", tmp_path)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "results.json").read_text())
    for split in ("validation", "test"):
        for shot, values in results[split].items():
            assert 0 < values["angular_error"] < 180
            assert results["baseline_median"][split][shot]["angular_error"] > 0
    assert results["unit"] == "rad"
    assert results["conr"]["distance"] == "angular"
    assert "angle [deg]" in ended.out
    all_of_test = next(line for line in ended.out.split("\ntest ")[1].splitlines() if line.startswith("all"))
    assert float(all_of_test.split()[-2]) == pytest.approx(results["test"]["all"]["angular_error"], rel=1e-3)
    card = (tmp_path / "README.md").read_text()
    assert "angle between labels" in card
    assert "| angle (°) |" in card
    assert "Angle on few-shot images (degrees)" in card
    predict = pipeline("image-regression", model=str(tmp_path))
    assert set(predict(load_benchmark("eyes", "rows=200, size=16")["test"][0]["image"])) == {"pitch", "yaw"}
    again = conr("evaluate", tmp_path, *drawn, "--output", tmp_path / "again")
    assert again.code == 0, again.err
    found = json.loads((tmp_path / "again" / "results.json").read_text())["test"]
    assert found["few"]["angular_error"] == pytest.approx(results["test"]["few"]["angular_error"], rel=1e-5)


# ---- A distance of the user's own ----------------------------------------------------------------------------------


def in_steps(a, b):
    return (a - b).abs().sum(-1).round()


def test_an_own_distance_takes_the_place_of_the_named_one(tmp_path):
    rows = images(16)
    logs = []
    for own in ({}, {"label_distance": lambda a, b: (a - b).abs().mean(-1)}, {"label_distance": in_steps}):
        trainer = build(
            *models["timm-resnet"](),
            tmp_path,
            rows,
            max_steps=2,
            conr_window=2.0,
            rnc_weight=1.0,
            conr_weight=0.05,
            **own,
        )
        trainer.train()
        logs.append([(e["conr_loss"], e["rnc_loss"]) for e in trainer.state.log_history if "conr_loss" in e])
    assert trainer.resolved.distance == "own"
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]))
    assert not np.allclose(logs[0], logs[2], rtol=1e-4)
    trainer.create_model_card()
    assert "label distance of the author's own" in (tmp_path / "README.md").read_text()


def test_an_own_distance_is_tried_out_before_training(tmp_path):
    model, processor = models["timm-resnet"]()
    trainer = ConRTrainer(
        model,
        settings(tmp_path),
        train_dataset=images(8),
        processing_class=processor,
        label_distance=lambda a, b: (a - b).sum(-1),
    )
    with pytest.raises(ValueError, match=r"distance returned -.* it must return numbers that are not negative"):
        trainer.train()
