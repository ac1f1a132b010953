"""`conr-hf report` as its users meet it: pictures, numbers and a page of finished runs, and what it refuses."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TEST_LABELS, TRAIN_LABELS, conr, photos, relabel, written
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from conr_hf.cli.report import figures as run_pictures
from conr_hf.cli.report.page import neighbour_rows, neighbour_title

PICTURES = {"density", "scatter", "curves", "worst", "features", "distances"}


@pytest.fixture(scope="module", autouse=True)
def _needs():
    pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    return photos(folder, train=TRAIN_LABELS, validation=TEST_LABELS, test=TEST_LABELS)


def trained(folder, data, **options):
    file = written(folder / "recipe.yaml", data=str(data), unit="years", **options)
    ended = conr("train", file, "--output_dir", folder / "run")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("first"), data, conr_weight=0.1)


@pytest.fixture(scope="module")
def reported(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    ended = conr("report", run, "--output", output)
    assert ended.code == 0, ended.err
    return ended, output


@pytest.fixture
def copy(run, tmp_path):
    """The run, to be damaged."""
    return shutil.copytree(run, tmp_path / "copy")


def pictures(folder):
    found = {path.stem for path in folder.glob("*.png")}
    assert found == {path.stem for path in folder.glob("*.svg")}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300
    return found


def shown(page):
    """Names of the pictures that a page shows; each is there."""
    links = re.findall(r"!\[.+\]\((.+)\)", page.read_text())
    assert all((page.parent / link).is_file() for link in links)
    return links


def test_every_picture_is_there_and_on_the_page(reported, run):
    ended, output = reported
    assert pictures(output) == PICTURES
    assert {Path(link).stem for link in shown(output / "index.md")} == PICTURES
    assert "(years)" in (output / "index.md").read_text()
    assert str(output / "index.md") in ended.out
    assert not (run / "report").exists()


def test_numbers_are_those_of_plain_transformers_and_scikit_learn(reported, run, data):
    neighbors, stats = pytest.importorskip("sklearn.neighbors"), pytest.importorskip("scipy.stats")
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    model, processor = (
        AutoModelForImageClassification.from_pretrained(run).eval(),
        AutoImageProcessor.from_pretrained(run),
    )
    *_, head = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    seen = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def features(split, count):
        images = [Image.open(data / split / f"{index:03}.png").convert("RGB") for index in range(count)]
        with torch.no_grad():
            model(**processor(images=images, return_tensors="pt"))
        return seen.pop().double().numpy()

    train, test = features("train", len(TRAIN_LABELS)), features("test", len(TEST_LABELS))
    labels = np.array(TEST_LABELS, float)
    regressor = neighbors.KNeighborsRegressor(5, metric="cosine")
    error = np.abs(regressor.fit(train, TRAIN_LABELS).predict(test) - labels)
    alone = np.abs(regressor.fit(test, labels).predict(None) - labels)
    first, second = np.triu_indices(len(test), 1)
    apart = pairwise.cosine_distances(test)
    found = json.loads((reported[1] / "report.json").read_text())
    assert (found["schema"], found["split"], found["unit"], found["targets"]) == (1, "test", "years", ["label"])
    numbers = found["runs"]["run"]
    assert numbers["samples"] == {"evaluated": 12, "unreadable": 0, "training": 131, "training_of": 131}
    assert numbers["knn_mae"]["training"]["all"] == pytest.approx(error.mean(), rel=1e-4)
    assert numbers["knn_mae"]["leave_one_out"]["all"] == pytest.approx(alone.mean(), rel=1e-4)
    correlation = stats.spearmanr(np.abs(labels[first] - labels[second]), apart[first, second]).statistic
    assert numbers["rank_correlation"] == pytest.approx(correlation, abs=1e-3)
    results = json.loads((run / "results.json").read_text())["test"]
    assert numbers["mae"] == {shot: values["mae"] for shot, values in results.items()}
    (line,) = (line for line in reported[0].out.splitlines() if line.startswith("MAE (years)"))
    assert float(line.split()[-1]) == pytest.approx(results["all"]["mae"], rel=1e-3)
    (title,) = (line for line in reported[0].out.splitlines() if "Where rare labels lie" in line)
    assert "all 4 few-shot bins that hold images, rarest first" in title


def test_the_rarest_labels_come_first_and_of_equally_rare_ones_the_farthest(reported):
    entries = [
        {"dimension": 0, "bin": bin_, "training_samples": n, "many_share": share, "samples": 1, "neighbours": []}
        for bin_, n, share in (([0, 1], 2, 1.0), ([4, 5], 2, 0.0), ([9, 10], 0, 0.0), (None, 0, 0.0), ([6, 7], 2, 0.5))
    ]
    found = run_pictures._rarest_first(entries, [3.0])
    assert [entry["bin"] for entry in found] == [None, [9, 10], [6, 7], [0, 1], [4, 5]]
    many = [{**entries[0], "bin": [place, place + 1]} for place in range(40)]
    assert neighbour_title(many) == "Where rare labels lie: 15 of 40 few-shot bins that hold images, rarest first"
    assert len(neighbour_rows(many, ["age"], "years")) == 1 + 15
    numbers = json.loads((reported[1] / "report.json").read_text())["runs"]["run"]["neighbour_bins"]
    assert [entry["bin"] for entry in numbers] == [None, [52, 53], [51, 52], [50, 51]]
    page = (reported[1] / "index.md").read_text()
    assert "rarest first:\n\n| rare labels" in page


def test_several_runs_against_each_other(run, data, tmp_path):
    other = trained(tmp_path, data, conr_weight=0, seed=1)
    ended = conr("report", run, other, "--split", "validation", "--output", tmp_path / "both")
    assert ended.code == 0, ended.err
    names = sorted(path.name for path in (tmp_path / "both").iterdir() if path.is_dir())
    assert len(names) == 2  # both are called "run"; told apart by the folders they are in
    assert pictures(tmp_path / "both") == {"density", "curves"}
    for name in names:
        assert pictures(tmp_path / "both" / name) == PICTURES
        assert name in ended.out.splitlines()[1]
    assert len(shown(tmp_path / "both" / "index.md")) == 2 + 2 * len(PICTURES)
    assert set(json.loads((tmp_path / "both" / "report.json").read_text())["runs"]) == set(names)


def test_by_default_the_report_is_in_the_run_and_may_be_written_again(copy):
    for _ in range(2):
        ended = conr("report", copy)
        assert ended.code == 0, ended.err
        assert pictures(copy / "report") == PICTURES


def test_two_label_columns(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 12)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        lines = ["file_name,pitch,yaw"]
        for index in range(count):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / f"{index:03}.png")
            lines.append(f"{index:03}.png,{random.uniform(-20, 20):.3f},{random.uniform(-30, 30):.3f}")
        (tmp_path / "photos" / split / "metadata.csv").write_text("\n".join(lines))
    ended = conr("report", trained(tmp_path, tmp_path / "photos", label_columns=["pitch", "yaw"]))
    assert ended.code == 0, ended.err
    assert pictures(tmp_path / "run" / "report") == PICTURES - {"distances"} | {"distances-1", "distances-2"}
    assert "pitch" in ended.out


def test_the_benchmark_is_drawn_on_the_map_from_a_draw_of_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr(run_pictures, "MOST_TRAINING", 40)
    file = written(tmp_path / "recipe.yaml", benchmark="earth-elevation", max_steps=1)
    assert conr("train", file, "--output_dir", tmp_path / "run").code == 0
    ended = conr("report", tmp_path / "run", "--split", "validation")
    assert ended.code == 0, ended.err
    assert pictures(tmp_path / "run" / "report") == PICTURES | {"map"}
    page = (tmp_path / "run" / "report" / "index.md").read_text()
    assert "159 validation images and of 40 of 5,817 training images" in page
    assert "elevation" in page


# ---- What is missing or wrong ---------------------------------------------------------------------------------------


def test_data_that_is_gone_leaves_out_what_needs_it(copy, data, tmp_path):
    (copy / "recipe.yaml").write_text((copy / "recipe.yaml").read_text().replace(str(data), str(tmp_path / "nowhere")))
    ended = conr("report", copy)
    assert ended.code == 0, ended.err
    assert pictures(copy / "report") == {"density", "scatter", "curves"}
    for text in (ended.out, (copy / "report" / "index.md").read_text()):
        assert f'left out: data "{tmp_path / "nowhere"}" is neither a folder' in text


def test_data_that_is_no_longer_what_the_run_saw_is_not_shown(copy, data, tmp_path):
    shutil.copytree(data, tmp_path / "photos")
    relabel(tmp_path / "photos", 3, 44, split="test")
    (copy / "recipe.yaml").write_text((copy / "recipe.yaml").read_text().replace(str(data), str(tmp_path / "photos")))
    ended = conr("report", copy)
    assert ended.code == 0, ended.err
    assert 'row 3 of split "test"' in ended.out
    assert "worst" not in pictures(copy / "report")


def test_an_image_that_cannot_be_read_any_more_is_left_out_and_counted(copy, data, tmp_path):
    shutil.copytree(data, tmp_path / "photos")
    (tmp_path / "photos" / "test" / "002.png").write_text("no image")
    (copy / "recipe.yaml").write_text((copy / "recipe.yaml").read_text().replace(str(data), str(tmp_path / "photos")))
    ended = conr("report", copy)
    assert ended.code == 0, ended.err
    assert "row 2" in ended.out
    numbers = json.loads((copy / "report" / "report.json").read_text())["runs"]["copy"]
    assert (numbers["samples"]["evaluated"], numbers["samples"]["unreadable"]) == (11, 1)


@pytest.mark.parametrize(
    ("gone", "left", "sentence"),
    [
        ("trainer_state.json", PICTURES - {"curves"}, "has no trainer_state.json"),
        ("model.safetensors", PICTURES - {"features", "distances"}, "is not a saved model"),
    ],
)
def test_what_the_run_has_lost_is_said(copy, gone, left, sentence):
    for path in list(copy.glob(gone)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = conr("report", copy)
    assert ended.code == 0, ended.err
    assert pictures(copy / "report") == left
    assert sentence in ended.out


def refused(*arguments):
    ended = conr("report", *arguments)
    assert ended.code == 2
    (line,) = ended.err.strip().splitlines()
    return line


def test_folders_that_are_no_runs(copy, tmp_path):
    assert "is not a run: there is no such folder" in refused(tmp_path / "nowhere")
    assert "is not a run: it has no results.json" in refused(tmp_path)
    assert "is given twice" in refused(copy, copy)
    assert 'no predictions for split "train"; it has some for validation, test' in refused(copy, "--split", "train")
    (copy / "results.json").write_text('{"unit": ')
    assert "is not a run that can be read" in refused(copy)
    (copy / "results.json").write_text("{}")
    assert "is not a run that can be read" in refused(copy)


def test_runs_on_different_labels_are_not_compared(run, copy):
    lines = (copy / "predictions.csv").read_text().splitlines()
    assert lines[-1].startswith("test,11,70,")
    (copy / "predictions.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(",70,", ",71,")]))
    assert "Report runs on different data one by one" in refused(run, copy)


def test_without_matplotlib_one_sentence_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "conr-hf[plots]"' in refused(run)


def test_the_command_says_what_it_takes():
    ended = conr("report", "--help")
    assert ended.code == 0
    assert all(part in ended.out for part in ("RUN", "--split", "--output"))
