"""Drawn images: labels as they were asked for, the same images each time, and visible in the pixels."""

import numpy as np
import pytest

from conr_hf import load_benchmark
from conr_hf.data.benchmarks.ellipses import PROPERTIES, SIDE, EllipsesConfig, _images, draw_ellipses
from conr_hf.data.benchmarks.loading import benchmark_of
from conr_hf.data.benchmarks.synthetic import read_settings


@pytest.mark.parametrize("imbalance", [1, 10, 1000])
def test_the_density_falls_as_it_was_asked_to(imbalance):
    """A study of imbalance would vary something else."""
    labels = np.array(draw_ellipses(EllipsesConfig(imbalance=imbalance, rows=4000))["train"]["size"])
    assert labels.min() >= 0
    assert labels.max() <= 100
    # Of a density that falls by the factor r over 100, from x on lies the share (r^(1 - x/100) - 1) / (r - 1).
    for x in (25, 50, 75):
        share = 1 - x / 100 if imbalance == 1 else (imbalance ** (1 - x / 100) - 1) / (imbalance - 1)
        spread = np.sqrt(share * (1 - share) / len(labels))
        assert abs((labels > x).mean() - share) < 4 * spread


def test_evaluation_is_balanced_and_no_split_repeats_another():
    data = draw_ellipses(EllipsesConfig(imbalance=1000, rows=1000))
    for split, rows in (("validation", 1000), ("test", 2000)):
        counts = np.histogram(data[split]["size"], 10, (0, 100))[0]
        assert counts.sum() == rows
        assert counts.min() > rows / 10 - 4 * np.sqrt(rows / 10)
    assert not set(data["validation"]["size"]) & set(data["test"]["size"])


def test_drawings_are_repeated_by_their_seed():
    first, again, other = (draw_ellipses(EllipsesConfig(rows=20, seed=seed)) for seed in (3, 3, 4))
    for row, same, different in zip(first["train"], again["train"], other["train"], strict=True):
        assert row["size"] == same["size"] != different["size"]
        assert np.asarray(row["image"]).tobytes() == np.asarray(same["image"]).tobytes()
        assert row["image"].size == (SIDE, SIDE)


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_can_be_seen(name):
    """An experiment on images that do not show their label compares ways of guessing."""
    values = np.random.default_rng(0).random((200, 8))
    images = []
    for value in (0.1, 0.9):
        values[:, PROPERTIES.index(name)] = value
        images.append(_images(values, np.random.default_rng(1)).astype(float))
    same = _images(values, np.random.default_rng(1)).astype(float)
    assert np.array_equal(same, images[1])
    changed = (np.abs(images[1] - images[0]).max(-1) > 15).sum((1, 2))  # pixels
    assert np.median(changed) > 10
    if name == "size":  # from 26 to 138 pixels, of which some have the ground's shade
        assert 60 < np.median(changed) < 150


def test_dimensions_are_independent_labels():
    rows = draw_ellipses(EllipsesConfig(imbalance=100, dimensions=8, rows=3000))["train"]
    labels = np.stack([rows[name] for name in PROPERTIES])
    assert rows.column_names == ["image", *PROPERTIES]
    correlations = np.corrcoef(labels) - np.eye(8)
    assert np.abs(correlations).max() < 4 / np.sqrt(3000)
    assert np.allclose(labels.mean(1), 20.7, atol=1.5)


def test_as_a_benchmark():
    data = load_benchmark("ellipses", "imbalance=10, rows=50")
    assert len(data["train"]) == 50
    assert benchmark_of(data["train"], np.array(data["train"]["size"])).bin_width == 1
    assert benchmark_of(data["train"], 1000 * np.array(data["train"]["size"])) is None
    assert len(load_benchmark("ellipses")["train"]) == 4000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imbalanse=10", '"imbalanse=10" is no setting; write imbalance=..., dimensions=..., rows=..., seed=...'),
        ("imbalance=many", 'imbalance is "many"; it must be a number'),
        ("rows=1.5", 'rows is "1.5"; it must be a whole number'),
        ("imbalance=0.5", "imbalance is 0.5; it must be finite and 1 or more"),
        ("imbalance=inf", "imbalance is inf; it must be finite and 1 or more"),
        ("dimensions=9", "dimensions is 9; it must be 1 to 8"),
        ("rows=0", "rows is 0; it must be 1 or more"),
        ("seed=-1", "seed is -1; it must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_meant(text, message):
    with pytest.raises(ValueError, match=message):
        read_settings("ellipses", text, EllipsesConfig)
