"""NYUD2-DIR from a folder in its published layout, in small."""

import pickle

import datasets
import numpy as np
import pytest
import small
from PIL import Image

from conr_hf import load_regressor
from conr_hf.data.benchmarks import nyud2
from conr_hf.data.benchmarks.loading import benchmark_of, load_benchmark
from conr_hf.inference.evaluate_dense import evaluate_maps
from conr_hf.training.data_module import DataModule

FILMS = ["attic_0001a_out", "attic_0001b_out", "kitchen_0002_out", "office_0003_out"]
SIZE = (640, 480)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def depths(seed, bits, size=SIZE):
    """Numbers as a scanner stores them, of 1.96 to 9.96 m."""
    fine = np.random.default_rng(seed).integers(50, 255, (size[1], size[0]))
    return fine.astype(np.uint8) if bits == 8 else (fine * 39).astype(np.uint16)


def frame(folder, name, seed, bits, size=SIZE):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    photograph = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(photograph).save(folder / f"{name}.jpg")
    Image.fromarray(depths(seed, bits, size)).save(folder / f"{name}.png")
    return f"data/{name}.jpg,data/{name}.png\n"


@pytest.fixture
def published(tmp_path):
    """Two frames of each film, and three to test with."""
    folder = tmp_path / "nyud2" / "data"
    train = [
        frame(folder, f"nyu2_train/{film}/{shot}", 2 * place + shot, 8)
        for place, film in enumerate(FILMS)
        for shot in (0, 1)
    ]
    test = [frame(folder, f"nyu2_test/{index:05}", 100 + index, 16) for index in range(3)]
    (folder / "nyu2_train.csv").write_text("".join(train))
    (folder / "nyu2_test.csv").write_text("".join(test))
    mask = np.random.default_rng(0).integers(0, 2, (3, 228, 304)).astype(np.uint8)
    np.save(folder / "test_balanced_mask.npy", mask)
    return folder


def middle(values, to):
    """By PIL, step by step: the short side has 240 pixels, then the middle 304 x 228, then `to`."""
    image = Image.fromarray(values).resize((320, 240), Image.Resampling.NEAREST).crop((8, 6, 312, 234))
    return np.asarray(image.resize(to, Image.Resampling.NEAREST))


def test_the_published_layout(published):
    data = load_benchmark("nyud2-dir", published)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "validation": 4, "test": 3}
    for split, seeds in {"train": [4, 5, 6, 7], "validation": [0, 1, 2, 3]}.items():
        for row, seed in zip(data[split], seeds, strict=True):
            assert row["image"].size == (304, 228)
            assert row["label"].dtype == np.float32
            np.testing.assert_allclose(row["label"], middle(depths(seed, 8), (152, 114)) * (10 / 255), rtol=1e-6)
    mask = np.load(published / "test_balanced_mask.npy")
    for index, row in enumerate(data["test"]):
        assert row["image"].size == (304, 228)
        expected = np.where(mask[index] == 1, middle(depths(100 + index, 16), (304, 228)) / 1000, np.nan)
        np.testing.assert_allclose(row["label"], expected, rtol=1e-6)
    photograph = Image.open(published / "nyu2_test/00000.jpg").resize((320, 240), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(data["test"][0]["image"]), np.asarray(photograph)[6:234, 8:312])
    assert data["test"].info.dataset_name == "nyud2-dir"
    assert "Silberman" in data["train"].info.citation


def test_the_folder_that_it_unpacks_to(published):
    assert len(load_benchmark("nyud2-dir", published.parent)["test"]) == 3


def test_no_room_is_in_two_splits(published, monkeypatch):
    monkeypatch.setattr(nyud2, "EVERY", 2)
    monkeypatch.setattr(nyud2, "VALIDATION_ROWS", 3)
    data = nyud2.load_nyud2(published)
    of = {split: [seed for row in rows for seed in range(8) if same(row, seed)] for split, rows in data.items()}
    assert of["train"] == [4, 5]  # the kitchen, between the attic, in two films, and the office
    assert of["validation"] == [1, 3, 7]  # of 0, 1, 2, 3, 6 and 7 every second one


def same(row, seed):
    return row["label"].shape == (114, 152) and np.allclose(
        row["label"], middle(depths(seed, 8), (152, 114)) * (10 / 255)
    )


