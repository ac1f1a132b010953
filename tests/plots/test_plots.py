"""Pictures: readable files for one and several label dimensions, and a clear word without matplotlib."""

import re
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from conr_hf.imbalance import Bins, make_bins
from conr_hf.metrics import StreamedErrors, constant_median
from conr_hf.plots import (
    COLOURS,
    contact_sheet,
    density_with_error,
    density_with_pixel_error,
    errors_of_runs,
    feature_map,
    label_and_feature_distances,
    label_histogram,
    map_pictures,
    predicted_against_true,
    training_curves,
    world_map,
)
from conr_hf.plots.feature_map import projections


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


def test_errors_of_pixels_are_drawn_as_those_of_samples(tmp_path):
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    train, truth = random.exponential(2, 3000), random.exponential(3, (4, 9, 9))
    truth[0, :4] = np.nan
    bins = make_bins(train, 1.0)
    bins = Bins(bins.edges, bins.train_counts, bins.tolerance, (50.5, 12345.6))
    errors = StreamedErrors(bins)
    errors.update(truth + 0.5, truth)
    tested, means = errors.of_bins()
    outside = errors.compute()["all"]["n"] - int(tested.sum())
    assert outside > 0
    draw = {"unit": "m", "title": "T", "target": "depth"}
    density_with_pixel_error(bins, tested, means, tmp_path / "a", baseline=means + 1, outside=outside, **draw)
    words = texts(tmp_path / "a.svg")
    parts = ("training pixels per bin", "test pixels", f"not shown: {outside}", "depth (m)", "constant median")
    assert all(part in words for part in parts)
    assert "median-shot (50.5 to 12,346)" in words
    there = truth[~np.isnan(truth)]
    density_with_error(bins, there, there + 0.5, tmp_path / "b.png", baseline=there + 1.5, **draw)
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        bars = [np.all(np.asarray(picture)[..., :3] == [0xD5, 0x5E, 0x00], axis=-1).sum() for picture in (a, b)]
    assert bars[0] == pytest.approx(bars[1], rel=0.05)


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "conr-hf\[plots\]"'):
        density_with_error(make_bins([1, 2]), [1], [1], tmp_path / "x.png", unit="", title="")


def test_wrong_lengths_are_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="one prediction for each label"):
        density_with_error(make_bins([1, 2]), [1, 2], [1], tmp_path / "x.png", unit="", title="")


def texts(path):
    """The words of an SVG, which are words in it and no outlines."""
    return " ".join("".join(node.itertext()) for node in ElementTree.parse(path).iter() if node.tag.endswith("}text"))


@pytest.fixture
def samples():
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    labels = random.exponential(20, 300)
    return labels, labels * 0.7 + random.normal(0, 3, 300)


