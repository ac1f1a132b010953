"""Images of several sizes: a processor that gives them tensors of several sizes is refused before training."""

import datasets
import numpy as np
import pytest
import small
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DPTImageProcessor,
    GLPNImageProcessor,
    ViTImageProcessor,
)

from conr_hf import load_regressor
from conr_hf.data.image_sizes import check_input_sizes
from conr_hf.training.dataloaders import ImageTrainer

SIDE = {"height": 32, "width": 32}
VARYING = {
    "dpt": DPTImageProcessor(size=SIDE, keep_aspect_ratio=True, ensure_multiple_of=8),
    "glpn": GLPNImageProcessor(),
    "shortest edge": ViTImageProcessor(size={"shortest_edge": 32}),
    "as it is": ViTImageProcessor(do_resize=False),
}
FIXED = {
    "vit": ViTImageProcessor(size=SIDE),
    "dpt": DPTImageProcessor(size=SIDE, keep_aspect_ratio=False),
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 32}),
    "timm": small.models["timm-resnet"]()[1],
}
SIZES = [(64, 64), (64, 64), (96, 64), (64, 96)]  # width, height


def rows(of_maps, sizes=SIZES):
    """Images of several sizes, and for each a number, or a map half as wide."""
    images = [Image.new("RGB", size, (index, 0, 0)) for index, size in enumerate(sizes)]
    if of_maps:
        kind = datasets.List(datasets.List(datasets.Value("float32")))
        labels = [np.full((size[1] // 2, size[0] // 2), 20.0 + index) for index, size in enumerate(sizes)]
    else:
        kind, labels = datasets.Value("float64"), [20.0 + index for index in range(len(sizes))]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def trainer(folder, processor, train, evaluation=None, **changed):
    model = small.models["resnet"]()[0]
    return ImageTrainer(model, small.settings(folder, **changed), None, train, evaluation, processor, None)


@pytest.mark.parametrize("of_maps", [False, True])
@pytest.mark.parametrize("name", VARYING)
def test_rows_of_two_input_sizes_are_named(tmp_path, name, of_maps):
    with pytest.raises(ValueError) as refused:
        trainer(tmp_path, VARYING[name], rows(of_maps)).check_data()
    text = str(refused.value)
    assert text.startswith("train_dataset, rows 0 and 2: their images have 64 x 64 and 96 x 64 pixels, of which the ")
    assert "load_regressor(..., image_size=...)" in text
    assert "\n" not in text
    if name in ("glpn", "as it is"):
        assert "makes 64 x 64 and 96 x 64, but" in text


@pytest.mark.parametrize("name", FIXED)
def test_a_processor_of_one_size_takes_images_of_all_sizes(tmp_path, name):
    trainer(tmp_path, FIXED[name], rows(False)).check_data()


@pytest.mark.parametrize("name", VARYING)
def test_images_of_one_size_go_with_every_processor(tmp_path, name):
    trainer(tmp_path, VARYING[name], rows(False, [(64, 96)] * 3)).check_data()


def test_evaluation_sets_are_checked_too(tmp_path):
    one, several = rows(False, [(64, 64)] * 3), rows(False, [(64, 96), (64, 64)])
    of = trainer(tmp_path, VARYING["dpt"], one, {"near": one, "far": several})
    with pytest.raises(ValueError, match=r"^eval_dataset\['far'\], rows 0 and 1: .* 64 x 96 and 64 x 64 pixels"):
        of.check_data()


def test_rows_that_are_left_out_do_not_count(tmp_path):
    cells = rows(False).cast_column("image", datasets.Image(decode=False))["image"][:]
    broken = [{"bytes": cells[2]["bytes"][:100], "path": None}, *cells[:2]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float64")})
    data = datasets.Dataset.from_dict({"image": broken, "label": [1.0, 2.0, 3.0]}, features=features)
    of = trainer(tmp_path, VARYING["glpn"], data, skip_bad_rows=True)
    of.check_data()
    assert of.training_rows() == 2


def test_an_image_that_the_processor_cannot_take_is_named():
    with pytest.raises(ValueError, match=r"^x, row 7: the image processor cannot take an image of 20 x 64 pixels \("):
        check_input_sizes(VARYING["glpn"], {3: (64, 64), 7: (64, 20)}, "x")


@pytest.mark.parametrize("name", ["dpt", "glpn"])
def test_the_mend_mends(tmp_path, name):
    """`image_size` makes the processor of a saved model one of a single size, that shows as much of the image."""
    small.map_models[name]()[0].save_pretrained(tmp_path / "model")
    VARYING[name].save_pretrained(tmp_path / "model")
    _, processor = load_regressor(str(tmp_path / "model"), task="depth", image_size=32)
    trainer(tmp_path, processor, rows(True)).check_data()
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)) for size in ((32, 32, 3), (64, 96, 3))]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32)
    own = VARYING[name](images=images[:1], return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(pixels[0], own[0], atol=1e-6)
