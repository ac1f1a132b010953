"""`conr-hf correct`: a finished run with a line through its predictions, and what cannot be corrected."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from command_line import conr, photos, table_rows, written
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

OPTIONS = {
    "bin_width": 8.0,
    "max_steps": 4,
    "conr_weight": 0.0,
    "num_views": 1,
    "unit": "mm",
    "horizontal_flip": True,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on photographs that are as bright as their label, and whose predictions are too much alike."""
    folder = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    labels = {split: np.round(20 + random.exponential(15, n), 2) for split, n in (("train", 40), ("validation", 75))}
    photos(folder / "photos", **labels, test=[20, 30, 40, 50])
    for split in ("train", "validation"):
        for index, label in enumerate(labels[split]):
            brightness = np.full((16, 16, 3), min(2.5 * label, 255), np.uint8)
            Image.fromarray(brightness).save(folder / "photos" / split / f"{index:03}.png")
    recipe = written(folder / "recipe.yaml", data=str(folder / "photos"), output_dir=str(folder / "run"), **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        ended = conr("train", recipe)
        assert ended.code == 0, ended.err
        yield folder / "run"


@pytest.fixture(scope="module")
def corrected(run):
    (run / "model.onnx").touch()  # of the model as it was
    ended = conr("correct", run)
    assert ended.code == 0, ended.err
    return run.with_name("run-corrected"), ended


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def rows_of(folder, split):
    return [row for row in table_rows(folder / "predictions.csv") if row["split"] == split]


def test_the_corrected_run_is_a_whole_run(run, corrected):
    folder, ended = corrected
    of_recipe = {"refit_head": "affine", "output_dir": str(folder)}
    assert results_of(folder)["recipe"] == results_of(run)["recipe"] | of_recipe
    names = {path.name for path in run.iterdir() if path.is_file()} - {"model.onnx"}
    assert {path.name for path in folder.iterdir()} == names
    before, after = results_of(run), results_of(folder)
    assert list(after) == [*list(before)[:-5], "refit_head", *list(before)[-5:]]
    assert after["refit_head"]["rows"] == 25
    assert after["validation"]["all"]["n"] == 50
    assert "refit_head" not in before
    assert (folder / "conr_state.safetensors").read_bytes() == (run / "conr_state.safetensors").read_bytes()
    intervals = json.loads((folder / "intervals.json").read_text())
    assert sum(group["n"] for group in intervals["groups"]["label"]) == 50
    card = (folder / "README.md").read_text()
    assert "| Affine re-fit of the head |" in card
    assert f"| all | 50 | {after['validation']['all']['mae']:.4g} |" in card
    assert ended.out.index("Before") < ended.out.index("Head re-fitted") < ended.out.index("After")
    assert "chose the epoch" in ended.out
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert log[: len(log) - 2] == json.loads((run / "trainer_state.json").read_text())["log_history"]


def test_its_model_is_the_runs_and_a_line(run, corrected):
    folder, _ = corrected
    line = results_of(folder)["refit_head"]
    processor = AutoImageProcessor.from_pretrained(run)
    pixels = processor([Image.open(run.parent / f"photos/test/{n:03}.png") for n in range(4)], return_tensors="pt")
    with torch.no_grad():
        before, after = (
            AutoModelForImageClassification.from_pretrained(place).eval()(**pixels).logits[:, 0].double().numpy()
            for place in (run, folder)
        )
    assert line["slope"] != 1
    np.testing.assert_allclose(after, line["slope"] * before + line["intercept"], rtol=1e-5)
    shown = [float(row["prediction"]) for row in rows_of(folder, "test")]
    np.testing.assert_allclose(shown, after, rtol=1e-4)


def test_evaluate_leaves_out_the_rows_of_the_fit(run, corrected, tmp_path):
    folder, _ = corrected
    assert conr("evaluate", folder, "--split", "validation", "--output", tmp_path).code == 0
    assert [row["row"] for row in rows_of(tmp_path, "validation")] == [
        row["row"] for row in rows_of(folder, "validation")
    ]
    assert results_of(tmp_path)["validation"]["all"]["mae"] == pytest.approx(
        results_of(folder)["validation"]["all"]["mae"], rel=1e-5
    )


def test_in_place(run, corrected, tmp_path):
    folder, _ = corrected
    own = tmp_path / "own"
    shutil.copytree(run, own)
    assert conr("correct", own, "--in_place").code == 0
    assert (own / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (own / "model.onnx").exists()
    assert (own / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "holds a run already"),
        (["--in_place", "--output_dir", "OUT"], "Both --in_place and --output_dir"),
        (["--output_dir", "OUT", "--data", "FEW"], "3 rows in 3 label bins"),
        (["--output_dir", "OUT", "--data", "NONE"], 'no split "validation"'),
    ],
)
def test_refused_with_a_sentence(run, corrected, tmp_path, options, sentence):
    places = {"FEW": tmp_path / "few", "NONE": tmp_path / "none", "OUT": tmp_path / "out"}
    photos(places["FEW"], train=[20, 30], validation=range(20, 110, 10))
    photos(places["NONE"], train=[20, 30])
    before = {path.name for path in run.iterdir()}
    ended = conr("correct", run, *(places.get(word, word) for word in options))
    assert ended.code == 2
    assert sentence in ended.err
    assert {path.name for path in run.iterdir()} == before
    assert not list(tmp_path.glob("out/*"))


def test_a_corrected_run_is_not_corrected_again(corrected):
    ended = conr("correct", corrected[0])
    assert ended.code == 2
    assert "re-fitted already" in ended.err
