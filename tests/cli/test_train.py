"""The command line as its users meet it: what a run leaves behind, and one clear sentence for what cannot be done."""

import json
import shutil
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import get_args

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from command_line import (
    TEST_LABELS,
    TRAIN_LABELS,
    conr,
    conr_process,
    few_photos,
    photos,
    relabel,
    table_rows,
    written,
)
from PIL import Image
from safetensors.torch import load_file
from small import TRANSFORMER, vit_config
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Trainer,
    TrainerState,
    ViTImageProcessor,
)
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import logging

import conr_hf.cli.train
from conr_hf import ConRConfig
from conr_hf.cli import options, recipe
from conr_hf.cli.recipe_data import load_data
from conr_hf.imbalance.density import DensityMethod
from conr_hf.imbalance.kernels import KernelName
from conr_hf.inference.conformal import Group, PredictionIntervals, write_intervals
from conr_hf.metrics import SHOTS


@pytest.fixture(scope="module", autouse=True)
def _quiet_and_apart(tmp_path_factory):
    """Own cache for data sets, and the libraries' own messages as they were."""
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    return photos(folder, train=TRAIN_LABELS, validation=TEST_LABELS, test=TEST_LABELS)


@dataclass
class Run:
    folder: Path
    out: str
    results: dict


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One tiny run that most tests look at."""
    folder = tmp_path_factory.mktemp("run")
    file = written(folder / "tiny.yaml", data=str(data), unit="years", num_train_epochs=1)
    ended = conr("train", file, "--output_dir", folder / "out", "--conr_weight", 0.1)
    assert ended.code == 0, ended.err
    return Run(folder / "out", ended.out, json.loads((folder / "out" / "results.json").read_text()))


# ---- What a run leaves behind ---------------------------------------------------------------------------------------


def test_the_run_folder_holds_all_that_was_promised(run):
    names = {path.name for path in run.folder.iterdir()}
    expected = {"config.json", "model.safetensors", "recipe.yaml", "results.json", "predictions.csv", "density.png"}
    assert expected <= names
    with Image.open(run.folder / "density.png") as plot:
        assert plot.format == "PNG"
        plot.load()
    assert str(run.folder) in run.out
    assert not list(run.folder.rglob("*.tmp")) + list(run.folder.rglob(".writable"))


def test_results_hold_what_a_reader_needs_to_compare(run):
    results = run.results
    assert list(results) == [
        *("schema", "command", "recipe", "hub_ids", "conr", "seed", "versions", "hardware", "train_seconds", "steps"),
        *("resumed", "peak_memory", "unit", "bins", "baseline_median", "fit", "validation", "test"),
    ]
    assert (results["schema"], results["seed"], results["steps"], results["unit"]) == (1, 42, 2, "years")
    assert results["command"].startswith("conr-hf ")
    assert results["recipe"]["model"] == "timm/test_resnet"
    assert results["conr"]["label_range"] == 29
    assert results["conr"]["window"] == pytest.approx(0.29)
    assert results["conr"]["weight"] == 0.1
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert isinstance(results["hardware"], str)
    assert results["train_seconds"] >= 0
    assert results["resumed"] is False
    assert 2**20 < results["peak_memory"] < 2**40
    (edges,), (counts,) = results["bins"]["edges"], results["bins"]["train_counts"]
    assert len(edges) == len(counts) + 1
    assert sum(counts) == len(TRAIN_LABELS)
    for split in ("validation", "test"):
        sizes = {shot: values["n"] for shot, values in results[split].items()}
        assert sizes == {"all": 12, "many": 4, "median": 4, "few": 4}
        for values in results[split].values():
            always = {"n", "mae", "mse", "rmse", "gm", "bmae"}
            assert always <= set(values) <= {*always, "pearson", "spearman"}
        median = np.median(TRAIN_LABELS)
        baseline = results["baseline_median"][split]["all"]["mae"]
        assert baseline == pytest.approx(np.abs(np.array(TEST_LABELS) - median).mean())


def test_predictions_are_those_of_plain_transformers_on_the_saved_model(run, data):
    rows = [row for row in table_rows(run.folder / "predictions.csv") if row["split"] == "test"]
    assert [int(row["row"]) for row in rows] == list(range(12))
    assert [float(row["label"]) for row in rows] == TEST_LABELS
    assert [row["shot"] for row in rows] == [{30: "many", 40: "median"}.get(label, "few") for label in TEST_LABELS]
    assert [int(row["bin"]) for row in rows] == [label - 30 if label < 60 else -1 for label in TEST_LABELS]
    model = AutoModelForImageClassification.from_pretrained(run.folder).eval()
    processor = AutoImageProcessor.from_pretrained(run.folder)
    images = [Image.open(data / "test" / f"{index:03}.png").convert("RGB") for index in range(12)]
    with torch.no_grad():
        expected = model(**processor(images=images, return_tensors="pt")).logits[:, 0].numpy()
    np.testing.assert_allclose([float(row["prediction"]) for row in rows], expected, rtol=1e-5)
    assert run.results["test"]["all"]["mae"] == pytest.approx(np.abs(expected - TEST_LABELS).mean(), rel=1e-5)


def test_the_table_shows_every_shot_with_its_error_and_the_unit(run):
    header, _, *lines = printed_table(run.out, "test")
    assert "MAE [years]" in header
    for shot, line in zip(("all", "many", "median", "few"), lines, strict=True):
        cells = line.split()
        assert (cells[0], int(cells[1])) == (SHOTS[shot], run.results["test"][shot]["n"])
        assert float(cells[2]) == pytest.approx(run.results["test"][shot]["mae"], rel=1e-3)
        assert float(cells[3]) == pytest.approx(run.results["baseline_median"]["test"][shot]["mae"], rel=1e-3)


def test_the_saved_recipe_repeats_the_run(run, tmp_path):
    """Also one that starts from random weights, and whose command line changed the file it was started from."""
    saved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert (saved["conr_weight"], saved["resample"], saved["rnc_weight"]) == (0.1, "sqrt_inverse", 1.0)
    assert saved == run.results["recipe"]
    again = conr("train", run.folder / "recipe.yaml", "--output_dir", tmp_path / "again")
    assert again.code == 0, again.err
    results = json.loads((tmp_path / "again" / "results.json").read_text())
    for key in ("conr", "bins", "baseline_median", "validation", "test", "steps"):
        assert results[key] == run.results[key]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.folder, tmp_path / "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_command_line_beats_the_file_and_dashes_are_underscores(data, tmp_path):
    file = written(tmp_path / "r.yaml", data=str(data), max_steps=50, conr_weight=0.2, horizontal_flip=True)
    given = ["--max-steps", 1, "--conr_weight=0", "--no_horizontal_flip", "--output_dir", tmp_path / "out"]
    ended = conr("train", file, *given)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["steps"], results["conr"]["weight"]) == (1, 0)
    assert results["recipe"]["horizontal_flip"] is False


def test_a_run_that_was_cut_off_resumes(data, tmp_path):
    options = {"data": str(data), "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no", "max_steps": 3}
    file = written(tmp_path / "r.yaml", **options, output_dir=str(tmp_path / "run"))
    whole = conr("train", file)
    assert whole.code == 0, whole.err
    results, weights = (tmp_path / "run" / name for name in ("results.json", "model.safetensors"))
    expected, expected_weights = json.loads(results.read_text()), load_file(weights)
    results.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").unlink()  # cut off while it was written
    resumed = conr("train", file, "--resume_from_checkpoint", "true")
    assert resumed.code == 0, resumed.err
    assert "step     1 " not in resumed.out
    assert "step     2 " in resumed.out
    found = json.loads(results.read_text())
    assert (found["test"], found["steps"]) == (expected["test"], 3)
    assert all(torch.equal(weight, expected_weights[name]) for name, weight in load_file(weights).items())
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert "resume_from_checkpoint" not in recorded  # or the recipe could repeat nothing elsewhere
    state = TrainerState.load_from_json(tmp_path / "run" / "checkpoint-3" / "trainer_state.json")
    assert state.global_step == 3


def test_a_folder_that_holds_another_run_is_kept_or_replaced_as_asked(monkeypatch, run, data, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(run.folder, folder)
    for name in ("model.onnx", "mine.txt"):
        (folder / name).write_text("")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    file = written(tmp_path / "r.yaml", data=str(data), output_dir=str(folder), max_steps=1)
    ended = conr("train", file)
    assert_refused(ended, f'"{folder}" holds a run already (model.safetensors, results.json, checkpoint-2)')
    assert_refused(ended, "another --output_dir", "--resume_from_checkpoint true", "--overwrite_output_dir true")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    bad = conr("train", file, "--overwrite_output_dir", "true", "--label_columns", "age")
    assert_refused(bad, 'no column "age"')
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before  # nothing is lost to bad input
    ended = conr("train", file, "--overwrite_output_dir", "true")
    assert ended.code == 0, ended.err
    assert not (folder / "model.onnx").exists()
    assert (folder / "mine.txt").exists()
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1"}
    (line,) = [line for line in ended.out.splitlines() if line.startswith("Written to")]
    assert line.startswith(f"Written to {folder}: README.md, config.json")
    assert "mine.txt" not in line
    assert "overwrite_output_dir" not in yaml.safe_load((folder / "recipe.yaml").read_text())


def test_a_validation_split_is_taken_from_the_training_rows_where_it_is_asked_for(data, tmp_path):
    photos_ = tmp_path / "photos"
    for split in ("train", "test"):
        shutil.copytree(data / split, photos_ / split)
    table = photos_ / "train" / "metadata.csv"
    header, *lines = table.read_text().splitlines()
    people = [f"{line},p{row // 3}" for row, line in enumerate(lines)]  # three photos each
    table.write_text("\n".join([f"{header},person", *people]) + "\n")
    test = photos_ / "test" / "metadata.csv"
    header, *lines = test.read_text().splitlines()
    test.write_text("\n".join([f"{header},person", *(f"{line},q" for line in lines)]) + "\n")
    file = written(tmp_path / "r.yaml", data=str(photos_), output_dir=str(tmp_path / "out"), max_steps=1)
    recipe_, args, _ = recipe.read_recipe([str(file), "--validation_share", "0.2", "--group_column", "person"])
    sets, _, _ = load_data(recipe_, args)
    assert len(sets["train"]) + len(sets["validation"]) == len(TRAIN_LABELS)
    assert 15 <= len(sets["validation"]) <= 30
    assert not set(sets["train"]["person"]) & set(sets["validation"]["person"])
    assert sorted([*sets["train"]["label"], *sets["validation"]["label"]]) == sorted(TRAIN_LABELS)
    again = load_data(recipe_, replace(args, seed=7))[0]
    assert (
        again["validation"]["person"][:] == sets["validation"]["person"][:]
    )  # runs of several seeds are compared on it
    ended = conr("train", file)
    assert ended.code == 0, ended.err
    assert "No validation data: nothing is measured" in ended.out
    ended = conr("train", file, "--overwrite_output_dir", "true", "--validation_share", "0.2")
    assert ended.code == 0, ended.err
    assert "No validation data" not in ended.out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["recipe"]["validation_share"] == 0.2
    assert results["validation"]["all"]["n"] + sum(results["bins"]["train_counts"][0]) == len(TRAIN_LABELS)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--validation_share", "0.7"], ["validation_share is 0.7", "at most 0.5"]),
        (["--validation_share", "0.2", "--streaming", "true"], ["validation_share", "stream"]),
        (["--validation_share", "0.2"], ['the data has a split "validation"', "Leave it out"]),
    ],
)
def test_a_validation_split_that_cannot_be_taken(monkeypatch, data, tmp_path, given, parts):
    file = written(tmp_path / "r.yaml", data=str(data), output_dir=str(tmp_path / "out"))
    assert_refused(train_refused(monkeypatch, tmp_path, file, *given), *parts)


def test_a_model_that_learnt_nothing_is_said_so_in_table_card_and_last_line(run):
    """Two steps on noise."""
    found = run.results["fit"]["test"]
    assert found["best_constant"] == [40.0]
    assert found["best_constant_mae"] == pytest.approx(np.abs(np.array(TEST_LABELS) - 40).mean())
    assert run.results["test"]["all"]["mae"] >= found["best_constant_mae"]
    warning = "Warning: on test, the model "
    assert run.out.count(warning) == 2
    assert run.out.strip().splitlines()[-1].startswith(warning)
    assert "**On test, the model" in (run.folder / "README.md").read_text()


def test_rows_that_cannot_be_read_are_named_and_left_out(tmp_path, caplog):
    """The rest of a column with a text among its numbers is text to a CSV reader too; it is still read as numbers."""
    folder = few_photos(tmp_path / "photos")
    relabel(folder, 4, "31 years")
    relabel(folder, 7, "")
    (folder / "train" / "005.png").write_text("no image")
    (folder / "test" / "002.png").write_text("no image")
    file = written(tmp_path / "r.yaml", data=str(folder), output_dir=str(tmp_path / "out"))
    ended = conr("train", file, "--skip_bad_rows", "true", "--num_views", "2")
    assert ended.code == 0, ended.err
    train, test = caplog.messages
    assert "3 of 12 rows" in train
    for part in ('row 4, column "label": "31 years"', "row 5, column", "it is not an image", "row 7", "missing"):
        assert part in train
    assert "1 of 12 rows" in test
    rows = [row for row in table_rows(tmp_path / "out" / "predictions.csv") if row["split"] == "test"]
    assert [int(row["row"]) for row in rows] == [0, 1, *range(3, 12)]
    assert [float(row["label"]) for row in rows] == [TEST_LABELS[int(row["row"])] for row in rows]
    assert sum(json.loads((tmp_path / "out" / "results.json").read_text())["bins"]["train_counts"][0]) == 9


def test_one_image_left_over_that_batch_norm_cannot_normalise(tmp_path):
    folder = few_photos(tmp_path / "photos")
    file = written(tmp_path / "r.yaml", data=str(folder), per_device_train_batch_size=11)
    ended = conr("train", file, "--output_dir", tmp_path / "out")
    assert ended.code == 2
    assert "what 11 samples a batch leave over. Set dataloader_drop_last to true" in ended.err
    assert conr("train", file, "--output_dir", tmp_path / "out", "--dataloader_drop_last", "true").code == 0


def test_rows_are_named_as_the_table_has_them_where_a_validation_split_is_taken(tmp_path, caplog):
    folder = few_photos(tmp_path / "photos") / "train"
    relabel(folder.parent, 4, "31 years")
    (folder / "005.png").write_text("no image")
    file = written(tmp_path / "r.yaml", data=str(folder))
    given = [str(file), "--validation_share", "0.3"]
    recipe_, args, _ = recipe.read_recipe(given)
    with pytest.raises(ValueError, match=r'^data, row 4, column "label": "31 years" is not a number'):
        load_data(recipe_, args)
    recipe_, args, _ = recipe.read_recipe([*given, "--skip_bad_rows", "true"])
    sets = load_data(recipe_, args)[0]
    assert len(sets["train"]) + len(sets["validation"]) == 10
    (left_out,) = caplog.messages
    assert 'data: 2 of 12 rows left out: row 4, column "label": "31 years"' in left_out
    assert "row 5, column" in left_out
    with pytest.raises(ValueError, match=r'has no column "lable".* with group_column\. Did you mean "label"\?$'):
        load_data(replace(recipe_, group_column="lable"), args)


def test_a_process_of_its_own_prints_table_and_left_out_rows_only(tmp_path):
    folder = few_photos(tmp_path / "photos")
    (folder / "train" / "005.png").write_text("no image")
    file = written(tmp_path / "r.yaml", data=str(folder), output_dir=str(tmp_path / "out"), max_steps=1)
    ended = conr_process("train", file, "--skip_bad_rows", "true")
    assert ended.code == 0, ended.err
    assert "few" in ended.out
    assert ended.err.strip().splitlines() == [
        'train_dataset: 1 of 12 rows left out: row 5, column "image": the image cannot be read (it is not an image)'
    ]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"] == f"conr-hf train {file} --skip_bad_rows true"


# ---- Saved models in use --------------------------------------------------------------------------------------------


def printed_table(out, split):
    return out[out.index(f"\n{split} ") :].strip().split("\n\n")[0].splitlines()


def test_evaluate_prints_the_numbers_of_the_run(run, data, tmp_path):
    ended = conr("evaluate", run.folder, "--data", data, "--output", tmp_path / "evaluated", "--batch_size", 5)
    assert ended.code == 0, ended.err
    found, expected = ([line.split() for line in printed_table(out, "test")] for out in (ended.out, run.out))
    assert found == expected  # the unit above the columns too, which the data does not tell
    assert "[years]" in found[0]
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    for shot, values in run.results["test"].items():
        assert results["test"][shot] == pytest.approx(values, rel=1e-5)
    saved = [row for row in table_rows(run.folder / "predictions.csv") if row["split"] == "test"]
    found = table_rows(tmp_path / "evaluated" / "predictions.csv")
    assert [row["bin"] for row in found] == [row["bin"] for row in saved]
    assert (tmp_path / "evaluated" / "density.png").stat().st_size > 1000


def test_evaluate_without_training_data_takes_the_shots_saved_beside_the_model(run, data, tmp_path):
    shutil.copytree(data / "test", tmp_path / "photos" / "test")
    ended = conr("evaluate", run.folder, "--data", tmp_path / "photos", "--output", tmp_path / "evaluated")
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    for shot, values in run.results["test"].items():
        assert results["test"][shot] == pytest.approx(values, rel=1e-5)
    assert results["baseline_median"]["test"] == run.results["baseline_median"]["test"]


@pytest.mark.parametrize("place", [".", "checkpoint-2"])
def test_evaluate_of_a_run_knows_its_own_data(run, place):
    ended = conr("evaluate", run.folder / place)
    assert ended.code == 0, ended.err
    found, expected = ([line.split() for line in printed_table(out, "test")] for out in (ended.out, run.out))
    assert found[0] == expected[0]  # with the unit
    assert [line[:2] for line in found[2:]] == [line[:2] for line in expected[2:]]


def test_evaluate_says_whose_data_is_not_there(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "moved")
    recipe_file = tmp_path / "moved" / "recipe.yaml"
    options = yaml.safe_load(recipe_file.read_text()) | {"data": str(tmp_path / "gone")}
    recipe_file.write_text(yaml.safe_dump(options))
    ended = conr("evaluate", tmp_path / "moved")
    assert_refused(
        ended, f'"{tmp_path / "gone"}" is neither a folder', "moved's recipe.yaml; name the data with --data"
    )


def test_evaluate_takes_another_split(run, data):
    ended = conr("evaluate", run.folder, "--data", data, "--split", "validation")
    assert ended.code == 0, ended.err
    mae = float(printed_table(ended.out, "validation")[2].split()[2])
    assert mae == pytest.approx(run.results["validation"]["all"]["mae"], rel=1e-3)


@pytest.fixture
def predicted(run):
    """What the run predicted for its test images, by file name."""
    rows = [row for row in table_rows(run.folder / "predictions.csv") if row["split"] == "test"]
    return {f"{int(row['row']):03}.png": float(row["prediction"]) for row in rows}


def test_predict_prints_a_line_for_each_image(run, data, predicted):
    ended = conr("predict", run.folder, data / "test" / "003.png", data / "test" / "000.png")
    assert ended.code == 0, ended.err
    header, _, *lines = ended.out.splitlines()
    assert header.split() == ["image", "label"]
    found = {Path(line.split()[0]).name: float(line.split()[1]) for line in lines}
    assert list(found) == ["003.png", "000.png"]
    assert found == pytest.approx({name: predicted[name] for name in found}, rel=1e-4)


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_predict_writes_a_folder_to_a_file(run, data, predicted, tmp_path, ending):
    output = tmp_path / "new folder" / f"heights{ending}"
    ended = conr("predict", run.folder, data / "test", "--output", output, "--batch_size", 5)
    assert ended.code == 0, ended.err
    assert f"12 predictions written to {output}" in ended.out
    rows = table_rows(output) if ending == ".csv" else json.loads(output.read_text())
    assert list(rows[0]) == ["image", "label"]
    found = {Path(row["image"]).name: float(row["label"]) for row in rows}
    assert found == pytest.approx(predicted, rel=1e-5)


def test_predict_goes_on_past_a_file_it_cannot_read(run, data, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    whole = (data / "test" / "001.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    places = [data / "test" / "000.png", tmp_path / "text.png", tmp_path / "cut.png", data / "test" / "001.png"]
    ended = conr("predict", run.folder, *places, "--output", tmp_path / "out.json")
    assert ended.code == 2
    assert [row["image"] for row in json.loads((tmp_path / "out.json").read_text())] == [
        str(places[0]),
        str(places[3]),
    ]
    first, second = ended.err.strip().splitlines()
    assert first == f"conr-hf: {places[1]} cannot be read: it is not an image."
    assert second.startswith(f"conr-hf: {places[2]} cannot be read: ")


@pytest.fixture
def with_intervals(run, tmp_path):
    """The run with intervals: half a width of 3 below a prediction of 35, else of 7; labels are from 30 on."""
    folder = shutil.copytree(run.folder, tmp_path / "with-intervals")
    groups = [Group(None, 35.0, 3.0, 20), Group(35.0, None, 7.0, 20)]
    intervals = PredictionIntervals(0.9, "years", ["label"], "validation", {"label": groups}, {}, label_min=[30.0])
    write_intervals(folder, intervals)
    return folder


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder of Parquet files", "--data"])
def test_predict_takes_tables_and_data_sets(run, data, predicted, with_intervals, tmp_path, kind):
    """Without labels, with the ends of intervals, cut off where there can be no labels."""
    output = tmp_path / "out.csv"
    if kind == "csv":
        places = [data / "test.csv"]
        places[0].write_text("image\n" + "".join(f"test/{index:03}.png\n" for index in range(12)))
    elif kind == "--data":
        places = ["--data", data, "--split", "test"]
    else:
        (tmp_path / "parquet").mkdir()
        file = tmp_path / "parquet" / "test.parquet"
        cells = [{"bytes": (data / "test" / f"{i:03}.png").read_bytes(), "path": f"{i:03}.png"} for i in range(12)]
        rows = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image(decode=False))
        rows.to_parquet(str(file))
        places = [file if kind == "parquet" else file.parent]
    ended = conr("predict", with_intervals, *places, "--output", output, "--interval", "--batch_size", 5)
    assert ended.code == 0, ended.err
    assert f"12 predictions written to {output}" in ended.out
    rows = table_rows(output)
    assert list(rows[0]) == ["split", "row", "image", "label", "label_low", "label_high"]
    assert [int(row["row"]) for row in rows] == list(range(12))
    for row in rows:
        raw = predicted[Path(row["image"]).name]
        middle, width = max(raw, 30.0), 3.0 if max(raw, 30.0) < 35 else 7.0
        expected = [middle, max(middle - width, 30.0), middle + width]
        assert [float(row[name]) for name in ("label", "label_low", "label_high")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["files", "table"])
def test_predict_leaves_no_file_where_no_image_can_be_read(run, tmp_path, kind):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "table.csv").write_text("image\ntext.png\n")
    place = tmp_path / ("text.png" if kind == "files" else "table.csv")
    ended = conr("predict", run.folder, place, "--output", tmp_path / "out" / "y.csv")
    assert ended.code == 2
    assert "written" not in ended.out
    assert "nothing is predicted" in ended.err
    named = str(place) if kind == "files" else "train, row 0"
    assert f"conr-hf: {named} cannot be read: it is not an image." in ended.err
    assert not list((tmp_path / "out").iterdir())


# ---- Recipes and env ------------------------------------------------------------------------------------------------


def test_packaged_recipes_are_listed_shown_and_read():
    listed = conr("recipes")
    assert listed.code == 0
    assert "quickstart.yaml" in listed.out
    assert listed.out == conr("recipes", "list").out
    text = Path(recipe.FOLDER, "quickstart.yaml").read_text()
    assert conr("recipes", "show", "quickstart").out == text
    assert conr("recipes", "show", "recipes/quickstart.yaml").out == text
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml", "recipes\\quickstart.yaml"):
        made, args, options = recipe.read_recipe([name])
        assert made.benchmark == "earth-elevation"
        assert args.output_dir == options["output_dir"] == "runs/quickstart"


def test_every_recipe_of_the_package_can_be_read():
    """A renamed option would end a recipe with "unknown option"; launch configurations are accelerate's."""
    for name in recipe.names():
        if not name.startswith(("accelerate/", "study/")):
            options = yaml.safe_load(recipe.packaged(name).read_text())
            data = [] if {"data", "benchmark"} & set(options) else ["--data", "photos"]
            made, _, _ = recipe.read_recipe([name, *data])
            assert made.model == options["model"], name