def test_a_single_room_has_no_validation_split(published):
    lines = (published / "nyu2_train.csv").read_text().splitlines()[:4]
    (published / "nyu2_train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="have no split validation"):
        load_benchmark("nyud2-dir", published)
    assert list(load_benchmark("nyud2-dir", published, require_splits=False)) == ["train", "test"]


def test_depths_of_0_are_no_depths(published):
    half = np.where(np.arange(640) < 320, 0, depths(4, 8)).astype(np.uint8)
    Image.fromarray(half).save(published / "nyu2_train/kitchen_0002_out/0.png")
    label = load_benchmark("nyud2-dir", published)["train"][0]["label"]
    assert np.isnan(label[:, :76]).all()
    assert np.isfinite(label[:, 76:]).all()


def test_workers_get_their_own_copy(published):
    rows = load_benchmark("nyud2-dir", published)["test"]
    copy = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(copy[1]["label"], rows[1]["label"])
    np.testing.assert_array_equal(rows.select([2])[0]["label"], rows[2]["label"])


def test_a_trainer_reads_them(published, tmp_path):
    data = load_benchmark("nyud2-dir", published)
    of = DataModule(small.settings(tmp_path / "run"), data["train"], data["test"], None)
    of.check()
    assert of.labels_are_maps
    assert of.valid_share() == 1
    assert of.bin_width() == 0.1
    assert benchmark_of(data["train"], of.training_labels()).name == "nyud2-dir"
    assert benchmark_of(data["train"], 1000 * of.training_labels()) is None
    few, many = of.shot_thresholds()
    # 10 and 26 million pixels of 50,688 maps of 304 x 228, of which these 4 have a quarter of the pixels each.
    assert few == pytest.approx(1.0e7 / 4)
    assert many == pytest.approx(2.6e7 / 4)


def test_paths_may_be_links(published):
    """As all files of a data set in the cache of the Hub are."""
    path = published / "nyu2_train/kitchen_0002_out/0.jpg"
    elsewhere = path.rename(published.parent / "blob")
    path.symlink_to(elsewhere)
    row = load_benchmark("nyud2-dir", published)["train"][0]
    assert same(row, 4)
    assert row["image"].size == (304, 228)


def without(text):
    return lambda folder: (folder / text).unlink()


def line(number, text):
    def change(folder):
        lines = (folder / "nyu2_train.csv").read_text().splitlines()
        lines[number - 1] = text
        (folder / "nyu2_train.csv").write_text("\n".join(lines) + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("nyu2_test.csv"), r"there is no nyu2_test\.csv in"),
        (without("test_balanced_mask.npy"), r"there is no test_balanced_mask\.npy in .*balanced one\.$"),
        (
            without("nyu2_train/kitchen_0002_out/1.png"),
            r"nyu2_train\.csv, line 6: there is no file \".*out/1\.png\"\.$",
        ),
        (line(2, "data/nyu2_train/a.jpg"), r"nyu2_train\.csv, line 2: it has 1 cells, not a photograph and its depth"),
        (line(3, "data/../../x.jpg,data/y.png"), r'line 3: "data/\.\./\.\./x\.jpg" lies outside the folder'),
        (lambda folder: (folder / "nyu2_test.csv").write_text(""), r"nyu2_test\.csv names no photograph"),
        (
            lambda folder: np.save(folder / "test_balanced_mask.npy", np.zeros((3, 304, 228), np.uint8)),
            r"test_balanced_mask\.npy has shape \(3, 304, 228\), where nyu2_test\.csv needs \(3, 228, 304\)\.$",
        ),
    ],
)
def test_what_is_not_as_published_is_told_before_anything_is_read(published, change, says):
    change(published)
    with pytest.raises(ValueError, match=says) as refused:
        load_benchmark("nyud2-dir", published)
    assert str(refused.value).startswith(f'data "{published}" cannot be read: ')
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nyu2_train/office_0003_out/0.jpg", b"no image", 'office_0003_out/0.jpg" cannot be read: it is not an image'),
        ("nyu2_train/office_0003_out/0.png", b"", 'office_0003_out/0.png" cannot be read: the file is empty'),
    ],
)
def test_files_that_cannot_be_read_are_named(published, name, content, says):
    (published / name).write_bytes(content)
    rows = load_benchmark("nyud2-dir", published)["train"]
    with pytest.raises(ValueError, match=says):
        rows[2]


def test_maps_of_another_kind_are_named(published):
    path = published / "nyu2_train/office_0003_out/0"
    rows = load_benchmark("nyud2-dir", published)["train"]
    Image.fromarray(depths(0, 16)).save(f"{path}.png")
    with pytest.raises(ValueError, match=r"0\.png\" has 16 bits a pixel, where depths of this split have 8"):
        rows[2]
    Image.fromarray(depths(0, 8, (320, 240))).save(f"{path}.png")
    with pytest.raises(ValueError, match=r"has 320 x 240 pixels and its photograph 640 x 480"):
        rows[2]
    Image.new("RGB", (480, 640)).save(f"{path}.jpg")
    with pytest.raises(ValueError, match=r"0\.jpg\" has 480 x 640 pixels, too narrow a shape; expected: 640 x 480"):
        rows[2]


def test_rows_that_are_parquet_or_from_the_hub(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "depth_map": datasets.Image()})
    depth = Image.fromarray(np.full((6, 8), 2.5, np.float32))
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (8, 6))] * 2, "depth_map": [depth] * 2}, features=features
    )
    for split in ("train", "validation", "test"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    data = load_benchmark("nyud2-dir", tmp_path)
    np.testing.assert_array_equal(np.asarray(data["test"][1]["label"]), np.full((6, 8), 2.5))
    assert data["test"].info.dataset_name == "nyud2-dir"
    with pytest.raises(ValueError, match="maps as its labels, which are not streamed"):
        load_benchmark("nyud2-dir", tmp_path, streaming=True)


def test_a_run_is_evaluated_and_drawn(published, tmp_path):
    """Maps are read by a transform that needs the columns of the image, too."""
    data = load_benchmark("nyud2-dir", published)
    model, processor = load_regressor("timm/test_resnet", "depth", task="depth", pretrained=False, image_size=32)
    settings = {"conr_pixels": 16, "max_steps": 1, "per_device_train_batch_size": 2}
    trainer = small.build(model, processor, tmp_path / "run", data["train"], data["validation"], **settings)
    trainer.train()
    tested = {"test": data["test"]}
    facts = {"unit": "m", "baseline_median": {}, "fit": {}}
    results = evaluate_maps(trainer, tested, "depth", "m", facts, tmp_path / "run")
    counted = sum(np.isfinite(row["label"]).sum() for row in data["test"])
    assert results["test"]["all"]["n"] == results["baseline_median"]["test"]["all"]["n"] == counted
    assert (tmp_path / "run" / "maps.png").is_file()
