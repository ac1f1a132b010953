"""What `conr-hf inspect` finds, in data made to hold every problem, and that it finds none where there is none."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from command_line import conr, photos, relabel
from PIL import Image
from small import images
from transformers import ViTImageProcessor

import conr_hf
from conr_hf import ConRConfig, load_benchmark
from conr_hf.cli.inspect import as_text
from conr_hf.cli.recipe import read_recipe
from conr_hf.data.augmentation import Augmentation
from conr_hf.data.collator import ImageCollator
from conr_hf.data.inspection import inspect
from conr_hf.data.local import load_local
from conr_hf.data.sampler import SampledIndex
from conr_hf.data.splits import split_counts
from conr_hf.imbalance import make_bins
from conr_hf.plots import COLOURS, label_histogram
from conr_hf.training.data_module import DataModule

AGES = np.random.default_rng(0).permutation([30] * 120 + [40] * 30 + list(range(50, 60)))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    datasets.enable_progress_bars()


def quietly(data, **options):
    return inspect(data, show_progress=False, **options)


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def noise(n, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8))


def rows_of(cells, **columns):
    cells = [encoded(cell, "PNG") if isinstance(cell, np.ndarray) else cell for cell in cells]
    return datasets.Dataset.from_dict({"image": cells, **columns}).cast_column("image", datasets.Image())


def test_figures_are_those_of_the_labels():
    data = {"test": images(40, seed=1), "train": images(300), "validation": images(50, seed=2)}
    found = quietly(data, bin_width=5)
    assert list(found["splits"]) == ["train", "validation", "test"]
    train = np.array(data["train"]["label"])
    bins, counts = np.unique(np.floor(train / 5), return_counts=True)
    count_of = dict(zip(bins, counts, strict=True))
    for split, rows in data.items():
        labels = np.array(rows["label"])
        figures = found["splits"][split]["labels"]["label"]
        assert figures == {
            "n": len(labels),
            "min": labels.min(),
            "max": labels.max(),
            "whole": False,
            "mean": labels.mean(),
            "std": labels.std(),
            "median": np.median(labels),
        }
        expected = [count_of.get(place, 0) for place in np.floor(labels / 5)]
        shots = {
            "many": sum(n > 100 for n in expected),
            "median": sum(20 <= n <= 100 for n in expected),
            "few": sum(n < 20 for n in expected),
        }
        assert found["splits"][split]["shots"] == shots
    assert found["imbalance_ratio"] == [counts.max() / counts.min()]
    assert found["few_share"] == sum(n for n in counts if n < 20) / 300
    weights = {place: count_of[place] ** -0.5 for place in count_of}
    mean = np.mean([weights[place] for place in np.floor(train / 5)])
    assert found["suggested"]["weights"] == pytest.approx(
        {"min": min(weights.values()) / mean, "max": max(weights.values()) / mean}
    )
    span = train.max() - train.min()
    assert found["suggested"]["conr_window"] == pytest.approx(span / 100)
    assert found["suggested"]["conr_push_scale"] == pytest.approx(1 / span)
    assert found["images"] == {"sizes": {"32 x 32": 390}, "modes": {"RGB": 390}, "notice": None}
    json.dumps(found, allow_nan=False)


def test_inspection_splits_and_training_have_bins_of_one_width():
    labels = np.minimum(np.random.default_rng(0).exponential(1.5, 600), 9.8).round(2)
    rows = rows_of(noise(600), label=labels.tolist())
    found = quietly({"train": rows})
    (width,) = found["suggested"]["bin_width"]
    assert width == 0.2
    assert np.diff(found["bins"]["edges"][0]) == pytest.approx(width)
    counts = split_counts(datasets.DatasetDict({"train": rows}), "label")
    assert [count.high - count.low for count in counts] == pytest.approx([width] * len(counts))
    args = ConRConfig("unused", report_to="none", disable_tqdm=True)
    assert np.diff(DataModule(args, rows, None, None).bins.edges[0]) == pytest.approx(width)


@pytest.mark.parametrize("name", ["quickstart", "best"])
def test_bins_of_the_benchmarks_are_those_that_their_recipes_were_run_with(name):
    card = Path(conr_hf.__file__).parents[1] / "model_cards" / name / "results.json"
    if not card.is_file():
        pytest.skip("conr_hf is installed; there are no model cards")
    saved = json.loads(card.read_text())["bins"]
    _, args, _ = read_recipe([name, "--report_to", "none", "--disable_tqdm", "true"])
    bins = DataModule(args, load_benchmark("earth-elevation")["train"], None, None).bins
    assert [bins.edges[0].tolist(), bins.train_counts[0].tolist()] == [saved["edges"][0], saved["train_counts"][0]]


def test_duplicates_are_found_whatever_file_they_are_in():
    a, b, c, d = noise(4)
    train = rows_of(
        [encoded(a, "PNG"), encoded(b, "PNG"), encoded(a, "BMP"), encoded(c, "PNG", compress_level=0)],
        label=[1, 2, 3, 4],
    )
    test = rows_of([encoded(d, "PNG"), encoded(c, "TIFF"), encoded(d[:4], "PNG")], label=[1, 2, 3])
    problems = quietly({"train": train, "test": test})["problems"]
    assert problems["duplicates_within"] == [[{"split": "train", "row": 0}, {"split": "train", "row": 2}]]
    assert problems["duplicates_across"] == [[{"split": "train", "row": 3}, {"split": "test", "row": 1}]]


def test_the_same_bytes_of_another_shape_are_another_image():
    pixels = np.arange(192, dtype=np.uint8)
    cells = [encoded(pixels.reshape(shape), "PNG") for shape in ((8, 8, 3), (4, 16, 3))]
    found = quietly({"train": rows_of(cells, label=[1, 2])})
    assert found["problems"]["duplicates_within"] == []
    assert found["images"]["sizes"] == {"8 x 8": 1, "16 x 4": 1}


def test_images_that_cannot_be_read_and_their_modes():
    grey = encoded(noise(1)[0][..., 0], "PNG")
    cut = {"bytes": encoded(noise(1)[0], "PNG")["bytes"][:90], "path": None}
    cells = [grey, {"bytes": b"no image", "path": None}, cut, {"bytes": None, "path": "gone.png"}, None]
    found = quietly({"train": rows_of(cells, label=[1, 2, 3, 4, 5])})
    assert found["images"]["modes"] == {"L": 1}
    unreadable = found["problems"]["unreadable_images"]
    assert [(problem["split"], problem["row"]) for problem in unreadable] == [("train", row) for row in (1, 2, 3, 4)]
    reasons = [problem["reason"] for problem in unreadable]
    assert "gone.png" in reasons[2]
    assert reasons[3] == "the image is missing"
    assert not any("0x" in reason for reason in reasons)


def test_bad_labels_are_named_and_left_out_of_the_figures():
    train = rows_of(noise(4), label=["12 years", "30", None, "40.5"])
    test = rows_of(noise(2, seed=1), label=[31.0, float("inf")])
    found = quietly({"train": train, "test": test})
    assert found["problems"]["bad_labels"] == [
        {"split": "train", "row": 0, "reason": 'column "label": "12 years" is not a number'},
        {"split": "train", "row": 2, "reason": 'column "label": the label is missing'},
        {"split": "test", "row": 1, "reason": 'column "label": the label is inf'},
    ]
    assert found["splits"]["train"]["labels"]["label"]["n"] == 2
    assert sum(found["bins"]["train_counts"][0]) == 2


def test_without_a_single_training_label_the_rest_is_still_told():
    data = {"train": rows_of(noise(2), label=["a", "b"]), "test": rows_of(noise(2), label=["1", "2"])}
    found = quietly(data)
    assert "bins" not in found
    assert len(found["problems"]["bad_labels"]) == 2
    assert len(found["problems"]["duplicates_across"]) == 2


def test_outliers_stand_far_from_the_median_by_the_usual_distance():
    usual = np.random.default_rng(0).normal(50, 2, 200)
    labels = np.append(usual, [500.0, 50.0, -40.0])
    found = quietly({"train": rows_of(noise(203), label=labels), "test": rows_of(noise(1, seed=1), label=[70.0])})
    median = np.median(labels)
    spread = np.median(np.abs(labels - median)) / 0.6744897501960817  # the normal distribution's third quartile
    expected = [("train", 200, 500.0), ("train", 202, -40.0), ("test", 0, 70.0)]
    outliers = found["problems"]["outliers"]
    assert [(problem["split"], problem["row"], problem["label"]) for problem in outliers] == expected
    for problem in outliers:
        assert problem["robust_z"] == pytest.approx((problem["label"] - median) / spread, rel=1e-4)


def test_labels_that_are_mostly_equal_have_no_outliers():
    assert quietly({"train": rows_of(noise(5), label=[1, 1, 1, 1, 9])})["problems"]["outliers"] == []


def test_groups_in_two_splits():
    train = rows_of(noise(4), label=[1, 2, 3, 4], person=["ann", "bob", "ann", None])
    test = rows_of(noise(2, seed=1), label=[1, 2], person=["ann", "cid"])
    problems = quietly({"train": train, "test": test}, group_column="person")["problems"]
    assert problems["groups_across"] == [{"group": "ann", "rows": {"train": 2, "test": 1}}]
    assert problems["rows_without_group"] == [{"split": "train", "row": 3}]


def test_several_label_dimensions_have_bins_of_their_own():
    found = quietly({"train": images(200, dimensions=2)}, label_columns=["label0", "label1"])
    assert set(found["splits"]["train"]["labels"]) == {"label0", "label1"}
    assert len(found["bins"]["edges"]) == len(found["suggested"]["bin_width"]) == len(found["imbalance_ratio"]) == 2
    assert sum(line.startswith("The fullest bin") for line in as_text(found)) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_columns": ["labl"]}, 'split "train" has no column "labl".*Did you mean "label"'),
        ({"image_column": "photo"}, 'no column "photo".*image_column'),
        ({"group_column": "who"}, 'no column "who".*group_column'),
        ({"bin_width": -1}, "bin_width is -1"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        quietly({"train": images(3)}, **options)


# ---- conr-hf inspect ------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path):
    return photos(tmp_path / "album", train=AGES, test=[30, 40, 55, 70])


def test_sound_data_is_told_in_a_table_and_nothing_is_written(album, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ended = conr("inspect", album)
    assert ended.code == 0, ended.err
    assert re.search(r"^train +160 +0 +0 +120 +30 +10$", ended.out, re.MULTILINE)
    assert re.search(r"^test +4 +0 +0 +1 +1 +2$", ended.out, re.MULTILINE)
    assert re.search(r"^label +train +30 +30 +59 .* whole$", ended.out, re.MULTILINE)
    assert re.search(r"^30 +120 +1  #{40}$", ended.out, re.MULTILINE) is None  # 30 bins in 15 lines, by twos
    assert re.search(r"^30 to 31 +120 +1  #{40}$", ended.out, re.MULTILINE)
    assert re.search(r"^40 to 41 +30 +1  \+{10}$", ended.out, re.MULTILINE)
    assert "bin_width: 1" in ended.out
    assert "120 times as many" in ended.out
    assert sorted(tmp_path.rglob("*")) == before


def test_problems_are_listed_by_row_and_are_no_failure(album, tmp_path):
    relabel(album, 5, "12 years")
    (album / "train" / "007.png").write_bytes(b"no image")
    (album / "test" / "000.png").write_bytes((album / "train" / "011.png").read_bytes())
    for row in range(20, 50):
        (album / "train" / f"{row:03}.png").write_bytes(b"")
    out = tmp_path / "report"
    ended = conr("inspect", album, "--output", out)
    assert ended.code == 0, ended.err
    assert 'train 5: column "label": "12 years" is not a number' in ended.out
    assert "- 31 images cannot be read" in ended.out
    assert "train 7: it is not an image" in ended.out
    assert "... and 11 more" in ended.out
    assert "train 11 = test 0" in ended.out
    assert "views 3 draws a picture: name a folder for it with --output" in conr("inspect", album, "--views", "3").err
    idle = conr("inspect", album, "--output", out, "--crop_area", "0.5").err
    assert "--crop_area would have no effect without --views" in idle
    drawn = conr("inspect", album, "--output", out, "--views", "3", "--augmentation", "strong", "--image_size", "16")
    assert f"{out / 'views.png'}, {out / 'labels.png'}" in drawn.out, drawn.err
    found = json.loads((out / "inspection.json").read_text())
    assert len(found["problems"]["unreadable_images"]) == 31
    assert Counter(problem["split"] for problem in found["problems"]["unreadable_images"]) == {"train": 31}


def test_views_are_those_of_training(album, tmp_path, monkeypatch):
    """Each of six images from the smallest to the largest label, and what a collator with the same options gives."""
    drawn = {}
    monkeypatch.setattr("conr_hf.cli.inspect_views.view_sheet", lambda *parts, **titles: drawn.update(parts=parts))
    options = ["--augmentation", "medium", "--horizontal_flip", "true", "--image_size", "16", "--views", "4"]
    ended = conr("inspect", album, "--output", tmp_path / "out", *options)
    assert ended.code == 0, ended.err
    images, views, names, path = drawn["parts"]
    assert path == tmp_path / "out" / "views.png"
    assert [int(name.split()[-1]) for name in names] == np.sort(AGES)[[0, 32, 64, 95, 127, 159]].tolist()
    rows = load_local(str(album))["train"]
    augmentation = Augmentation.named("medium", crop_padding=1 / 14, horizontal_flip=True)
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    collate = ImageCollator(processor, "image", ["label"], 4, augmentation, 0)
    row = int(names[2].split(":")[0].removeprefix("row "))
    expected = collate([(SampledIndex(row, 0, 2), rows[row])])["pixel_values"][0]
    for view, own in zip(views[2], expected, strict=True):
        assert np.array_equal(view, (own * 255).round().byte().permute(1, 2, 0).numpy())
    assert images[2].shape == (16, 16, 3)


def test_the_figure_shows_every_shot(tmp_path):
    pytest.importorskip("matplotlib")
    for width, target in ((1, ["age"]), (0.0001, ["age", "weight"])):  # 300,000 bins in a moment
        labels = np.stack([AGES] * len(target), axis=1)
        path = tmp_path / f"{len(target)}.png"
        label_histogram(
            make_bins(labels, width), path, unit="years", title="", target=target, whole=[width == 1] * len(target)
        )
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        for colour in COLOURS.values():
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (np.abs(pixels - rgb).max(-1) <= 2).sum() > 50


def test_without_matplotlib_the_rest_is_written(album, tmp_path, monkeypatch):
    monkeypatch.setattr("conr_hf.cli.inspect.find_spec", lambda name: None)
    ended = conr("inspect", album, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert 'pip install "conr-hf[plots]"' in ended.out
    assert [path.name for path in Path(tmp_path, "out").iterdir()] == ["inspection.json"]


def test_data_that_is_not_there_is_bad_input(tmp_path):
    ended = conr("inspect", tmp_path / "nothing.csv")
    assert ended.code == 2
    assert "neither a folder, a file nor an id" in ended.err


def test_sixteen_bits_and_maps(tmp_path):
    """Photographs beside depths in millimetres, of which 0 is none: inspected with the options of training."""
    random, rows = np.random.default_rng(0), ["file_name,depth_file_name"]
    depths = random.integers(800, 4000, (6, 8, 8)).astype(np.uint16)
    depths[:, :2, :2] = 0
    for index, depth in enumerate(depths):
        Image.fromarray(random.integers(0, 1000, (8, 8)).astype(np.uint16)).save(tmp_path / f"{index}.png")
        Image.fromarray(depth).save(tmp_path / f"depth{index}.png")
        rows.append(f"{index}.png,depth{index}.png")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    command = ["inspect", str(tmp_path), "--label_columns", "depth"]
    assert (
        "Note: 6% of the labelled pixels are 0. If 0 means that there is no label, set map_invalid to 0."
        in conr(*command).out
    )
    report = conr(*command, "--map_scale", "0.001", "--map_invalid", "0", "--output", str(tmp_path / "out")).out
    assert "of the labelled pixels are 0" not in report
    assert "Note: the images have 16 bits, but no number above 9" in report
    assert "Maps: 8 x 8 (6); 93.8% of a map's pixels have a label." in report
    found = json.loads((tmp_path / "out" / "inspection.json").read_text())
    valid = depths[depths > 0] * 0.001
    figures = found["splits"]["train"]["labels"]["depth"]
    assert figures["n"] == len(valid) == 360
    assert figures["mean"] == pytest.approx(valid.mean(), rel=1e-6)
    assert sum(found["bins"]["train_counts"][0]) == 360
    assert found["thresholds"] == [20 * 60, 100 * 60]
    ranged = conr(*command, "--map_invalid", "0", "--image_range", "0", "1000").out
    assert "the images have 16 bits" not in ranged