def test_a_recipe_is_copied_and_replaces_nothing(tmp_path):
    assert conr("recipes", "copy", "quickstart", tmp_path / "mine.yaml").code == 0
    text = Path(recipe.FOLDER, "quickstart.yaml").read_text()
    assert (tmp_path / "mine.yaml").read_text() == text
    assert conr("recipes", "copy", "quickstart", tmp_path).code == 0
    assert (tmp_path / "quickstart.yaml").read_text() == text
    (tmp_path / "mine.yaml").write_text("mine")
    ended = conr("recipes", "copy", "quickstart", tmp_path / "mine.yaml")
    assert_refused(ended, f'"{tmp_path}/mine.yaml" exists', "another")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["show", "quikstart"], ['"quikstart"', "Did you mean quickstart.yaml?"]),
        (["show", "qqq"], ['"qqq"', "conr-hf recipes lists"]),
        (["show"], ["needs the name", "conr-hf recipes lists"]),
        (["copy"], ["needs the name", "conr-hf recipes lists"]),
        (["copy", "quickstart", "no/such/folder/mine.yaml"], ["no/such/folder/mine.yaml", "another"]),
    ],
)
def test_recipes_that_there_are_not(arguments, parts):
    assert_refused(conr("recipes", *arguments), *parts)


def test_env_is_json_with_what_a_bug_report_needs():
    ended = conr("env")
    assert ended.code == 0
    facts = json.loads(ended.out)
    assert {"python", "conr-hf", "torch", "transformers", "accelerate", "timm", "platform", "hardware"} <= set(facts)
    assert facts["torch"] == torch.__version__.partition("+")[0]


