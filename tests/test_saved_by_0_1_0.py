"""A run that version 0.1.0 saved: its model loads, and the run is evaluated, shown and gone on with as then."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.utils import logging

import conr_hf.pipeline  # noqa: F401 - registers the task
from conr_hf import load_regressor
from conr_hf.cli import main

SAVED = Path(__file__).parent / "helpers" / "saved_by_0.1.0"
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
CHECKPOINT = "run/" + EXPECTED["resumed"]["checkpoint"]


@pytest.fixture(autouse=True)
def _in_a_copy(tmp_path, monkeypatch):
    """Each test works where the saved files are, copied; the libraries' own messages are afterwards as they were."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    datasets.enable_progress_bars()


def conr(*arguments):
    """`conr-hf ARGUMENTS` in this process, which must succeed; what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code, err.getvalue()
    return out.getvalue()


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def predicted(split):
    """The predictions that the run wrote down, in the order of the split's rows."""
    with open("run/predictions.csv", newline="", encoding="utf-8") as file:
        return [float(row["prediction"]) for row in csv.DictReader(file) if row["split"] == split]


def photographs():
    rows = load_dataset("parquet", data_files={"test": "data/test.parquet"}, split="test", cache_dir="cache")
    return [image.convert("RGB") for image in rows["image"]]


def same(found, expected, rel=1e-4):
    """Figures of each shot, by name."""
    assert found.keys() == expected.keys()
    for shot in expected:
        assert found[shot] == pytest.approx(expected[shot], rel=rel)


@pytest.mark.parametrize(
    "load", [AutoModelForImageClassification.from_pretrained, lambda name: load_regressor(name, "age")[0]]
)
@torch.no_grad()
def test_the_model_predicts_what_it_did(load):
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = load("run").eval()
    assert model(pixel_values=pixels).logits[:, 0].tolist() == pytest.approx(EXPECTED["predictions"], rel=1e-4)
    assert model.config.id2label == {0: "age"}


@torch.no_grad()
def test_plain_transformers_predict_what_the_run_wrote_down():
    processor = AutoImageProcessor.from_pretrained("run")
    model = AutoModelForImageClassification.from_pretrained("run").eval()
    logits = model(**processor(images=photographs(), return_tensors="pt")).logits[:, 0]
    assert logits.tolist() == pytest.approx(predicted("test"), rel=1e-4)


def test_its_pipeline_knows_how_sure_it_is():
    predict = pipeline("image-regression", model="run", device="cpu")
    groups = read("run/intervals.json")["groups"]["age"]
    for image, value in zip(photographs()[:5], predicted("test"), strict=False):
        found = predict(image, interval=True)
        half = next(group for group in groups if group["high"] is None or value < group["high"])["half_width"]
        assert found["age"] == pytest.approx(value, rel=1e-4)
        assert found["age_low"] == pytest.approx(value - half, rel=1e-4)
        assert found["age_high"] == pytest.approx(value + half, rel=1e-4)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_finds_the_same_errors(split):
    """By shots of the training labels, which are those saved beside the model: the training split is not there."""
    Path("data/train.parquet").unlink()
    conr("evaluate", "run", "--data", "data", "--split", split, "--output", "evaluated")
    found = read("evaluated/results.json")
    same(found[split], EXPECTED["evaluation"][split])
    assert found["bins"] == read("run/results.json")["bins"]
    assert found["unit"] == "years"


def test_a_checkpoint_is_evaluated_as_in_training():
    conr("evaluate", CHECKPOINT, "--data", "data", "--split", "validation", "--output", "evaluated")
    logged = [entry for entry in read(f"{CHECKPOINT}/trainer_state.json")["log_history"] if "eval_mae" in entry][-1]
    found = read("evaluated/results.json")["validation"]
    assert f"{found['all']['mae']:.4f}" != f"{EXPECTED['evaluation']['validation']['all']['mae']:.4f}"
    for name in ("mae", "rmse", "gm", "bmae"):
        assert found["all"][name] == pytest.approx(logged[f"eval_{name}"], rel=1e-4)
        assert found["few"][name] == pytest.approx(logged[f"eval_few_{name}"], rel=1e-4)


def test_it_is_reported_and_described():
    card = Path("run/README.md").read_text(encoding="utf-8")
    Path("run/README.md").unlink()
    conr("card", "run")
    assert Path("run/README.md").read_text(encoding="utf-8").split("---")[1] == card.split("---")[1]
    conr("report", "run", "--output", "reported")
    of_the_run = read("reported/report.json")["runs"]["run"]
    assert of_the_run["mae"]["all"] == pytest.approx(EXPECTED["evaluation"]["test"]["all"]["mae"], rel=1e-4)


@pytest.mark.parametrize("recipe", ["run/recipe.yaml", "tiny.yaml"])
def test_a_resumed_run_ends_with_the_same_weights(recipe, caplog):
    """
    Those of the run that nothing interrupted, which lie in the folder, and with its smoothed features and noise. Its
    own recipe does not name the flips that were its default, nor the short one ConR and the second view.
    """
    whole = load_file("run/model.safetensors")
    Path("run/model.safetensors").unlink()
    were_defaults = ["--horizontal_flip", "true", "--conr_weight", "0.05", "--num_views", "2"]
    conr("train", recipe, *were_defaults, "--resume_from_checkpoint", CHECKPOINT)
    assert "was trained with" not in caplog.text
    found, results = load_file("run/model.safetensors"), read("run/results.json")
    assert results["resumed"]
    assert results["steps"] == EXPECTED["resumed"]["steps"]
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5)
    for name, values in EXPECTED["resumed"]["head"].items():
        assert found[name].flatten().tolist() == pytest.approx(values, rel=1e-4, abs=2e-5)
    for split, errors in EXPECTED["resumed_evaluation"].items():
        same(results[split], errors, rel=1e-3)
    saved, logged = (read(f"{folder}/trainer_state.json")["log_history"] for folder in (CHECKPOINT, "run"))
    assert logged[: len(saved)] == saved
    of_the_whole = read(SAVED / "run" / "trainer_state.json")["log_history"]
    noise, noise_of_the_whole = (
        [entry["noise_sigma"] for entry in history if "noise_sigma" in entry] for history in (logged, of_the_whole)
    )
    assert noise == pytest.approx(noise_of_the_whole, rel=1e-3)
