"""Maps from data on disk to what a user reads: the commands, the run folder, the model card."""

import json
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
from command_line import conr, photos, written
from PIL import Image
from safetensors.torch import load_file, save_file
from small import build
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    DPTConfig,
    DPTImageProcessor,
    pipeline,
)

import conr_hf.pipeline  # noqa: F401  (registers its task)
from conr_hf import load_regressor
from conr_hf.hub.upload_files import upload_files
from conr_hf.imbalance import Bins
from conr_hf.inference.evaluate_dense import MOST_SHOWN, chosen, streamed_errors
from conr_hf.metrics import depth_metrics, flat, shot_metrics_from_bins
from conr_hf.models.saved import load_saved

SIDE = 32


def depths(random):
    """A slope of long-tailed depths up to 7 m, in whole millimetres, 0 where there is none."""
    height = 1 + random.exponential(0.8)
    slope = np.add.outer(np.linspace(0, min(height, 5), SIDE // 2), np.linspace(0, 1, SIDE // 2))
    found = np.round(1000 * (1 + slope)).astype(np.uint16)
    found[:3, :5] = 0
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Parquet files of images and of maps half as large, as PNG of 16 bits."""
    folder, random = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
    for split, count in {"train": 24, "validation": 6, "test": 9}.items():
        maps = [depths(random) for _ in range(count)]
        grey = [
            np.clip(np.kron(one, np.ones((2, 2))) / 40 + random.normal(0, 5, (SIDE, SIDE)), 0, 255) for one in maps
        ]
        images = [Image.fromarray(one.astype(np.uint8)).convert("RGB") for one in grey]
        table = {"image": images, "depth": [Image.fromarray(one) for one in maps]}
        datasets.Dataset.from_dict(table, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def trained(folder, data, **options):
    ours = {"label_columns": ["depth"], "map_scale": 0.001, "map_invalid": 0, "unit": "m", "bin_width": 4}
    short = {"max_steps": 2, "conr_pixels": 16, "per_device_eval_batch_size": 4}
    file = written(folder / "recipe.yaml", data=str(data), **{**ours, **short, **options})
    return conr("train", file, "--output_dir", folder / "run")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of a timm backbone under a dense head."""
    folder = tmp_path_factory.mktemp("one")
    ended = trained(folder, data)
    assert ended.code == 0, ended.err
    (folder / "run" / "printed.txt").write_text(ended.out)
    return folder / "run"


@pytest.fixture(scope="module")
def depth_run(data, tmp_path_factory):
    """A run of a depth model of transformers."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("two")
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    necks = {"neck_hidden_sizes": [4, 4, 4, 4], "fusion_hidden_size": 4, "backbone_out_indices": [0, 1, 2, 3]}
    DPTConfig(image_size=SIDE, patch_size=16, **sizes, **necks).save_pretrained(folder / "dpt")
    DPTImageProcessor(size={"height": SIDE, "width": SIDE}, do_pad=False).save_pretrained(folder / "dpt")
    ended = trained(folder, data, model=str(folder / "dpt"), pretrained=False)
    assert ended.code == 0, ended.err
    return folder / "run"


def rows_of(data, split):
    return datasets.Dataset.from_parquet(str(data / f"{split}.parquet"))


def predicted(folder, image, loader, size):
    """What plain transformers makes of a saved model."""
    model, processor = loader.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model.eval()(**processor(images=[image], return_tensors="pt"))
    maps = outputs.predicted_depth[:, None] if loader is AutoModelForDepthEstimation else outputs.logits
    return torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize(
    ("name", "loader"), [("run", AutoModelForSemanticSegmentation), ("depth_run", AutoModelForDepthEstimation)]
)
def test_the_errors_are_those_of_plain_transformers_on_the_saved_model(name, loader, data, request):
    folder = request.getfixturevalue(name)
    results = json.loads((folder / "results.json").read_text())
    bins = Bins.from_dict(results["bins"])
    for split in ("validation", "test"):
        rows = rows_of(data, split)
        labels = np.stack([np.asarray(row["depth"]) for row in rows]) / 1000
        there = labels > 0
        maps = np.stack([predicted(folder, row["image"], loader, labels.shape[1:]) for row in rows])
        expected = shot_metrics_from_bins(maps[there], labels[there], bins)
        found = results[split]
        assert list(found) == list(expected) == ["all", "median", "few"]
        for shot, metrics in expected.items():
            del metrics["spearman"]  # which needs all pixels at once
            assert {figure: found[shot][figure] for figure in metrics} == pytest.approx(metrics, rel=1e-4, abs=1e-4), (
                shot
            )
        assert {k: found["all"][k] for k in ("abs_rel", "delta1")} == pytest.approx(
            {k: v for k, v in depth_metrics(maps, labels, there).items() if k in ("abs_rel", "delta1")}, rel=1e-4
        )
        median = np.full(there.sum(), results["conr"]["label_median"][0])
        expected = shot_metrics_from_bins(median, labels[there], bins)
        baseline = results["baseline_median"][split]
        assert {shot: metrics["mae"] for shot, metrics in baseline.items()} == pytest.approx(
            {shot: metrics["mae"] for shot, metrics in expected.items()}, rel=1e-6
        )


def test_shots_count_training_pixels(run, data):
    bins = json.loads((run / "results.json").read_text())["bins"]
    labels = np.stack([np.asarray(row["depth"]) for row in rows_of(data, "train")])
    assert sum(bins["train_counts"][0]) == (labels > 0).sum()
    assert bins["thresholds"] == pytest.approx([20 * (labels > 0).sum() / 24, 100 * (labels > 0).sum() / 24])


def test_the_run_folder_has_pictures_in_place_of_predictions(run):
    pytest.importorskip("matplotlib")
    there = {file.name for file in run.iterdir()}
    assert {"model.safetensors", "recipe.yaml", "results.json", "maps.png", "density.png", "README.md"} <= there
    assert not {"predictions.csv", "intervals.json"} & there
    with Image.open(run / "maps.png") as picture:
        assert picture.height > picture.width  # six rows of four
    printed = (run / "printed.txt").read_text()
    assert "no predictions.csv and no prediction intervals" in printed
    assert re.search(r"test +pixels +MAE \[m\] .* AbsRel +delta1", printed)


def test_evaluate_prints_the_numbers_of_the_run(run, data, tmp_path):
    checkpoint = next(run.glob("checkpoint-*"))
    for model in (run, checkpoint):  # which read maps as the run did
        ended = conr("evaluate", model, "--data", data, "--output", tmp_path / "out")
        assert ended.code == 0, ended.err
        results = [json.loads((folder / "results.json").read_text()) for folder in (run, tmp_path / "out")]
        assert results[0]["unit"] == results[1]["unit"] == "m"
        assert results[0]["bins"] == results[1]["bins"]
        errors, found = (flat(each["test"]) | flat(each["baseline_median"]["test"], "median_") for each in results)
        assert found == pytest.approx(errors, rel=1e-6)  # of batches of other sizes
    ended = conr("evaluate", run, "--data", data, "--map_scale", 0.01, "--output", tmp_path / "other")
    assert ended.code == 0, ended.err
    zero = conr("evaluate", run, "--data", data, "--map_scale", 0)
    assert (zero.code, "map_scale is 0" in zero.err) == (2, True)
    assert json.loads((tmp_path / "other" / "results.json").read_text())["test"]["all"]["mae"] > 10


def test_a_model_by_itself_remembers_how_its_maps_were_stored(run, data, tmp_path):
    """As one from the Hub, which has no results.json where it is looked for."""
    shutil.copytree(run, tmp_path / "model", ignore=shutil.ignore_patterns("results.json", "recipe.yaml", "check*"))
    ended = conr("evaluate", tmp_path / "model", "--data", data, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", run))
    assert flat(found["test"]) == pytest.approx(flat(expected["test"]), rel=1e-6)
    assert (expected["conr"]["map_scale"], expected["conr"]["map_invalid"]) == (0.001, 0)


def test_predict_writes_the_maps_of_a_folder(run, data, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    files = {"a": tmp_path / "photos" / "a.png", "b": tmp_path / "photos" / "more" / "b.png"}
    for size, file in zip(((40, 24), (24, 24)), files.values(), strict=True):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    (tmp_path / "photos" / "c.png").write_text("no image")
    ended = conr("predict", run, tmp_path / "photos", "--output", tmp_path / "maps")
    assert ended.code == 2
    assert "2 maps written to" in ended.out
    assert "c.png cannot be read: it is not an image." in ended.err
    for name, file in files.items():
        with Image.open(file) as image:
            expected = predicted(run, image, AutoModelForSemanticSegmentation, (image.height, image.width))
        found = np.load(tmp_path / "maps" / f"{name}.npy")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    pictures = {file.name for file in (tmp_path / "maps").glob("*.png")}
    assert pictures in ({"a.png", "b.png"}, set())  # without matplotlib


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["predict", "RUN", "PHOTOS"], ["predicts maps", "Name a folder for them with --output"]),
        (["predict", "RUN", "PHOTOS", "--output", "OUT/maps.csv"], ["predicts maps", "Name a folder"]),
        (["predict", "RUN", "PHOTOS/one", "--output", "PHOTOS/one"], ["might replace it", "Name another --output"]),
        (["predict", "RUN", "PHOTOS", "--output", "OUT"], ["would both be written as a.npy", "into two folders"]),
        (["report", "RUN"], ["predicts maps", "maps.png"]),
        (["export", "RUN", "--format", "torch-export"], ["predicts maps", "AutoModelForSemanticSegmentation"]),
        (["demo", "RUN"], ["predicts maps", "conr-hf predict"]),
    ],
)
def test_what_maps_are_not_for_is_one_sentence(arguments, parts, run, tmp_path):
    if arguments[0] == "demo":
        pytest.importorskip("gradio")
    if arguments[0] == "report":
        pytest.importorskip("matplotlib")
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
    before = sorted(path for path in tmp_path.rglob("*"))
    filled = [
        a.replace("RUN", str(run)).replace("PHOTOS", str(tmp_path)).replace("OUT", f"{tmp_path}/out")
        for a in arguments
    ]
    ended = conr(*filled)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert all(part in ended.err for part in parts), ended.err
    assert [path for path in sorted(tmp_path.rglob("*")) if path.suffix] == [path for path in before if path.suffix]


def test_a_model_that_has_diverged_says_so(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: w * torch.nan if w.is_floating_point() else w for name, w in weights.items()},
        folder / "model.safetensors",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    ended = conr("predict", folder, tmp_path / "a.png", "--output", tmp_path / "maps")
    assert ended.code == 2
    assert "a.png" in ended.err
    assert "may have diverged" in ended.err


def test_models_and_labels_of_two_kinds_do_not_go_together(run, data, tmp_path):
    number = photos(tmp_path / "photos", train=[30, 40] * 8, test=[30, 40])
    ended = conr("evaluate", run, "--data", number, "--label_columns", "label")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "UperNetForSemanticSegmentation predicts maps, but the labels" in ended.err
    file = written(tmp_path / "recipe.yaml", data=str(number), max_steps=1)
    assert conr("train", file, "--output_dir", tmp_path / "run").code == 0
    ended = conr("evaluate", tmp_path / "run", "--data", data, "--label_columns", "depth")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert 'The labels in column "depth" are maps' in ended.err


def test_the_pipeline_of_numbers_refuses_maps(run, depth_run):
    with pytest.raises(ValueError, match=r"predicts maps \(UperNet.* Use conr-hf predict\.$"):
        pipeline("image-regression", model=str(run))
    with pytest.raises(ValueError, match=r'predicts maps \(DPT.* own pipeline\("depth-estimation"\)\.$'):
        pipeline("image-regression", model=str(depth_run))


def test_features_of_images_are_refused_before_training(data, tmp_path):
    ended = trained(tmp_path, data, feature_index=True)
    assert ended.code == 2
    assert "feature_index is true" in ended.err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_saved_models_of_maps_are_loaded_where_they_may_be(run, depth_run):
    for folder, ending in ((run, "ForSemanticSegmentation"), (depth_run, "ForDepthEstimation")):
        assert type(load_saved(str(folder), maps=True)[0]).__name__.endswith(ending)
        with pytest.raises(ValueError, match="predicts maps"):
            load_saved(str(folder))


@pytest.mark.parametrize(
    ("name", "loader"), [("run", AutoModelForSemanticSegmentation), ("depth_run", AutoModelForDepthEstimation)]
)
def test_the_card_tells_how_to_load_the_model(name, loader, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue(name)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save("image.png")
    text = (folder / "README.md").read_text()
    assert "a map of depth (m), a number for every pixel" in text
    assert "Pixels are many-, median- or few-shot" in text
    assert "| test | pixels | MAE (m) | constant median | GM (m) | bMAE (m) | RMSE (m) | AbsRel | δ₁ |\n|---" in text
    assert "image-classification" not in text
    assert "\n\n\n\n" not in text
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", text)) <= {*upload_files(folder)}  # maps.png shows images: it is kept
    shutil.copytree(folder, tmp_path / "you" / "run")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == (2 if name == "depth_run" else 1)
    expected = predicted(folder, Image.open("image.png"), loader, (40, 50))
    variables = {}
    exec(blocks[0], variables)
    np.testing.assert_allclose(variables["prediction"].numpy(), expected, rtol=1e-4, atol=1e-4)
    if name == "depth_run":
        exec(blocks[1], variables)
        found = variables["predict"]("image.png")["predicted_depth"]
        assert found.shape == (40, 50)
        assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.02)  # it resizes by cubic splines
    command = re.search(r"```bash\nconr-hf (predict .*)\n```", text)[1]
    ended = conr(*command.split())
    assert ended.code == 0, ended.err
    np.testing.assert_allclose(np.load("maps/image.npy"), expected, rtol=1e-4, atol=1e-4)


def test_a_trainer_writes_a_card_from_what_it_knows(data, tmp_path):
    model, processor = load_regressor("timm/test_resnet", "depth", task="depth", pretrained=False, image_size=SIDE)
    columns = {"label_columns": ["depth"], "map_scale": 0.001, "map_invalid": 0, "conr_pixels": 16, "max_steps": 1}
    trainer = build(model, processor, tmp_path / "run", rows_of(data, "train"), rows_of(data, "validation"), **columns)
    trainer.train()
    errors = trainer.evaluate()
    found = streamed_errors(trainer, trainer.eval_dataset, "validation").compute()
    assert {name: errors[f"eval_{name}"] for name in found["all"]} == found["all"]
    assert {name: errors[f"eval_few_{name}"] for name in found["few"]} == found["few"]
    trainer.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    assert "AutoModelForSemanticSegmentation" in text
    assert "| validation | pixels | MAE |" in text
    assert f"| all | {found['all']['n']:,} | " in text


def test_maps_are_shown_evenly_and_with_the_rarest_pixels():
    means = list(np.random.default_rng(0).permutation(100).astype(float))
    rarest = [(50, 0)] * 100
    shown = chosen(means, rarest)
    assert [means[index] for index in shown] == [0, 20, 40, 59, 79, 99]
    rarest[means.index(33.0)] = (3, -1)
    rarest[means.index(70.0)] = (3, -2)  # two pixels as rare
    shown = chosen(means, rarest)
    assert [means[index] for index in shown] == [0, 20, 40, 59, 70, 99]
    assert chosen([2.0, 1.0], [(1, 0), (1, 0)]) == [1, 0]
    assert len(chosen([1.0] * (MOST_SHOWN + 1), [(1, 0)] * (MOST_SHOWN + 1))) == MOST_SHOWN