def test_help_names_the_commands_and_the_options_of_a_recipe():
    for arguments in (["--help"], ["train", "--help"], ["predict", "--help"]):
        assert conr(*arguments).code == 0
    assert "predict" in conr("--help").out
    options = conr("train", "--help").out
    assert "conr_weight" in options
    assert "%%" not in options


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["quickstart", "--lerning_rate", "1"], 2), (["quickstart", "--optim", "adamw"], 2)],
)
def test_help_and_mistyped_options_need_no_slow_imports(arguments, code):
    script = (
        "import sys\nfrom conr_hf.cli.main import main\n"
        f"try:\n    main(['train', *{arguments}])\n"
        "finally:\n    assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr


def test_options_read_from_source_are_those_of_the_classes():
    known = options.train_options()
    by_name = {option.name: option for of in (recipe.Recipe, ConRConfig) for option in fields(of) if option.init}
    assert set(known) == set(by_name)
    ours = [option.name for option in fields(recipe.Recipe)] + ConRConfig.own_fields()
    assert {name for name, option in known.items() if option.help} == set(ours)
    for name in ours:
        assert known[name].help == by_name[name].metadata["help"].replace("%%", "%"), name
        if by_name[name].default is not MISSING:
            assert known[name].default in (str(by_name[name].default), "1 / 14"), name
    assert known["lr_scheduler_type"].choices == [kind.value for kind in SchedulerType]
    assert known["optim"].choices == [kind.value for kind in OptimizerNames]
    assert known["lds"].choices == ["none", *get_args(KernelName)]
    assert known["resample"].choices == known["reweight"].choices == list(get_args(DensityMethod))
    assert known["save_strategy"].choices == ["no", "steps", "epoch", "best"]
    for name in ("debug", "report_to", "trackio_static_space_id", "conr_weight", "head", "label_columns"):
        assert known[name].choices == [], name


def test_options_of_a_recipe_without_effect_are_named_in_one_warning(caplog):
    recipe.read_recipe(
        ["recipes/own-data.yaml", "--data", "x", "--benchmark_source", "y", "--label_histogram", "x.csv"]
    )
    needs = "benchmark_source (needs benchmark), label_histogram (needs streaming)"
    assert caplog.messages == [f"Set, but without effect: {needs}."]


def test_an_option_in_yaml_means_what_it_looks_like(tmp_path):
    """YAML reads a bare `no` as false, `1e-3` as text and an empty list where a run reported to nothing."""
    (tmp_path / "r.yaml").write_text(
        "model: timm/test_resnet\ndata: photos\neval_strategy: no\nsave_strategy: no\nlearning_rate: 1e-3\n"
        'report_to: []\nlabel_columns: [a, b]\nlr_scheduler_kwargs: {"num_cycles": 2}\nconr_window: null\n'
    )
    made, args, options = recipe.read_recipe([str(tmp_path / "r.yaml")])
    assert made.data == "photos"
    assert (args.eval_strategy, args.save_strategy, args.learning_rate, args.report_to) == ("no", "no", 1e-3, [])
    assert args.label_columns == ["a", "b"]
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert args.conr_window is None
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(options))
    again = recipe.read_recipe([str(tmp_path / "again.yaml")])
    assert again[1].to_dict() == args.to_dict()
    assert again[2] == options


