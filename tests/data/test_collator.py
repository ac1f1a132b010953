"""Views of an image: shifts and flips of the processor's output, in evaluation exactly that output."""

import io
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from small import build, images, map_models, models
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DPTImageProcessor,
    GLPNImageProcessor,
    ViTImageProcessor,
)

from conr_hf import load_regressor
from conr_hf.data.augmentation import Augmentation
from conr_hf.data.collator import ImageCollator, UserCollator
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.sampler import SampledIndex
from conr_hf.training.dataloaders import DataLoaders

SIDE = 32


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE})


def pixels(height, width, seed=0):
    """An image with no value twice and none that is 0, the padding's."""
    random = np.random.default_rng(seed)
    return torch.tensor(1.0 + random.permutation(3 * height * width)).reshape(3, height, width).float()


def shift_of(view, image, pad_y, pad_x):
    """Down, right and flip that make `view` of `image`, found by trying all of them pixel by pixel; or `None`."""
    _, height, width = image.shape
    for flip in (False, True):
        straight = view.flip(-1) if flip else view
        for down in range(-pad_y, pad_y + 1):
            for right in range(-pad_x, pad_x + 1):
                expected = torch.zeros_like(image)
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + down < height and 0 <= x + right < width:
                            expected[:, y, x] = image[:, y + down, x + right]
                if torch.equal(straight, expected):
                    return down, right, flip
    return None


def shifted(image, crop_padding, random, horizontal_flip):
    augmentation = Augmentation(crop_padding, horizontal_flip)
    draws = torch.tensor([[augmentation.draw(image.shape[-2:], random)]])
    return augmentation.move(image[None], draws)[0, 0]


@pytest.mark.parametrize(("height", "width", "pad_y", "pad_x"), [(7, 7, 1, 1), (10, 6, 2, 1)])
def test_a_view_is_the_image_shifted_within_its_padding_and_perhaps_flipped(height, width, pad_y, pad_x):
    image, random = pixels(height, width), np.random.default_rng(0)
    found = set()
    for _ in range(80):
        view = shifted(image, 0.2, random, horizontal_flip=True)
        assert view.shape == image.shape
        shift = shift_of(view, image, pad_y, pad_x)
        assert shift is not None
        found.add(shift)
    assert {down for down, _, _ in found} == set(range(-pad_y, pad_y + 1))
    assert {right for _, right, _ in found} == set(range(-pad_x, pad_x + 1))


def test_half_of_the_views_are_flipped_and_every_shift_is_as_likely():
    image, random = pixels(5, 5), np.random.default_rng(0)
    plain = {}
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            padded = torch.zeros(3, 7, 7)
            padded[:, 1:6, 1:6] = image
            part = padded[:, 1 + down : 6 + down, 1 + right : 6 + right]
            plain[part.numpy().tobytes()] = (down, right, False)
            plain[part.flip(-1).numpy().tobytes()] = (down, right, True)
    draws = 3600
    found = [
        plain[shifted(image, 0.2, random, horizontal_flip=True).contiguous().numpy().tobytes()] for _ in range(draws)
    ]
    flips = sum(flip for _, _, flip in found)
    assert abs(flips - draws / 2) < 4 * np.sqrt(draws / 4)
    counts = [sum(shift[:2] == other for shift in found) for other in {shift[:2] for shift in found}]
    assert len(counts) == 9
    assert max(abs(count - draws / 9) for count in counts) < 5 * np.sqrt(draws / 9)


def test_without_padding_and_flip_nothing_changes_whatever_is_drawn():
    """Gaze changes its sign under a flip, and a count loses what is shifted out."""
    image, random = pixels(7, 7), np.random.default_rng(0)
    for _ in range(20):
        assert torch.equal(shifted(image, 0.0, random, horizontal_flip=False), image)
    flipped = [shifted(image, 0.0, random, horizontal_flip=True) for _ in range(20)]
    assert all(torch.equal(view, image) or torch.equal(view, image.flip(-1)) for view in flipped)
    assert not any(torch.equal(shifted(image, 0.2, random, False), image.flip(-1)) for _ in range(50))


