"""Pixels drawn for ConR, and views that move their labels."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from scipy import stats
from transformers import ViTImageProcessor

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.collator import ImageCollator
from conr_hf.data.sampler import SampledIndex
from conr_hf.training.objective.pixel_sampling import draw_pixels, pool_maps, resize_to_features, sample_pixels

PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


def collated(rows, columns=("label",), size=16, padding=0.25, **settings):
    processor = ViTImageProcessor(size={"height": size, "width": size}, resample=0, **PLAIN)
    collate = ImageCollator(processor, "image", columns, 4, Augmentation(padding, True), 0, **settings)
    return collate([(SampledIndex(row, 0, row), cells) for row, cells in enumerate(rows)])


# ---- Views move their labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_side", [16, 8, 32])
def test_a_map_moves_with_its_image(map_side):
    """The image shows the map, so that a label that stayed behind would be seen."""
    random = np.random.default_rng(0)
    shown = random.integers(1, 256, (5, 8, 8))
    rows = []
    for values in shown:
        image = values.repeat(2, 0).repeat(2, 1).astype(np.uint8)
        rows.append(
            {
                "image": Image.fromarray(np.stack([image] * 3, -1)),
                "label": values.repeat(map_side // 8, 0).repeat(map_side // 8, 1).astype(np.float32),
            }
        )
    batch = collated(rows)
    seen, labels = (255 * batch["pixel_values"][:, :, 0]).round(), batch["labels"]
    assert labels.shape == (5, 4, 16, 16)
    inside = labels.isfinite()
    assert torch.equal(seen[inside], labels[inside])
    assert not seen[~inside].any()  # the padding of the image, and nothing but it
    assert 0 < (~inside).float().mean() < 0.5
    assert not torch.equal(labels[:, 0].nan_to_num(), labels[:, 1].nan_to_num())


def test_a_flip_turns_the_sign_of_yaw_alone():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255  # white to the left
    rows = [{"image": Image.fromarray(pixels), "pitch": 0.1 * row, "yaw": 0.2 + row} for row in range(8)]
    batch = collated(rows, ["pitch", "yaw"], padding=0, flipped_columns=["yaw"])
    flipped = batch["pixel_values"][..., 0, 8, 2:4].sum(-1) < batch["pixel_values"][..., 0, 8, 12:14].sum(-1)
    expected = torch.tensor([[row["pitch"], row["yaw"]] for row in rows])[:, None].repeat(1, 4, 1)
    expected[..., 1] = torch.where(flipped, -expected[..., 1], expected[..., 1])
    assert torch.allclose(batch["labels"], expected)
    assert flipped.any()
    assert not flipped.all()


def test_evaluation_keeps_maps_and_signs():
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, **PLAIN)
    collate = ImageCollator(
        processor, "image", ["label"], 4, Augmentation(0.25, True), 0, map_scale=0.5, map_invalid=3
    )
    labels = collate([(None, {"image": image, "label": values})])["labels"]
    assert labels.shape == (1, 8, 8)
    assert labels[0, 0, 3].isnan()
    assert torch.equal(labels.nan_to_num(1.5)[0], torch.from_numpy(values) / 2)


# ---- The sample -----------------------------------------------------------------------------------------------------


def test_pixels_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([1.0, 2.0, 4.0, 1.0, 0.0])
    drawn = draw_pixels(weights.repeat(8000, 1), 1, [(7, row) for row in range(8000)])
    counts = np.bincount(drawn.flatten(), minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], 8000 * np.array([1, 2, 4, 1]) / 8).pvalue > 1e-4


def test_no_pixel_is_drawn_twice_and_each_map_by_its_own_seed():
    """So a map's pixels are the same in any batch, on any process and after a resume."""
    weights = torch.rand(6, 100) + 0.1
    seeds = [(1, 2, row, 0) for row in range(6)]
    drawn = draw_pixels(weights, 40, seeds)
    assert all(len(set(row.tolist())) == 40 for row in drawn)
    alone = torch.cat([draw_pixels(weights[[row]], 40, [seeds[row]]) for row in (4, 1)])
    assert torch.equal(alone.sort().values, drawn[[4, 1]].sort().values)
    assert not torch.equal(draw_pixels(weights, 40, [(9, *seed) for seed in seeds]), drawn)


def test_rare_labels_are_among_the_pixels_drawn():
    """Eight of 10,000, which an even draw of 1,024 would all miss in two of five maps."""
    labels = torch.zeros(20, 100, 100)
    labels[:, 0, :8] = 1.0
    density = torch.where(labels == 1, (9992 / 8) ** 0.5, 1.0)
    rows = sample_pixels(torch.randn(20, 3, 100, 100), labels, labels, density, 1024, [(row,) for row in range(20)])
    rare = (rows.labels.view(20, 1024) == 1).sum(1)
    assert rare.min() >= 5


def test_rows_are_the_pixels_that_were_drawn():
    features, labels, predictions = torch.randn(2, 5, 4, 3), torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    labels[0, :3] = torch.nan  # three pixels left
    rows = sample_pixels(features, labels, predictions, torch.ones(2, 4, 3), 6, [(0,), (1,)])
    assert rows.labels[:6].isfinite().sum() == 3
    assert rows.labels[6:].isfinite().all()
    everything = {
        label.item(): (feature, prediction)
        for label, feature, prediction in zip(
            labels.flatten(), features.movedim(1, -1).reshape(-1, 5), predictions.flatten(), strict=True
        )
    }
    for feature, label, prediction in zip(*rows, strict=True):
        if label.isfinite():
            assert torch.equal(everything[label.item()][0], feature)
            assert everything[label.item()][1] == prediction


def test_means_leave_out_what_has_no_label():
    features, labels = torch.randn(2, 5, 4, 3), torch.randn(2, 4, 3)
    labels[0, :3] = torch.nan
    labels[1] = torch.nan
    rows = pool_maps(features, labels, labels)
    assert torch.allclose(rows.features[0], features[0, :, 3].mean(1), atol=1e-6)
    assert rows.labels[0].item() == pytest.approx(labels[0, 3].mean().item(), rel=1e-5)
    assert rows.labels[1].isnan()
    assert not rows.features[1].any()


def test_points_of_a_grid_have_the_label_of_the_nearest_pixel():
    maps = torch.arange(36.0).view(1, 6, 6)
    assert torch.equal(resize_to_features(maps, (3, 3)), maps[:, 1::2, 1::2])
    assert resize_to_features(maps, (12, 12))[0, 5, 6] == maps[0, 2, 3]
    assert resize_to_features(maps, (6, 6)) is maps


def test_a_data_set_of_nested_lists_is_one_of_maps():
    rows = Dataset.from_dict({"image": [Image.new("RGB", (16, 16))], "label": [[[1.0, None], [2.0, 3.0]]]})
    labels = collated([rows[0]])["labels"]
    assert labels.shape == (1, 4, 16, 16)
    assert set(labels[labels.isfinite()].tolist()) <= {1.0, 2.0, 3.0}