def test_data_takes_the_place_of_a_benchmark_and_null_leaves_an_option_out(tmp_path):
    made, _, options = recipe.read_recipe(["quickstart", "--data", "mine", "--benchmark", "null"])
    assert (made.data, made.benchmark) == ("mine", None)
    assert "benchmark" not in options
    again, args, _ = recipe.read_recipe(["quickstart", "--data", "mine"])
    assert again == made
    assert not args.horizontal_flip  # which is right for the heights of the benchmark
    assert recipe.read_recipe(["quickstart", "--data", "mine", "--horizontal_flip", "true"])[1].horizontal_flip
    (tmp_path / "r.yaml").write_text("model: x\ndata: mine\nunit: years\nreweight: inverse\nimage_size: 64\n")
    given = [str(tmp_path / "r.yaml"), "--benchmark", "earth-elevation", "--unit", "none", "--image-size=null"]
    made, args, _ = recipe.read_recipe([*given, "--reweight", "none"])
    assert (made.benchmark, made.data, made.unit, made.image_size) == ("earth-elevation", None, None, None)
    assert args.reweight == "none"  # which is one of its values


# ---- Bad input: one sentence, before any training -------------------------------------------------------------------


def assert_refused(ended, *parts):
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    (sentence,) = ended.err.strip().splitlines()
    assert sentence.startswith("conr-hf: ")
    assert sentence.endswith((".", "?"))
    for part in parts:
        assert part in sentence, sentence


