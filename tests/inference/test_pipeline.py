"""`pipeline("image-regression")`: what it takes, what it returns."""

import csv
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from command_line import TEST_LABELS, TRAIN_LABELS, conr, photos, written
from PIL import Image
from transformers import pipeline

import conr_hf.pipeline  # noqa: F401 - registers the task
from conr_hf import load_regressor
from conr_hf.inference.conformal import Group, PredictionIntervals, write_intervals


def photograph(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of two targets, saved, with its processor; head and input make the outputs differ."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model, processor = load_regressor("timm/test_resnet", ["pitch", "yaw"], pretrained=False, image_size=32)
    torch.nn.init.normal_(model.timm_model.get_classifier().weight)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def predict(saved):
    return pipeline("image-regression", model=str(saved[0]), device="cpu")


@torch.no_grad()
def by_hand(saved, image):
    _, model, processor = saved
    logits = model(**processor(images=[image], return_tensors="pt")).logits[0]
    return dict(zip(["pitch", "yaw"], logits.tolist(), strict=True))


def test_predictions_are_the_models_under_the_targets_names(saved, predict):
    images = [photograph(seed) for seed in range(5)]
    expected = [by_hand(saved, image) for image in images]
    assert expected[0]["pitch"] != pytest.approx(expected[1]["pitch"], rel=1e-3)
    assert predict(images[0]) == pytest.approx(expected[0], rel=1e-5)
    for batch_size in (1, 2, 5):
        for found, wanted in zip(predict(images, batch_size=batch_size), expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-5)


def test_paths_arrays_and_urls(saved, predict, tmp_path):
    image = photograph(0)
    image.save(tmp_path / "a.png")
    expected = pytest.approx(by_hand(saved, image), rel=1e-5)
    assert predict(str(tmp_path / "a.png")) == expected
    assert predict(np.asarray(image)) == expected
    assert predict(torch.from_numpy(np.array(image))) == expected
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert predict(f"http://127.0.0.1:{server.server_port}/a.png", timeout=10) == expected
        with pytest.raises(ValueError, match=r"/none.png\" cannot be read as an image"):
            predict(f"http://127.0.0.1:{server.server_port}/none.png", timeout=10)
    finally:
        server.shutdown()


def test_images_are_upright_and_grey_ones_scaled_as_in_training(saved, predict, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = photograph(1)
    image.save(tmp_path / "turned.png", exif=exif)
    assert predict(str(tmp_path / "turned.png")) == pytest.approx(
        by_hand(saved, image.transpose(Image.Transpose.ROTATE_270)), rel=1e-5
    )
    grey = np.random.default_rng(0).integers(0, 256, (32, 32))
    Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "grey.png")
    eight_bits = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    assert predict(str(tmp_path / "grey.png")) == pytest.approx(by_hand(saved, eight_bits), rel=1e-5)


def test_the_mean_over_an_image_and_its_mirror(saved, predict):
    image = photograph(2)
    both = [by_hand(saved, i) for i in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    assert both[0]["yaw"] != pytest.approx(both[1]["yaw"], rel=1e-3)
    mean = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
    assert predict(image, flip=True) == pytest.approx(mean, rel=1e-4)


def test_intervals_come_from_the_file_beside_the_model(saved, tmp_path):
    _, model, processor = saved
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = photograph(3)
    centre = by_hand(saved, image)
    yaws = [Group(None, centre["yaw"] - 1, 7.0, 20), Group(centre["yaw"] - 1, None, 3.0, 20)]
    groups = {"pitch": [Group(None, None, 2.0, 20)], "yaw": yaws}
    write_intervals(tmp_path, PredictionIntervals(0.9, "", ["pitch", "yaw"], "validation", groups, {}))
    predict = pipeline("image-regression", model=str(tmp_path), device="cpu")
    ends = {"pitch_low": -2.0, "pitch_high": 2.0, "yaw_low": -3.0, "yaw_high": 3.0}
    expected = centre | {name: centre[name.split("_")[0]] + end for name, end in ends.items()}
    assert predict(image, interval=True) == pytest.approx(expected, rel=1e-4)
    assert predict(image) == pytest.approx(centre, rel=1e-5)


def test_intervals_that_are_not_there_are_missed(predict):
    with pytest.raises(ValueError, match=r"has no intervals\.json.*Leave out interval=True"):
        predict(photograph(0), interval=True)


def test_what_is_no_image_is_named(predict, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.jpg\" cannot be read as an image"):
        predict(str(tmp_path / "text.jpg"))
    with pytest.raises(ValueError, match=r"none\.png"):
        predict(str(tmp_path / "none.png"))


def test_a_trained_run_has_intervals_and_a_run_after_it_does_not_keep_them(tmp_path):
    """The widths in the file are those of the predictions in predictions.csv, and the pipeline's ends are theirs."""
    data = photos(tmp_path / "data", train=TRAIN_LABELS[:24], validation=TEST_LABELS * 2, test=TEST_LABELS)
    recipe = written(tmp_path / "age.yaml", data=str(data), unit="years", max_steps=2)
    out = tmp_path / "out"
    ended = conr("train", recipe, "--output_dir", out)
    assert ended.code == 0, ended.err
    assert "promised" in ended.out
    saved = json.loads((out / "intervals.json").read_text())
    with (out / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    errors = sorted(abs(float(r["label"]) - float(r["prediction"])) for r in lines if r["split"] == "validation")
    (group,) = saved["groups"]["label"]
    assert (group["n"], group["half_width"]) == (24, pytest.approx(errors[22], rel=1e-5))  # the 23rd of 24: 25 * 0.9
    covered = [abs(float(r["label"]) - float(r["prediction"])) for r in lines if r["split"] == "test"]
    assert saved["coverage_by_shot"]["test"]["label"]["all"]["covered"] == sum(
        e <= group["half_width"] for e in covered
    )
    assert "## Prediction intervals" in (out / "README.md").read_text()
    found = pipeline("image-regression", model=str(out), device="cpu")(str(data / "test" / "000.png"), interval=True)
    first = next(float(r["prediction"]) for r in lines if r["split"] == "test")
    ends = {"label_low": first - group["half_width"], "label_high": first + group["half_width"]}
    assert found == pytest.approx({"label": first, **ends}, rel=1e-4)
    shutil.rmtree(data / "validation")
    assert conr("train", recipe, "--output_dir", out, "--overwrite_output_dir", "true").code == 0
    assert not (out / "intervals.json").exists()
    assert "## Prediction intervals" not in (out / "README.md").read_text()
