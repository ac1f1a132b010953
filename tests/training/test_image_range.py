"""Images of 16 bits that hold fewer: read in their range wherever the model is used."""

import json

import datasets
import numpy as np
import pytest
import small
import torch
import transformers
from image_files import png_of_16_bits
from transformers import AutoImageProcessor, AutoModelForImageClassification

import conr_hf.pipeline  # noqa: F401 - registers the task
from conr_hf import load_regressor
from conr_hf.cli.demo import page
from conr_hf.data import images
from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.inference.features import embed
from conr_hf.inference.predict import predict_images
from conr_hf.models.image_processors import read_options

RANGE = [100.0, 4095.0]


@pytest.fixture(scope="module")
def contents():
    values = np.random.default_rng(0).integers(0, 4096, (12, 32, 32, 3), dtype=np.uint16)
    for index, one in enumerate(values):
        one[: 2 * index] //= 4
    return [png_of_16_bits(one) for one in values]


@pytest.fixture(scope="module")
def run(contents, tmp_path_factory):
    """The folder of a model trained with a range, its rows and its predictions."""
    folder = tmp_path_factory.mktemp("run")
    rows = datasets.Dataset.from_dict({"image": contents, "label": [float(n) for n in range(12)]})
    rows = rows.cast_column("image", datasets.Image())
    torch.manual_seed(0)
    model, processor = load_regressor("timm/test_resnet", pretrained=False, image_size=32)
    trainer = small.build(model, processor, folder, rows, max_steps=2, image_range=RANGE)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return folder, rows, trainer.predict(rows).predictions


def test_the_checkpoint_is_vanilla_and_names_the_range(run, contents):
    folder, _, predictions = run
    assert json.loads((folder / "config.json").read_text())["image_range"] == RANGE
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        scaled = [images.to_image({"bytes": content}, image_range=RANGE) for content in contents]
        expected = model(**processor(images=scaled, return_tensors="pt")).logits[:, 0]
        dark = [images.to_image({"bytes": content}) for content in contents]
        others = model(**processor(images=dark, return_tensors="pt")).logits[:, 0]
    np.testing.assert_allclose(predictions, expected, rtol=1e-4)
    assert np.abs(others - predictions).max() > 1e-3  # or nothing here would tell them apart


def test_every_way_to_use_the_model_reads_its_range(run, contents, tmp_path):
    folder, rows, predictions = run
    file = tmp_path / "a.png"
    file.write_bytes(contents[3])
    (of_file,) = predict_images(str(folder), [str(file)], 1).values
    assert of_file[0] == pytest.approx(predictions[3], rel=1e-4)
    assert transformers.pipeline("image-regression", model=str(folder))(str(file))["label"] == pytest.approx(
        predictions[3], rel=1e-4
    )
    model, processor = load_regressor(str(folder))
    model.eval()
    options = read_options(model.config.to_dict())
    shown, _ = page.predictor(model, processor, [page.Target("label")], images, options=options)(contents[3])
    assert np.array_equal(np.asarray(shown), np.asarray(images.to_image(file, image_range=RANGE)))
    features, _ = embed(model, processor, rows, [3], "image", head=None, name="x")
    head = model.timm_model.fc
    with torch.no_grad():
        assert float(head(torch.from_numpy(features))[0]) == pytest.approx(predictions[3], rel=1e-4)


def test_the_card_names_the_range(run):
    text = (run[0] / "README.md").read_text()
    assert "`conr_hf.data.to_image(path, image_range=(100, 4095))`" in text
    assert "`test_resnet`, trained on" in text  # from scratch: never fine-tuned


def test_a_model_is_trained_further_in_its_range(run, tmp_path):
    folder, rows, predictions = run
    model, processor = load_regressor(str(folder))
    trainer = small.build(model, processor, tmp_path, rows)
    assert trainer.args.image_range == RANGE
    np.testing.assert_allclose(trainer.predict(rows).predictions, predictions, rtol=1e-4)


def test_a_stream_is_read_in_the_range_too(contents):
    rows = [{"image": {"bytes": content, "path": None}, "label": 1.0} for content in contents]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    options = {"count": 12, "batch": 4, "process": 0, "processes": 1, "drop_last": False, "skip_bad_rows": False}
    read = StreamingDataset(stream, "x", "image", ["label"], **options, image_range=RANGE)
    for (_, row), content in zip(read, contents, strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(images.to_image({"bytes": content}, "RGB", RANGE)))


@pytest.mark.parametrize("image_range", [[1.0], [4095.0, 0.0], [5.0, 5.0], [1.0, 2.0, 3.0]])
def test_a_range_has_a_black_and_a_white(image_range, tmp_path):
    with pytest.raises(
        ValueError, match=r"^image_range is \[.*\]; give two numbers, of black and then of white, as in"
    ):
        small.settings(tmp_path, image_range=image_range)