def train_refused(monkeypatch, tmp_path, file, *arguments):
    def no_step(*args, **kwargs):
        raise AssertionError("training started")

    monkeypatch.setattr(Trainer, "training_step", no_step)
    before = set(tmp_path.rglob("*"))
    ended = conr("train", *([] if file is None else [file]), *arguments)
    made = {path.name for path in set(tmp_path.rglob("*")) - before}
    assert not {"results.json", "model.safetensors", ".writable"} & made
    return ended


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("conr_wieght: 1", ['r.yaml: unknown option "conr_wieght"', 'Did you mean "conr_weight"?']),
        ("data: x\nzzz: 1", ['r.yaml: unknown option "zzz"', "--help"]),
        ("model: [timm/test_resnet\ndata: x", ["r.yaml, line 2", "not YAML", "name: value"]),
        ("model: x\n\tdata: y", ["r.yaml, line 2", "not YAML"]),
        ("- model\n- data", ["r.yaml is not a recipe", "name: value"]),
        ("just words", ["r.yaml is not a recipe", "name: value"]),
        ("num_train_epochs: many", ["r.yaml, num_train_epochs", "'many'", "float", "--help"]),
        ("num_views: two", ["r.yaml, num_views", "'two'", "int"]),
        ("num_views: [1, 2]", ['r.yaml: "2" belongs to no option', "--name value"]),
        ("pretrained: maybe", ["r.yaml, pretrained", "maybe", "true/false"]),
        ("label_columns: []", ["r.yaml, label_columns", "at least one"]),
        ("lr_scheduler_type: cosin", ['r.yaml: lr_scheduler_type is "cosin"', "linear, cosine, "]),
        ("eval_strategy: epochs", ['r.yaml: eval_strategy is "epochs"', "no, steps, epoch"]),
        ("conr_temperature: 0", ["conr_temperature is 0.0", "greater than 0 (0.07"]),
        ("conr_push: quadratic", ['r.yaml: conr_push is "quadratic"', "exponential, linear"]),
        ("train_sampling_strategy: group_by_length", ['train_sampling_strategy is "group_by_length"', "random"]),
        ("per_device_train_batch_size: 0", ["per_device_train_batch_size is 0", "1 or more"]),
        ("learning_rate: -1", ["learning_rate is -1.0", "0 or more"]),
        ("data: x", ["No model is named", "model: ..."]),
        ("", ["No model is named", "--model"]),
        ("model: timm/test_resnet", ["either a benchmark or data"]),
        ("model: timm/test_resnet\ndata: x\nbenchmark: earth-elevation", ["either a benchmark or data", "not both"]),
    ],
)
def test_recipes_that_cannot_be_meant(monkeypatch, tmp_path, text, parts):
    (tmp_path / "r.yaml").write_text(text)
    assert_refused(train_refused(monkeypatch, tmp_path, tmp_path / "r.yaml"), *parts)


