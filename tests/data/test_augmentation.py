"""Resized crops, colours and transforms of the user's own, beside slow ones of one pixel at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import build, images, models
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2
from transformers import MobileViTImageProcessor, ViTImageProcessor

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.collator import ImageCollator
from conr_hf.data.own_transform import check_transform
from conr_hf.data.sampler import SampledIndex

STRONG = Augmentation.named("strong", crop_padding=0.1, horizontal_flip=True, vertical_flip=True)


def view_of(image, draw, at):
    """What a view `(C, H, W)` shows, by `at(image, row, column)`, of an image at real-valued rows and columns."""
    _, _, mirrored, inverted, top, left, tall, wide, *_ = draw
    _, height, width = image.shape
    view = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            down, across = (row + 0.5) / height, (column + 0.5) / width
            down, across = 1 - down if inverted else down, 1 - across if mirrored else across
            view[:, row, column] = at(image, (top + tall * down) * height - 0.5, (left + wide * across) * width - 0.5)
    return view


def bilinear(image, row, column):
    _, height, width = image.shape
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    total = np.zeros(len(image))
    for i in {int(row), min(int(row) + 1, height - 1)}:
        for j in {int(column), min(int(column) + 1, width - 1)}:
            total += image[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def test_a_resized_crop_shows_its_part_of_the_image():
    random = np.random.default_rng(0)
    image = random.random((3, 9, 14))
    draws = [STRONG.draw((9, 14), random) for _ in range(12)]
    found = STRONG.move(torch.from_numpy(image).float()[None], torch.tensor([draws]))[0]
    for view, draw in zip(found, draws, strict=True):
        np.testing.assert_allclose(view, view_of(image, draw, bilinear), atol=1e-5)
    assert {tuple(draw[2:4]) for draw in draws} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_map_moves_with_its_image_and_takes_on_no_new_labels():
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[:16, :16] / 16
    places = torch.from_numpy(np.stack([rows, columns]))[None].float()  # the image tells where each pixel comes from
    labels = torch.arange(256.0).view(1, 1, 16, 16)
    labels[..., :3, :] = torch.nan
    draws = torch.tensor([[STRONG.draw((16, 16), random) for _ in range(8)]])
    shown = STRONG.move(places, draws)[0]
    moved = STRONG.move(labels, draws, fill=torch.nan, mode="nearest")[0, :, 0]
    number = shown[:, 0].mul(16).round() * 16 + shown[:, 1].mul(16).round()
    valid = moved.isfinite()
    assert set(moved[valid].tolist()) <= set(range(48, 256))
    off = (moved - number)[valid].abs()
    assert (torch.minimum(off % 16, 16 - off % 16) <= 1).all()  # at most a column or a row beside
    assert (off <= 17).all()
    assert 0 < (~valid).float().mean() < 0.5


def test_crops_show_as_much_as_promised():
    random = np.random.default_rng(2)
    draws = np.array([STRONG.draw((32, 32), random) for _ in range(2000)])
    top, left, tall, wide = draws[:, 4:8].T
    area = tall * wide
    assert area.min() > 0.43  # the ratio of sides may cost some where a side is the whole
    assert np.mean(area >= 0.5) > 0.95
    assert abs(area.mean() - 0.75) < 0.02
    assert (top + tall).max() <= 1
    assert (left + wide).max() <= 1
    assert np.mean(draws[:, 10] == 0) == pytest.approx(0.2, abs=0.04)
    assert draws[:, 8:10].min() >= 0.6
    assert draws[:, 8:].max() <= 1.4


def test_colours_change_as_the_formula_says():
    random = np.random.default_rng(3)
    image = random.random((3, 5, 6))
    black, white = np.array([-2.0, -1.5, -1.0]), np.array([2.0, 1.0, 3.0])
    draws = [STRONG.draw((5, 6), random) for _ in range(9)]
    draws.append([*draws[0][:8], 1.0, 1.0, 1.0])
    pixels = torch.from_numpy(image * (white - black)[:, None, None] + black[:, None, None]).float()
    views = STRONG.recolor(
        pixels.expand(1, len(draws), -1, -1, -1).clone(),
        torch.tensor([draws]),
        torch.from_numpy(black).float(),
        torch.from_numpy(white).float(),
    )[0]
    for view, (*_, brightness, contrast, saturation) in zip(views, draws, strict=True):
        values = image * brightness
        gray = 0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]
        values = gray.mean() + contrast * (values - gray.mean())
        gray = 0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]
        values = np.clip(gray + saturation * (values - gray), 0, 1)
        np.testing.assert_allclose(view, values * (white - black)[:, None, None] + black[:, None, None], atol=1e-5)
    np.testing.assert_allclose(views[-1], pixels, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("none", {"crop_padding": 0.1, "horizontal_flip": True}, Augmentation()),
        ("light", {"crop_padding": 0.1}, Augmentation(0.1)),
        ("strong", {"crop_padding": 0.0}, Augmentation(jitter=0.4, gray=0.2)),  # a count loses what a crop leaves out
        ("strong", {"crop_padding": 0.1, "crop_area": 1.0}, Augmentation(0.1, jitter=0.4, gray=0.2)),
        ("medium", {"crop_padding": 0.1, "with_color": False}, Augmentation(crop_area=0.75)),
        ("light", {"crop_padding": 0.1, "crop_area": 0.9}, Augmentation(crop_area=0.9)),
    ],
)
def test_what_a_name_stands_for(name, options, expected):
    assert Augmentation.named(name, **options) == expected


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grey_views_have_no_colour_and_stay_between_black_and_white(mode):
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    grey = {"image_mean": [0.5], "image_std": [0.2], "do_convert_rgb": False}
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, **(means if mode == "RGB" else grey))
    augmentation = Augmentation(jitter=0.4, gray=1.0)
    collate = ImageCollator(processor, "image", ["label"], 4, augmentation, 0, image_mode=mode)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    views = collate([(SampledIndex(0, 0, 0), {"image": picture, "label": 1.0})])["pixel_values"][0]
    mean, std = (torch.tensor(processor.to_dict()[name]).view(-1, 1, 1) for name in ("image_mean", "image_std"))
    shown = views * std + mean
    assert shown.shape == (4, 3 if mode == "RGB" else 1, 8, 8)
    assert shown.min() > -1e-6
    assert shown.max() < 1 + 1e-6
    assert torch.allclose(shown, shown[:, :1].expand_as(shown), atol=1e-6)
    assert not torch.allclose(shown[0], shown[1], atol=0.01)


def test_colours_where_the_processor_turns_the_order_of_channels_round():
    """MobileViT's processor gives blue, green, red."""
    size = {"height": 8, "width": 8}
    processor = MobileViTImageProcessor(size={"shortest_edge": 8}, crop_size=size, do_flip_channel_order=True)
    red = [(SampledIndex(0, 0, 0), {"image": Image.new("RGB", (8, 8), (255, 0, 0)), "label": 1.0})]
    grey = ImageCollator(processor, "image", ["label"], 1, Augmentation(gray=1.0), 0)(red)["pixel_values"]
    assert torch.allclose(grey, torch.full_like(grey, 0.299), atol=1e-3)
    seen = []
    collate = ImageCollator(
        processor, "image", ["label"], 1, Augmentation(), 0, transform=lambda image: (seen.append(image), image)[1]
    )
    assert torch.equal(collate(red)["pixel_values"][0], collate([(None, red[0][1])])["pixel_values"])
    assert seen[0][:, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=1e-3)