# ---- The collator ---------------------------------------------------------------------------------------------------


def collator(processor, columns=("label",), views=3, flip=True, padding=1 / 14, seed=0):
    return ImageCollator(processor, "image", columns, views, Augmentation(padding, flip), seed)


def picture(seed=0, size=(40, 24), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def drawn(rows, epoch=0, first=0):
    return [(SampledIndex(index, epoch, first + index), row) for index, row in enumerate(rows)]


def plain(rows):
    return [(None, row) for row in rows]


ROWS = [{"image": picture(seed), "label": label} for seed, label in enumerate([21, 48, 33, 75])]


def test_training_gives_views_and_where_the_batch_stands(processor):
    batch = collator(processor)(drawn(ROWS, first=8))
    assert batch["pixel_values"].shape == (4, 3, 3, SIDE, SIDE)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["position"] == 8
    assert set(batch) == {"pixel_values", "labels", "position"}


@pytest.mark.parametrize("name", ["vit", "timm"])
def test_evaluation_sees_exactly_what_the_saved_processor_gives(name, processor):
    if name == "timm":
        processor = load_regressor("timm/test_resnet", pretrained=False, image_size=SIDE)[1]
    batch = collator(processor)(plain(ROWS))
    expected = processor(images=[row["image"] for row in ROWS], return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].shape == (4, 3, SIDE, SIDE)
    assert torch.equal(batch["pixel_values"], expected)
    assert set(batch) == {"pixel_values", "labels"}


def test_a_view_of_a_batch_is_a_shift_of_what_evaluation_sees(processor):
    tiny = ViTImageProcessor(size={"height": 7, "width": 7})
    make = collator(tiny, padding=1 / 7)
    images, views = make(plain(ROWS))["pixel_values"], make(drawn(ROWS))["pixel_values"]
    for image, of_image in zip(images, views, strict=True):
        assert all(shift_of(view, image, 1, 1) is not None for view in of_image)
    still = collator(tiny, flip=False, padding=0.0)(drawn(ROWS))["pixel_values"]
    assert torch.equal(still, images[:, None].expand_as(still))


CELLS = {
    "age": (("label",), ()),
    "pitch yaw": (("pitch", "yaw"), ("yaw",)),
    "offset": (("offset",), ("offset",)),
    "map": (("map",), ()),
}


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("augmentation", [Augmentation(0.2, True), Augmentation(0.0, True, True, 0.5, 0.4, 0.2)])
def test_views_made_after_the_batch_has_travelled_are_those_of_the_workers(processor, augmentation, kind, mixes):
    """On an accelerator each image travels once, and a run there would see other views than its resume on a CPU."""
    columns, flipped = CELLS[kind]
    random = np.random.default_rng(0)
    rows = [
        {
            "image": picture(i),
            "sample_weight": 1.0 + i,
            **{column: random.random((8, 8)) if kind == "map" else 1.0 + random.random() for column in columns},
        }
        for i in range(8)
    ]
    mixtures = [(SampledIndex(i, 0, i, 4 + i, 0.2 * i), rows[i], rows[4 + i]) for i in range(4)]
    examples = mixtures if mixes else drawn(rows[:4])
    made, left = (
        ImageCollator(processor, "image", columns, 3, augmentation, 0, flipped, makes_views=makes)
        for makes in (True, False)
    )
    expected, batch = made(examples), left(examples)
    assert batch["pixel_values"].shape == (4, 3, SIDE, SIDE)
    found = left.with_views(batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]).nan_to_num(-1), torch.as_tensor(value).nan_to_num(-1)), name
    plain_rows = plain(rows[:4])
    assert torch.equal(left.with_views(left(plain_rows))["pixel_values"], made(plain_rows)["pixel_values"])


