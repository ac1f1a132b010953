"""The density figure: a readable PNG for one and several label dimensions, and a clear word without matplotlib."""

import sys

import numpy as np
import pytest
from PIL import Image

from conr_hf.imbalance import make_bins
from conr_hf.metrics import constant_median
from conr_hf.plots import COLOURS, density_with_error


def has_colour(image: Image.Image, colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(np.asarray(image.convert("RGB")).astype(int) - rgb).max(-1) <= 2).sum() > 100)


def test_one_dimension(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    train, y = rng.exponential(20, 3000), rng.uniform(-5, 150, 200)  # some outside the bins
    path = tmp_path / "density.png"
    pyplot_before = "matplotlib.pyplot" in sys.modules
    density_with_error(
        make_bins(train, 5.0),
        y,
        (y * 0.7)[:, None],
        path,
        unit="years",
        title="A title",
        target="age",
        baseline=constant_median(train, 200),
    )
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 800 <= image.width <= 2000
        assert 600 <= image.height <= 1500
        assert all(has_colour(image, colour) for colour in COLOURS.values())
    assert 10_000 < path.stat().st_size < 300_000
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before  # no global state, no display


def test_two_dimensions_and_very_many_bins(tmp_path):
    pytest.importorskip("matplotlib")
    train = np.random.default_rng(0).normal(size=(500, 2))
    path = tmp_path / "density.png"
    bins = make_bins(train, [0.0001, 0.5])
    density_with_error(bins, train[:50], train[:50] * 0.9, path, unit="", title="", target=["pitch", "yaw"])
    with Image.open(path) as image:
        assert image.width > 1.3 * image.height
        assert has_colour(image, COLOURS["few"])  # bars far narrower than a pixel still show
    with pytest.raises(ValueError, match="target names 1 label dimensions"):
        density_with_error(bins, train, train, path, unit="", title="", target=["pitch"])


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "conr-hf\[plots\]"'):
        density_with_error(make_bins([1, 2]), [1], [1], tmp_path / "x.png", unit="", title="")


def test_wrong_lengths_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="one prediction for each label"):
        density_with_error(make_bins([1, 2]), [1, 2], [1], tmp_path / "x.png", unit="", title="")