# ---- A transform of the user's own --------------------------------------------------------------------------------


def collator_of(transform, columns=("label",), side=16):
    processor = ViTImageProcessor(size={"height": side, "width": side})
    return ImageCollator(processor, "image", columns, 2, Augmentation(), 3, transform=transform)


def row_of(seed, label=1.0):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return {"image": Image.fromarray(pixels), "label": label}


def test_a_transform_draws_by_the_place_of_its_row_alone():
    transform = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.ColorJitter(0.4, 0.4)])
    collate, rows = collator_of(transform), [row_of(i) for i in range(3)]
    torch.manual_seed(1)
    together = collate([(SampledIndex(i, 2, 5 + i), row) for i, row in enumerate(rows)])["pixel_values"]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    alone = collate([(SampledIndex(1, 2, 6), rows[1])])["pixel_values"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(alone[0, 0], alone[0, 1])
    assert not torch.equal(collate([(SampledIndex(1, 3, 6), rows[1])])["pixel_values"], alone)


def test_a_transform_moves_maps_with_their_images():
    transform = v2.RandomAffine(0, translate=(0.4, 0.4))
    label = np.random.default_rng(0).permutation(256).reshape(16, 16).astype(np.float32)
    row = row_of(0, label)
    picture = np.repeat(label[..., None], 3, -1).astype(np.uint8)  # the image shows the label
    batch = collator_of(transform)([(SampledIndex(0, 0, 0), {**row, "image": Image.fromarray(picture)})])
    shown = ((batch["pixel_values"][0, :, 0] * 0.5 + 0.5) * 255).round()
    labels = batch["labels"][0]
    outside = labels.isnan()
    assert outside.any()
    assert torch.equal(shown[~outside], labels[~outside])
    assert (shown[outside] == 0).all()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Resize(8, antialias=True), r"of shape \(3, 8, 8\).*must keep both"),
        (v2.ToDtype(torch.uint8, scale=True), r"makes torch.uint8"),
    ],
)
def test_a_transform_that_changes_the_form_is_refused(transform, message):
    with pytest.raises(ValueError, match=message):
        collator_of(transform)([(SampledIndex(0, 0, 0), row_of(0))])


@pytest.mark.parametrize("hold", [lambda part: v2.RandomApply([part]), nn.Sequential, lambda part: v1.Compose([part])])
@pytest.mark.parametrize("transform", [v2.RandomRotation(5), v2.RandomHorizontalFlip(), v2.RandAugment()])
def test_a_transform_that_changes_a_direction_is_refused(transform, hold):
    nested = v2.Compose([v2.ColorJitter(0.1), hold(transform)])
    with pytest.raises(ValueError, match=f"transform holds {type(transform).__name__}.*yaw"):
        check_transform(nested, ["yaw"])
    check_transform(nested, [])
    check_transform(v2.ColorJitter(0.1), ["yaw"])


def test_a_trainer_trains_with_a_transform(tmp_path):
    model, processor = models["vit"]()
    seen = []

    def darker(image):
        seen.append(image)
        return image * 0.5

    run = build(model, processor, tmp_path, images(8), transform=darker, max_steps=1, num_views=1)
    run.train()
    assert len(seen) == 8

    def collate(rows):
        return {"pixel_values": torch.zeros(len(rows), 3, 32, 32), "labels": torch.zeros(len(rows))}

    ready = images(8).map(lambda row: {"pixel_values": np.zeros((3, 32, 32), np.float32)}, remove_columns="image")
    with pytest.raises(ValueError, match="transform would have no effect on rows that hold pixel_values"):
        build(model, processor, tmp_path / "ready", ready, transform=darker)
    with pytest.raises(ValueError, match="transform would have no effect beside a data_collator"):
        build(model, processor, tmp_path / "own", images(8), transform=darker, data_collator=collate)