def test_a_recipe_that_is_no_text(monkeypatch, tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert_refused(train_refused(monkeypatch, tmp_path, tmp_path / "r.yaml"), "r.yaml: this is not YAML")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["quickstrat.yaml"], ['"quickstrat.yaml"', "Did you mean quickstart.yaml?"]),
        (["gg.yaml"], ['"gg.yaml"', "conr-hf recipes lists"]),
        (["quickstart", "--benchmark", "null"], ["either a benchmark or data"]),
        (["quickstart", "--eval_strategy", "none"], ['eval_strategy is "none"', "no, steps, epoch"]),
        (["qqq.yaml"], ['"qqq.yaml"', "conr-hf recipes lists"]),
        (["quickstart", "--conr_wieght", "1"], ['command line: unknown option "conr_wieght"', '"conr_weight"?']),
        (["quickstart", "--conr-wieght=1"], ['command line: unknown option "conr-wieght"', '"conr_weight"?']),
        (["quickstart", "--conr-push=quadratic"], ['command line: conr_push is "quadratic"', "exponential, linear"]),
        (["quickstart", "--lds", "cubic"], ['command line: lds is "cubic"', "none, gaussian, triangular, laplace"]),
        (["quickstart", "--num_train_epochs", "many"], ["command line, num_train_epochs", "'many'"]),
        (["quickstart", "--seed"], ["command line, seed", "expected one argument"]),
        (["quickstart", "quickstart.yaml"], ['command line: "quickstart.yaml" belongs to no option']),
        (["quickstart", "--benchmark", "earth-elevatoin"], ['"earth-elevatoin"', 'Did you mean "earth-elevation"?']),
        (["quickstart", "--model", "timm/test_resnt"], ['"test_resnt"', "Did you mean timm/test_resnet?"]),
        (["quickstart", "--model", "timm/zzzzzz"], ['"zzzzzz"', "timm.list_models()"]),
        (["quickstart", "--weights", "none.safetensors"], ['weights="none.safetensors" is not a file']),
        (["quickstart", "--image_size", "0"], ["image_size is 0", "1 or more"]),
        (["quickstart", "--head", "nonsense"], ['head="nonsense"', "timm_model.fc (512 -> 1)"]),
        (["quickstart", "--target", "pitch", "yaw"], ["predicts 2 values", "label_columns names 1 (label)"]),
    ],
)
def test_command_lines_that_cannot_be_meant(monkeypatch, tmp_path, arguments, parts):
    given = [*arguments, "--output_dir", tmp_path / "out"]
    assert_refused(train_refused(monkeypatch, tmp_path, None, *given), *parts)