def test_views_made_after_the_batch_has_travelled_train_the_same_model(tmp_path, monkeypatch):
    def train(folder):
        model, processor = models["vit"]()
        run = build(model, processor, folder, images(12), images(4), forward_batch_size=4)
        run.train()
        assert run.data_collator.makes_views == (folder.name == "workers")
        return run.model.state_dict()

    expected = train(tmp_path / "workers")
    made = DataLoaders.collator

    def left(loaders):
        collator = made(loaders)
        collator.makes_views = False
        return collator

    monkeypatch.setattr(DataLoaders, "collator", left)
    found = train(tmp_path / "device")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_views_differ_and_repeat_with_the_draw_that_asked_for_them(processor):
    """A resume repeats what it was cut off from; another epoch, place, view or seed brings other views."""
    first = collator(processor, views=8)(drawn(ROWS))["pixel_values"]
    assert torch.equal(first, collator(processor, views=8)(drawn(ROWS))["pixel_values"])
    assert torch.equal(first[:, :2], collator(processor, views=2)(drawn(ROWS))["pixel_values"])
    for sample in first:
        assert len({view.contiguous().numpy().tobytes() for view in sample}) > 4
    others = [
        collator(processor, views=8)(drawn(ROWS, epoch=1)),
        collator(processor, views=8)(drawn(ROWS, first=4)),
        collator(processor, views=8, seed=1)(drawn(ROWS)),
    ]
    for other in others:
        same = (other["pixel_values"] == first).flatten(2).all(-1)
        assert same.float().mean() < 0.3


@pytest.mark.parametrize(
    "cells", [[21, 48], [21.5, 48.25], np.array([21, 48], dtype=np.uint8), torch.tensor([21, 48]), ["21", "48.5"]]
)
def test_labels_are_float32_whatever_they_were(processor, cells):
    """Integer labels would make an integer loss; a column with a text among its numbers holds its numbers as text."""
    rows = [{"image": picture(), "label": cell} for cell in cells]
    for examples in (drawn(rows), plain(rows)):
        labels = collator(processor)(examples)["labels"]
        assert labels.dtype == torch.float32
        assert labels.tolist() == [float(cell) for cell in cells]


def test_labels_of_two_dimensions_keep_their_order(processor):
    rows = [{"yaw": 1, "image": picture(), "pitch": 2.5}, {"image": picture(), "pitch": -3.0, "yaw": 4}]
    labels = collator(processor, columns=("pitch", "yaw"))(plain(rows))["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[2.5, 1.0], [-3.0, 4.0]]


def test_rows_without_labels_are_images_to_predict(processor):
    assert set(collator(processor)(plain([{"image": picture()}]))) == {"pixel_values"}


def test_sample_weights_belong_to_training(processor):
    rows = [{**row, "sample_weight": weight} for row, weight in zip(ROWS, (1, 2.5, 0, 3), strict=True)]
    batch = collator(processor)(drawn(rows))
    assert batch["sample_weight"].dtype == torch.float32
    assert batch["sample_weight"].tolist() == [1, 2.5, 0, 3]
    assert "sample_weight" not in collator(processor)(plain(rows))


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_images_of_all_kinds_in_one_batch(processor, tmp_path):
    """Own data is seldom all RGB; a phone's photo lies on its side until its EXIF orientation is read."""
    grey, clear, palette, cmyk = (picture(1, mode=mode) for mode in ("L", "RGBA", "P", "CMYK"))
    rgb = picture(2)
    rgb.save(tmp_path / "rgb.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to the right to be upright
    (tmp_path / "phone.png").write_bytes(png(rgb, exif=exif))
    upright = rgb.transpose(Image.Transpose.ROTATE_270)
    given = [
        (grey, grey.convert("RGB")),
        (clear, clear.convert("RGB")),
        (palette, palette.convert("RGB")),
        (cmyk, cmyk.convert("RGB")),
        (str(tmp_path / "rgb.png"), rgb),
        (tmp_path / "rgb.png", rgb),
        ({"bytes": png(rgb), "path": None}, rgb),
        ({"bytes": None, "path": str(tmp_path / "rgb.png")}, rgb),
        (np.asarray(rgb), rgb),
        (str(tmp_path / "phone.png"), upright),
        ({"bytes": png(rgb, exif=exif), "path": "phone.png"}, upright),
        (Image.open(tmp_path / "phone.png"), upright),
    ]
    found = collator(processor)(plain([{"image": cell} for cell, _ in given]))["pixel_values"]
    expected = processor(images=[image for _, image in given], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)
    assert upright.size == (24, 40)


def test_each_image_is_decoded_and_processed_once_for_all_its_views(processor, monkeypatch):
    """Reading is what takes the time of a small model's epoch."""
    opened, processed = [], []
    really_open, really_process = Image.open, processor.preprocess

    def counted_open(*args, **kwargs):
        opened.append(args)
        return really_open(*args, **kwargs)

    def counted_process(images, *args, **kwargs):
        processed.extend(images)
        return really_process(images, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counted_open)
    monkeypatch.setattr(processor, "preprocess", counted_process)
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(row["image"]), "path": None} for row in ROWS], "label": [21, 48, 33, 75]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    batch = collator(processor, views=5)(
        [SampledDataset(rows, "train_dataset")[SampledIndex(i, 0, i)] for i in range(4)]
    )
    assert batch["pixel_values"].shape == (4, 5, 3, SIDE, SIDE)
    assert len(opened) == 4
    assert len(processed) == 4


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8)])
def test_rows_made_ready_by_the_user_pass_as_they_are(shape):
    random = np.random.default_rng(0)
    values = [random.normal(size=shape) for _ in range(3)]
    rows = [{"pixel_values": value, "labels": label} for value, label in zip(values, (21, 48, 33), strict=True)]
    for examples in (drawn(rows), plain(rows)):
        batch = collator(None)(examples)
        assert torch.equal(batch["pixel_values"], torch.tensor(np.stack(values)).float())
        assert batch["labels"].tolist() == [21.0, 48.0, 33.0]
        assert batch["labels"].dtype == torch.float32
    two = [{"pixel_values": value, "labels": [1, 2]} for value in values]
    assert collator(None, columns=("pitch", "yaw"))(plain(two))["labels"].tolist() == [[1.0, 2.0]] * 3