def test_without_an_ending_both_files_are_written_and_the_same_every_time(samples, tmp_path):
    labels, predictions = samples
    bins = make_bins(labels, 5.0)
    for name in ("a", "b"):
        predicted_against_true(bins, labels, predictions, tmp_path / name, unit="years", title="T", target="age")
    predicted_against_true(bins, labels, predictions, tmp_path / "only.svg", unit="years", title="T")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg", "only.svg"]
    for ending in ("png", "svg"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert "true age (years)" in texts(tmp_path / "a.svg")
    assert "predicted age (years)" in texts(tmp_path / "a.svg")


def test_runs_against_each_other(samples, tmp_path):
    labels, predictions = samples
    bins = make_bins(labels, 5.0)
    runs = {"plain": predictions, "with conr": predictions[:, None], **{f"run {i}": predictions for i in range(6)}}
    errors_of_runs(bins, labels, runs, tmp_path / "runs", unit="years", title="T", target="age")
    words = texts(tmp_path / "runs.svg")
    assert all(name in words for name in ("plain", "run 5", "mean absolute error (years)"))
    two = np.stack([labels, labels], axis=1)
    errors_of_runs(make_bins(two, 5.0), two, {"a": two, "b": two}, tmp_path / "two", unit="", title="T")
    with pytest.raises(ValueError, match="one prediction for each label"):
        errors_of_runs(bins, labels, {"a": predictions[:5]}, tmp_path / "x", unit="", title="")


def history(*names):
    return [{"epoch": float(epoch), "step": epoch, **dict.fromkeys(names, 1.0 / epoch)} for epoch in (1, 2, 3)]


def test_a_legend_names_the_shots_that_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rare, common = np.repeat([1.0, 2.0, 3.0], 5), np.repeat([1.0, 2.0, 3.0], 150)
    what = {"unit": "m", "title": "T"}
    for labels, shown in ((rare, {"few"}), (common, {"many"}), (np.append(common, rare + 5), {"many", "few"})):
        bins = make_bins(labels, 1.0)
        density_with_error(bins, labels, labels, tmp_path / "density.svg", **what)
        predicted_against_true(bins, labels, labels, tmp_path / "scatter.svg", **what)
        errors_of_runs(bins, labels, {"a": labels, "b": labels}, tmp_path / "runs.svg", **what)
        label_histogram(bins, tmp_path / "histogram.svg", target=["age"], whole=[True], **what)
        for name in ("density", "scatter", "runs", "histogram"):
            words = texts(tmp_path / f"{name}.svg")
            found = {shot for shot in COLOURS if re.search(rf"\b{shot}\b[\w-]* \(", words)}
            assert found == shown, name
    untested = make_bins(np.append(common, rare + 5), 1.0)  # the rare labels are trained on, and drawn above
    density_with_error(untested, common, common, tmp_path / "density.svg", **what)
    assert "few" in texts(tmp_path / "density.svg")


def test_curves_of_a_run_without_common_labels_name_none(tmp_path):
    pytest.importorskip("matplotlib")
    training_curves({"a": history("eval_mae", "eval_few_mae")}, tmp_path / "a", unit="m", title="T", best={"a": 2.0})
    words = texts(tmp_path / "a.svg")
    assert "few" in words
    assert "many" not in words
    assert "median" not in words
    assert re.findall(r"\b\d\.5\b", words.partition("epoch")[0]) == []  # of three epochs


def test_curves_have_a_panel_for_what_was_logged(samples, tmp_path):
    names = ("base_loss", "conr_loss", "conr_anchors", "conr_gradient", "eval_mae", "eval_few_mae")
    opposed = [{**entry, "conr_cosine": -0.5} for entry in history(*names)]
    training_curves({"a": opposed}, tmp_path / "one", unit="m", title="T", best={"a": 2.0})
    words = texts(tmp_path / "one.svg")
    assert all(part in words for part in ("base loss", "ConR loss", "anchors", "MAE (m)", "few", "kept checkpoint"))
    assert "gradient at the features" in words
    assert "cosine" in words
    assert "\u22120.5" in words  # the panel reaches below 0
    runs = {"a": history(*names), "b": history("base_loss")}
    training_curves(runs, tmp_path / "two", unit="m", title="T")
    plain = history("base_loss", "loss")
    training_curves({"a": plain}, tmp_path / "plain", unit="m", title="T")
    words = texts(tmp_path / "plain.svg")
    assert "base loss" in words
    assert "ConR" not in words
    assert "MAE" not in words
    with pytest.raises(ValueError, match="logged none of base_loss"):
        training_curves({"a": history("loss")}, tmp_path / "none", unit="m", title="T")


def test_contact_sheet_shows_each_image_with_truth_and_prediction(samples, tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [
        Image.new("RGB", size, colour) for size, colour in zip(((8, 8), (900, 300), (5, 20)), colours, strict=True)
    ]
    labels, predictions = [[1.25, -3.0]] * 3, [[5000.5, 2.0]] * 3
    rows = ["row 7", "row 8", "row 9"]
    shots = ["few", "few", "many"]
    contact_sheet(images, labels, predictions, shots, rows, tmp_path / "worst", span=50.0, title="T")
    words = texts(tmp_path / "worst.svg")
    assert all(part in words for part in ("row 7", "row 9", "true 1.2, -3", "predicted 5,000.5, 2", "few-shot"))
    assert "median-shot" not in words
    assert "-3.0" not in words
    with Image.open(tmp_path / "worst.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert all((pixels == colour).all(1).sum() > 1000 for colour in colours)


def test_map_of_the_world(samples, tmp_path):
    labels, predictions = samples
    random = np.random.default_rng(1)
    places = random.uniform(-60, 75, 300), random.uniform(-180, 180, 300)
    world_map(
        *places, labels, predictions, tmp_path / "map", unit="m", title="T", target="height", training_places=places
    )
    words = texts(tmp_path / "map.svg")
    assert all(part in words for part in ("true height", "predicted height", "error (m)", "60°W", "30°N"))
    world_map([10.0], [20.0], np.ones(1), np.ones(1), tmp_path / "one", unit="", title="T")  # no error, no range


def test_pictures_of_maps(samples, tmp_path):
    truth = np.add.outer(np.linspace(0, 10, 12), np.linspace(0, 10, 16))
    holed = truth.copy()
    holed[:3] = np.nan
    images = [Image.new("RGB", (32, 24), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    draw = {"unit": "m", "target": "depth"}
    predictions = [truth + 2.0, torch.tensor(truth - 1.0)[None]]
    for name in ("a", "b"):
        map_pictures(images, [truth, holed], predictions, tmp_path / name, title="T", names=["row 4", "row 7"], **draw)
    words = texts(tmp_path / "a.svg")
    parts = ("row 4", "row 7", "true depth", "predicted depth", "depth (m)", "error (m)", "no label")
    assert all(part in words for part in parts)
    assert "MAE 2 m" in words  # of a map without holes
    assert "MAE 1 m" in words  # of the pixels with a label
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    map_pictures(images, [truth, truth], predictions, tmp_path / "whole", title="T", **draw)
    assert "no label" not in texts(tmp_path / "whole.svg")
    map_pictures(images[:1], None, predictions[:1], tmp_path / "alone", title="T", **draw)
    words = texts(tmp_path / "alone.svg")
    assert "predicted depth" in words
    assert not any(part in words for part in ("true", "error", "no label"))


@pytest.mark.filterwarnings("error")
def test_pictures_of_a_map_without_labels_of_a_constant_and_of_no_error(tmp_path):
    pytest.importorskip("matplotlib")
    image, flat = Image.new("L", (8, 20)), np.full((5, 2), 3.0)
    labels = [np.full((5, 2), np.nan), flat]
    map_pictures([image, image], labels, [flat, flat], tmp_path / "maps", unit="", title="T")
    words = texts(tmp_path / "maps.svg")
    assert "no label to compare with" in words
    assert "error, MAE 0" in words
    with pytest.raises(ValueError, match=r"^predictions\[0\] is of shape \(2, 5\) and labels of \(5, 2\)"):
        map_pictures([image], [flat], [flat.T], tmp_path / "x.png", unit="", title="")


def test_pca_is_the_one_of_scikit_learn():
    features = np.random.default_rng(0).normal(size=(60, 7)) * np.arange(1, 8)
    maps = projections(features, seed=0)
    (name, found), *others = maps.items()
    pca = PCA(2).fit(features)
    np.testing.assert_allclose(np.abs(found), np.abs(pca.transform(features)), atol=1e-6)
    assert name == f"PCA ({100 * pca.explained_variance_ratio_.sum():.0f} % of the variance)"
    assert all(places.shape == (60, 2) and np.isfinite(places).all() for _, places in others)
    assert "t-SNE" in maps


def test_maps_without_umap_learn_and_of_next_to_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert len(projections(np.random.default_rng(0).normal(size=(60, 7)), seed=0)) == 2
    for features in (np.ones((3, 4)), np.arange(5.0)[:, None]):  # all the same; one dimension
        (places,) = projections(features, seed=0).values()
        assert places.shape == (len(features), 2)
        assert np.isfinite(places).all()


def test_features_and_distances(samples, tmp_path):
    labels, _ = samples
    random = np.random.default_rng(0)
    two = np.stack([labels, -labels], axis=1)
    features = random.normal(size=(300, 8))
    feature_map(
        features,
        two,
        np.arange(300) > 200,
        tmp_path / "map",
        unit="°",
        title="T",
        target=["pitch", "yaw"],
        split="held",
    )
    assert all(part in texts(tmp_path / "map.svg") for part in ("pitch (°)", "yaw (°)", "held images", "PCA"))
    draw = {"unit": "m", "title": "T", "target": "height"}
    counts = random.integers(0, 200, 300)
    pairs = random.uniform(0, 50, 4000), random.uniform(0, 1, 4000)
    label_and_feature_distances(*pairs, labels, labels[:, None].repeat(5, 1), counts, tmp_path / "distances", **draw)
    words = texts(tmp_path / "distances.svg")
    assert all(part in words for part in ("distance of labels (m)", "1 - cosine", "height of the 5 nearest"))
    few = np.zeros(1), np.zeros(1)  # two samples with the same label and feature
    label_and_feature_distances(*few, labels[:2], labels[:2, None], counts[:2], tmp_path / "few", **draw)
    assert (tmp_path / "few.png").is_file()