def change_nothing(folder):
    pass


def cut_off(folder):
    image = folder / "train" / "005.png"
    image.write_bytes(image.read_bytes()[:-300])


def put_text(split, *rows):
    def change(folder):
        for row in rows:
            (folder / split / f"{row:03}.png").write_text("a text that someone named .png")

    return change


def put_label(row, label):
    return lambda folder: relabel(folder, row, label)


def rename_label(*splits):
    def change(folder):
        for split in splits:
            file = folder / split / "metadata.csv"
            file.write_text(file.read_text().replace("label", "label_years"))

    return change


def headers_only(folder):
    for split in ("train", "validation", "test"):
        (folder / split / "metadata.csv").write_text("file_name,label\n")


def remove_train(folder):
    shutil.rmtree(folder / "train")


def several(*changes):
    def change(folder):
        for one in changes:
            one(folder)

    return change


SPLITS = ("train", "validation", "test")
BAD_DATA = {
    "no such image column": (change_nothing, {"image_column": "photo"}, ['"photo"', "image, label", "image_column"]),
    "no such label column": (change_nothing, {"label_columns": ["labels"]}, ['"labels"', 'Did you mean "label"?']),
    "label column of another name": (rename_label(*SPLITS), {}, ['"label"', "label_columns", '"label_years"?']),
    "test labels of another name": (rename_label("test"), {}, ['split "test" has no column "label"']),
    "NaN": (put_label(4, "nan"), {}, ['train_dataset, row 4, column "label"', "missing", "skip_bad_rows"]),
    "infinite": (put_label(4, "inf"), {}, ['train_dataset, row 4, column "label"', "inf"]),
    "no label": (put_label(4, ""), {}, ['train_dataset, row 4, column "label"', "missing", "Mend the data"]),
    "text": (put_label(4, "31 years"), {}, ['train_dataset, row 4, column "label": "31 years" is not a number.']),
    "two rows": (
        several(put_label(4, "31 years"), put_label(6, "old")),
        {},
        ['row 4, column "label": "31 years"', "1 more row cannot be used", "skip_bad_rows"],
    ),
    "cut-off image": (cut_off, {}, ['train_dataset, row 5, column "image"', "truncated", "skip_bad_rows"]),
    "text for an image": (put_text("train", 5), {}, ['train_dataset, row 5, column "image"', "not an image"]),
    "bad image in validation": (put_text("validation", 2), {}, ['eval_dataset, row 2, column "image"']),
    "bad image in test": (put_text("test", 2), {}, ['test data, row 2, column "image"']),
    "no good image": (
        put_text("train", *range(12)),
        {"skip_bad_rows": True},
        ["train_dataset has no row that can be used", "row 0", "not an image"],
    ),
    "no image file": (
        lambda folder: (folder / "train" / "003.png").unlink(),
        {},
        ["train_dataset, row 3", "No such file", "003.png"],
    ),
    "nothing below the header": (headers_only, {}, ["cannot be read", "no rows"]),
    "no training split": (
        lambda folder: shutil.rmtree(folder / "train"),
        {},
        ['no split "train"', "validation, test"],
    ),
    "folder names for labels": (
        lambda folder: [(folder / split / "metadata.csv").unlink() for split in SPLITS],
        {},
        ['split "train" has no column "label"'],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_trained_on(monkeypatch, tmp_path, case):
    change, options, parts = BAD_DATA[case]
    change(few_photos(tmp_path / "photos"))
    file = written(tmp_path / "r.yaml", data=str(tmp_path / "photos"), output_dir=str(tmp_path / "out"), **options)
    assert_refused(train_refused(monkeypatch, tmp_path, file), *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("photos.csv", "image,label\n", ["photos.csv", "no rows"]),
        ("photos.csv", "", ["photos.csv", "cannot be read"]),
        ("photos.parquet", "no parquet", ["photos.parquet", "cannot be read"]),
        ("photos.txt", "image,label\n", ["photos.txt", ".csv, .tsv, .json, .jsonl, .parquet"]),
        ("missing.csv", None, ["missing.csv", "neither a folder, a file nor an id on the Hub (owner/name)"]),
        ("photos.csv", "image,label\nnone.png,1\n", ["train_dataset, row 0", "No such file", "none.png"]),
    ],
)
def test_tables_that_cannot_be_read(monkeypatch, tmp_path, name, content, parts):
    if content is not None:
        (tmp_path / name).write_text(content)
    file = written(tmp_path / "r.yaml", data=str(tmp_path / name), output_dir=str(tmp_path / "out"))
    assert_refused(train_refused(monkeypatch, tmp_path, file), *parts)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models that predict in other ways than a regressor of images does."""
    folder = tmp_path_factory.mktemp("models")
    two = DeiTForImageClassificationWithTeacher(DeiTConfig(**TRANSFORMER, intermediate_size=32))
    two.save_pretrained(folder / "two-heads")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "two-heads")
    BertConfig().save_pretrained(folder / "text-model")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "two-heads",
            ["No single regression head", "cls_classifier (16 -> ", "distillation_", 'head="..."'],
        ),
        ("text-model", ['text-model" could not be loaded', "BertConfig", "Give a local folder"]),
        ("broken", ['broken" could not be loaded', "not a valid JSON", "Give a local folder"]),
    ],
)
def test_models_that_are_no_regressors(monkeypatch, models, data, tmp_path, name, parts):
    options = {"model": str(models / name), "pretrained": True, "image_size": None, "data": str(data)}
    file = written(tmp_path / "r.yaml", output_dir=str(tmp_path / "out"), **options)
    assert_refused(train_refused(monkeypatch, tmp_path, file), *parts)


def test_a_model_of_the_hub_without_a_network_in_a_process_of_its_own(data, tmp_path):
    options = {"model": "google/vit-base-patch16-224", "pretrained": True, "image_size": None, "data": str(data)}
    file = written(tmp_path / "r.yaml", output_dir=str(tmp_path / "out"), **options)
    ended = conr_process("train", file, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    assert_refused(ended, '"google/vit-base-patch16-224" could not be loaded', "connect", "pretrained=False")


def test_an_output_folder_that_cannot_be_written(monkeypatch, run, data, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        file = written(tmp_path / "r.yaml", data=str(data), output_dir=str(folder))
        assert_refused(train_refused(monkeypatch, tmp_path, file), f'"{folder}" cannot be written', "Name another")
    below = tmp_path / "file" / "below"
    assert_refused(conr("evaluate", run.folder, "--data", data, "--output", below), f'"{below}" cannot be written')
    predicted = conr("predict", run.folder, data / "test", "--output", below / "x.csv")
    assert_refused(predicted, f'"{below}" cannot be written')


def test_resuming_where_there_is_nothing_to_resume(monkeypatch, data, tmp_path):
    file = written(tmp_path / "r.yaml", data=str(data), output_dir=str(tmp_path / "out"))
    ended = train_refused(monkeypatch, tmp_path, file, "--resume_from_checkpoint", "true")
    assert_refused(ended, f'"{tmp_path}/out" holds no complete checkpoint', "without resuming")
    ended = train_refused(monkeypatch, tmp_path, file, "--resume_from_checkpoint", tmp_path / "none")
    assert_refused(ended, f'resume_from_checkpoint is "{tmp_path}/none"', "checkpoint-N")


def test_processes_that_do_not_train_together(monkeypatch, data, tmp_path):
    """As a launcher for GPUs leaves them where one process cannot see the others: each would train alone."""
    load = conr_hf.cli.train.load_regressor

    def load_in_a_launched_process(*args, **kwargs):
        monkeypatch.setenv("WORLD_SIZE", "2")
        return load(*args, **kwargs)

    monkeypatch.setattr(conr_hf.cli.train, "load_regressor", load_in_a_launched_process)
    file = written(tmp_path / "r.yaml", data=str(data), output_dir=str(tmp_path / "out"))
    ended = train_refused(monkeypatch, tmp_path, file)
    assert_refused(ended, "started 2 processes", "groups of 1", "accelerate launch --multi_gpu --num_processes 2")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["evaluate", "RUN", "--data", "DATA", "--split", "nope"], ['"nope"', "train, validation, test", "--split"]),
        (["evaluate", "RUN", "--data", "DATA", "--label_columns", "age"], ['no column "age"', "label_columns"]),
        (["evaluate", "RUN", "--benchmark", "earth"], ['"earth"', 'Did you mean "earth-elevation"?']),
        (["evaluate", "DATA", "--data", "DATA"], ["is not a saved model", "Give a run folder or a model id"]),
        (["evaluate", "MODELS/text-model", "--data", "DATA"], ["is not a saved model", "BertConfig"]),
        (["predict", "RUN", "none.png"], ['no image or folder "none.png"']),
        (["predict", "RUN", "MODELS"], ["holds no image"]),
        (["predict", "RUN", "DATA", "--output", "x.txt"], ['"x.txt" must end in .csv or .json']),
        (
            ["predict", "no/model", "DATA"],
            ['"no/model" is not a saved model', "Give a run folder or a model id"],
        ),
        (["predict", "RUN"], ["Name what to predict", "--data"]),
        (["predict", "RUN", "DATA", "--data", "DATA"], ["Name what to predict", "--data"]),
        (["predict", "RUN", "DATA/test/000.png", "--split", "test"], ["--split", "image files have none"]),
        (["predict", "RUN", "--data", "DATA", "--split", "nope"], ['no split "nope"', "train, validation, test"]),
        (["predict", "RUN", "--data", "DATA", "--image_column", "photo"], ['no column "photo"', "--image_column"]),
        (["predict", "RUN", "DATA", "--interval"], ["has no intervals.json", "Leave out --interval"]),
        (["evaluate", "MODELS/text-model"], ["Name what to evaluate on", "--data or --benchmark"]),
        (["evaluate", "RUNX"], ['outX". Did you mean', "Give a run folder or a model id"]),
        (["predict", "runs/none", "DATA"], ['There is no folder "runs/none"']),
        (["demo", "./none"], ['There is no folder "./none"']),
        (["export", "RUN/model.safetensors", "--format", "onnx"], ["is a file, not a saved model"]),
        (["push", "RUNX", "me/model"], ['outX" is not a run: there is no such folder. Did you mean', '/out"?']),
        (["card", "RUNX"], ['outX" is not a run: there is no such folder']),
    ],
)
def test_saved_models_and_data_that_there_are_not(monkeypatch, run, data, models, arguments, parts):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    places = {"RUN": run.folder, "DATA": data, "MODELS": models}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert_refused(conr(*arguments), *parts)


def test_evaluate_of_a_model_of_elsewhere_needs_training_labels(models, data, tmp_path):
    shutil.copytree(data / "test", tmp_path / "photos" / "test")
    model = AutoModelForImageClassification.from_config(vit_config(num_labels=1))
    model.save_pretrained(tmp_path / "plain")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "plain")
    assert conr("evaluate", tmp_path / "plain", "--data", data).code == 0
    ended = conr("evaluate", tmp_path / "plain", "--data", tmp_path / "photos")
    assert_refused(ended, "training labels", "train_dataset")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "COMMAND"),
        (["tarin"], "invalid choice: 'tarin'"),
        (["predict", "RUN", "x.png", "--batch_size", "0"], "'0' must be a whole number, 1 or more"),
        (["evaluate", "RUN", "--data", "x", "--batch_size", "many"], "'many' must be a whole number"),
        (["evaluate", "RUN", "--data", "x", "--benchmark", "y"], "not allowed with argument --data"),
        (["evaluat", "RUN"], 'Did you mean "evaluate"?'),
        (["evaluate", "RUN", "--data", "x", "--splt", "test"], "--splt"),
        (["recipes", "remove"], "invalid choice: 'remove'"),
    ],
)
def test_commands_that_there_are_not_end_with_their_usage(arguments, part):
    ended = conr(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("usage: conr-hf")
    assert part in ended.err.splitlines()[-1]