def test_what_is_missing_is_named(processor):
    with pytest.raises(ValueError, match=r'no column "image"; its columns are photo, label.*image_column'):
        collator(processor)(plain([{"photo": picture(), "label": 1}]))
    with pytest.raises(ValueError, match="processing_class"):
        collator(None)(plain(ROWS))


# ---- Images of several sizes ----------------------------------------------------------------------------------------

SQUARE = {"height": SIDE, "width": SIDE}
VARYING = {
    "dpt": DPTImageProcessor(size=SQUARE, keep_aspect_ratio=True, ensure_multiple_of=8),
    "glpn": GLPNImageProcessor(),
    "shortest edge": ViTImageProcessor(size={"shortest_edge": SIDE}),
    "as it is": ViTImageProcessor(do_resize=False),
}
FIXED = {
    "vit": ViTImageProcessor(size=SQUARE),
    "dpt": DPTImageProcessor(size=SQUARE, keep_aspect_ratio=False),
    "clip": CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": SIDE}),
    "timm": models["timm-resnet"]()[1],
}


def rows_of(*sizes, of_maps=False):
    """An image of each size, width x height, and a number, or a map half as wide."""
    return [
        {"image": picture(i, size), "label": np.full((size[1] // 2, size[0] // 2), 20.0 + i) if of_maps else 20.0 + i}
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("examples", [drawn, plain])
@pytest.mark.parametrize("of_maps", [False, True])
@pytest.mark.parametrize("name", VARYING)
def test_images_that_the_processor_makes_of_two_sizes_are_refused_by_their_sizes(name, of_maps, examples):
    rows = rows_of((64, 64), (64, 64), (96, 64), (64, 96), of_maps=of_maps)
    with pytest.raises(ValueError) as refused:
        collator(VARYING[name])(examples(rows))
    text = re.sub(r" \(row \d\)", "", str(refused.value))  # known in training, and of a data set's rows
    assert " pixels of an image of 64 x 64 and " in text
    assert " of one of 96 x 64, but the images of a batch must be of one size. " in text
    assert "load_regressor(..., image_size=...)" in text
    assert "\n" not in text
    if name in ("glpn", "as it is"):
        assert text.startswith(
            "The image processor makes 64 x 64 pixels of an image of 64 x 64 and 96 x 64 of one of "
        )


@pytest.mark.parametrize("examples", [drawn, plain])
@pytest.mark.parametrize("name", FIXED)
def test_a_processor_of_one_size_takes_images_of_all_sizes(name, examples):
    batch = collator(FIXED[name])(examples(rows_of((64, 64), (96, 64), (64, 96))))
    assert batch["pixel_values"].shape[-2:] == (SIDE, SIDE)


@pytest.mark.parametrize("name", VARYING)
def test_images_of_one_size_go_with_every_processor(name):
    assert len(collator(VARYING[name])(plain(rows_of(*[(64, 96)] * 3)))["pixel_values"]) == 3


@pytest.mark.parametrize("key", [lambda row: row, lambda row: SampledIndex(row, 0, row)])
def test_rows_whose_images_come_out_in_other_sizes_are_named(key):
    """By their numbers in the user's data set, also where others before them are left out."""
    rows = SampledDataset(rows_of((64, 64), (32, 32), (64, 64), (96, 64)), "a data set", [0, 2, 3])
    examples = [rows[key(0)], rows[key(1)], rows[key(2)]]
    with pytest.raises(ValueError, match=r"64 x 64 \(row 0\) and .* of one of 96 x 64 \(row 3\), but the images"):
        collator(VARYING["glpn"])(examples)


def test_an_image_that_the_processor_cannot_take_is_named():
    wanted = (
        r"^The image processor cannot process an image of 20 x 64 pixels \(.*\)\. Load .*, or leave such rows out\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        collator(VARYING["glpn"])(plain(rows_of((64, 64), (20, 64))))


@pytest.mark.parametrize("name", ["dpt", "glpn"])
def test_the_mend_mends(tmp_path, name):
    """`image_size` makes the processor of a saved model one of a single size, that shows as much of the image."""
    map_models[name]()[0].save_pretrained(tmp_path / "model")
    VARYING[name].save_pretrained(tmp_path / "model")
    _, processor = load_regressor(str(tmp_path / "model"), task="depth", image_size=SIDE)
    rows = rows_of((32, 32), (96, 64), of_maps=True)
    pixels = collator(processor)(plain([{"image": row["image"]} for row in rows]))["pixel_values"]
    assert pixels.shape == (2, 3, SIDE, SIDE)
    assert collator(processor)(drawn(rows))["labels"].shape == (2, 3, SIDE, SIDE)
    own = VARYING[name](images=[rows[0]["image"]], return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(pixels[0], own[0], atol=1e-6)


# ---- The rows of a data set -----------------------------------------------------------------------------------------


def test_a_row_that_breaks_in_the_middle_of_training_is_named(tmp_path):
    """A file can go bad after it was checked; a transform of the user's can fail."""
    (tmp_path / "bad.png").write_text("no image")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "bad.png")] * 3}).cast_column(
        "image", datasets.Image()
    )
    with pytest.raises(ValueError, match=r"^train_dataset, row 2: the image cannot be read: it is not an image\.$"):
        SampledDataset(rows, "train_dataset", [0, 2])[SampledIndex(1, 0, 0)]


def test_rows_keep_their_number_when_some_are_left_out():
    rows = SampledDataset([{"label": index} for index in range(5)], "eval_dataset", [1, 3, 4])
    assert len(rows) == 3
    assert [rows[index] for index in range(3)] == [(1, {"label": 1}), (3, {"label": 3}), (4, {"label": 4})]
    assert rows[SampledIndex(2, 1, 7)] == (SampledIndex(4, 1, 7), {"label": 4})


def test_a_collator_of_the_users_sees_plain_rows():
    seen = []

    def collate(rows):
        seen.append(rows)
        return {"labels": torch.tensor([row["label"] for row in rows])}

    rows = [{"label": 1.0}, {"label": 2.0}]
    assert UserCollator(collate)(drawn(rows, first=6))["position"] == 6
    assert set(UserCollator(collate)(plain(rows))) == {"labels"}
    assert seen == [rows, rows]
