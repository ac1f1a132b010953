"""Drawn eyes: gaze as it was asked for, the same eyes each time, and mirror images that look to the other side."""

import numpy as np
import pytest

from conr_hf import load_benchmark
from conr_hf.data.benchmarks.eyes import EyesConfig, _directions, _light, _looks, draw_eyes
from conr_hf.data.benchmarks.loading import benchmark_of
from conr_hf.data.benchmarks.synthetic import read_settings
from conr_hf.imbalance import make_bins
from conr_hf.metrics import sample_shots

RIGHT, UP = -0.6, 0.4


@pytest.fixture(scope="module")
def eyes():
    return load_benchmark("eyes", "rows=1500")


def drawn(pitch, yaw, looks, size=32):
    return _light(np.asarray(pitch, float), np.asarray(yaw, float), looks, size)


def mirrored(looks):
    """What the same eyes look like in a mirror."""
    return {name: -value if name in ("x", "inner", "light_x") else value for name, value in looks.items()}


@pytest.mark.parametrize("imbalance", [1, 10, 1000])
def test_the_density_falls_to_both_sides_as_it_was_asked_to(imbalance):
    pitch, yaw = _directions(np.random.default_rng(0), 4000, imbalance)
    assert np.abs(pitch).max() <= 0.5
    assert np.abs(yaw).max() <= 0.7
    for part in (np.abs(yaw) / 0.7, (pitch[pitch > -0.1] + 0.1) / 0.6, (-0.1 - pitch[pitch < -0.1]) / 0.4):
        for x in (0.25, 0.5, 0.75):
            share = 1 - x if imbalance == 1 else (imbalance ** (1 - x) - 1) / (imbalance - 1)
            assert abs((part > x).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(part))
    # Continuous at its peak: each side has the share of its width.
    for above, share in (((yaw > 0).mean(), 0.5), ((pitch > -0.1).mean(), 0.6)):
        assert abs(above - share) < 4 * np.sqrt(share * (1 - share) / 4000)
    assert abs(np.corrcoef(pitch, yaw)[0, 1]) < 4 / np.sqrt(4000)


def test_evaluation_is_balanced_and_every_shot_is_tested():
    data = load_benchmark("eyes")
    train, test = (np.stack([data[split]["pitch"], data[split]["yaw"]], axis=1) for split in ("train", "test"))
    assert train.shape == (4000, 2)
    for column, most in ((0, 0.5), (1, 0.7)):
        counts = np.histogram(test[:, column], 10, (-most, most))[0]
        assert counts.sum() == 2000
        assert counts.min() > 200 - 4 * np.sqrt(200)
    benchmark = benchmark_of(data["train"], train)
    assert benchmark.name == "eyes"
    assert benchmark_of(data["train"], np.degrees(train)) is None
    shots = sample_shots(test, make_bins(train, benchmark.bin_width))
    assert min(mask.sum() for mask in shots.values()) > 50


def test_drawings_are_repeated_by_their_seed():
    first, again, other = (draw_eyes(EyesConfig(rows=20, seed=seed, size=16)) for seed in (3, 3, 4))
    for row, same, different in zip(first["train"], again["train"], other["train"], strict=True):
        assert row["yaw"] == same["yaw"] != different["yaw"]
        assert np.asarray(row["image"]).tobytes() == np.asarray(same["image"]).tobytes()
        assert row["image"].size == (16, 16)


def test_a_mirror_turns_the_yaw():
    """Flipping half of the images with their yaw negated would else show eyes that are not there."""
    random = np.random.default_rng(0)
    pitch, yaw = _directions(random, 50, 1)
    looks = _looks(random, 50)
    assert np.abs(drawn(pitch, yaw, looks)[:, :, ::-1] - drawn(pitch, -yaw, mirrored(looks))).max() < 1e-4
    for name in ("x", "inner", "light_x"):  # as likely on either side
        values = _looks(random, 4000)[name].ravel()
        assert abs((values > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_the_gaze_can_be_seen():
    """Dark pupils go where the eye looks, and an eye hardly changes where the gaze hardly does."""
    looks = _looks(np.random.default_rng(0), 60)
    looks["skin"][:] = 0.8
    looks["iris"][:] = looks["pupil"][:] = 0.5
    looks["lashes"][:] = looks["brow"][:] = looks["crease"][:] = looks["glint"][:] = 0
    height, width = np.mgrid[:32, :32] - 15.5

    def middle(pitch, yaw):
        dark = drawn(np.full(60, pitch), np.full(60, yaw), looks).mean(-1)
        inside = np.clip(0.25 - dark, 0, None)
        return (inside * width).sum((1, 2)) / inside.sum((1, 2)), (inside * height).sum((1, 2)) / inside.sum((1, 2))

    across, down = middle(0.0, 0.0)
    assert (middle(0.0, RIGHT)[0] - across > 3).all()
    assert (middle(0.0, -RIGHT)[0] - across < -3).all()
    assert (middle(UP, 0.0)[1] - down < -1).all()
    assert (middle(-UP, 0.0)[1] - down > 1).all()
    straight = drawn(np.zeros(60), np.zeros(60), looks)
    assert np.abs(drawn(np.zeros(60), np.full(60, 0.001), looks) - straight).max() < 0.05


def test_large_and_small_images_show_the_same_eye():
    looks = _looks(np.random.default_rng(0), 20)
    large, small = (drawn(np.full(20, 0.1), np.full(20, 0.3), looks, size) for size in (64, 32))
    shrunk = large.reshape(20, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 0.01


def test_as_a_benchmark(eyes):
    assert {split: len(rows) for split, rows in eyes.items()} == {"train": 1500, "validation": 1000, "test": 2000}
    assert eyes["train"].info.dataset_name == "eyes"
    pixels = np.stack([np.asarray(image) for image in eyes["test"][:300]["image"]])
    assert pixels.shape == (300, 32, 32, 3)
    assert 70 < pixels.mean() < 180
    with pytest.raises(ValueError, match="eyes are drawn into memory; leave streaming out"):
        load_benchmark("eyes", streaming=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imbalanse=10", '"imbalanse=10" is no setting; write imbalance=..., rows=..., seed=..., size=...'),
        ("size=half", 'eyes: size is "half"; it must be a whole number'),
        ("size=8", "eyes: size is 8; it must be 16 to 256 pixels"),
        ("imbalance=0.5", "eyes: imbalance is 0.5; it must be finite and 1 or more"),
        ("rows=0", "eyes: rows is 0; it must be 1 or more"),
        ("seed=-1", "eyes: seed is -1; it must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_meant(text, message):
    with pytest.raises(ValueError, match=message):
        read_settings("eyes", text, EyesConfig)
