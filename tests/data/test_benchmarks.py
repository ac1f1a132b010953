"""The benchmark inside the package: what is in it, and that it needs neither a network nor a cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conr_hf.data.benchmarks.loading import benchmark_of, load_benchmark
from conr_hf.data.benchmarks.registry import BENCHMARKS
from conr_hf.imbalance import make_bins
from conr_hf.metrics import constant_median, sample_shots, shot_masks, shot_metrics


@pytest.fixture(scope="module")
def tiles():
    return load_benchmark("earth-elevation")


def test_sizes_labels_and_columns(tiles):
    assert {split: len(rows) for split, rows in tiles.items()} == {"train": 5817, "validation": 159, "test": 400}
    for rows in tiles.values():
        assert rows.column_names == ["image", "label", "latitude", "longitude"]
        assert [rows.features[c].dtype for c in rows.column_names[1:]] == ["float32"] * 3
        assert np.abs(rows["latitude"]).max() <= 90
        assert np.abs(rows["longitude"]).max() <= 180
    labels = np.array(tiles["train"]["label"])
    assert (labels.min(), round(float(labels.max()))) == (0, 5379)
    assert min(map(min, (tiles["validation"]["label"], tiles["test"]["label"]))) >= 0


def test_images_decode_and_look_like_the_ground(tiles):
    for rows in tiles.values():
        for row in rows.select(range(0, len(rows), 50)):
            assert row["image"].size == (32, 32)
            assert row["image"].mode == "RGB"
    rows = tiles["test"].select(range(0, 400, 10))
    contrast = [np.asarray(row["image"].convert("L")).std() for row in rows]
    assert np.median(contrast) > 3  # some show nothing but ice, most do not


def test_shots_of_the_test_split(tiles):
    train, test = np.array(tiles["train"]["label"]), np.array(tiles["test"]["label"])
    width = BENCHMARKS["earth-elevation"].bin_width
    baseline = shot_metrics(constant_median(train, len(test)), test, train, bin_width=width)
    assert {s: m["n"] for s, m in baseline.items()} == {"all": 400, "many": 225, "median": 112, "few": 63}
    assert [round(baseline[s]["mae"]) for s in ("many", "median", "few")] == [569, 1936, 2895]


def test_credit_travels_with_every_split(tiles):
    benchmark = BENCHMARKS["earth-elevation"]
    assert (benchmark.target, benchmark.unit, benchmark.bin_width) == ("elevation", "m", 200.0)
    for split, rows in tiles.items():
        assert rows.info.dataset_name == "earth-elevation"
        assert str(rows.split) == split
        assert "NASA Earth Observatory, Blue Marble; elevation: GEBCO_08 via NASA Visible Earth" in rows.info.citation
        assert rows.info.license
        assert rows.info.description
    readme = Path(sys.modules[load_benchmark.__module__].__file__).parent / "earth_elevation" / "README.md"
    assert benchmark.credit in readme.read_text()


def test_the_same_twice(tiles):
    again = load_benchmark("earth-elevation")
    assert all(again[s]._fingerprint == tiles[s]._fingerprint for s in tiles)  # so that mapped results can be reused
    assert all(rows.cache_files == [] for rows in again.values())


def test_loads_without_network_and_without_a_writable_cache(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file, under which no cache folder can be made, whoever asks")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HF_HOME": str(blocked / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    code = """
import socket
def refuse(*args, **kwargs): raise OSError("no network here")
socket.socket.connect = refuse
from conr_hf.data.benchmarks import load_benchmark
print(load_benchmark("earth-elevation")["test"][0]["image"].size)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(32, 32)", done.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("earth_elevation", "earth-elevation"),
        ("Earth-Elevation", "earth-elevation"),
        ("agedb", "agedb-dir"),
        ("UTK-Face", "utkface"),
        ("", ""),
    ],
)
def test_unknown_names_list_the_known(name, meant):
    with pytest.raises(
        ValueError,
        match=rf'Known: earth-elevation, earth-elevation-map, ellipses, eyes, agedb-dir, .*\. Did you mean "{meant}',
    ):
        load_benchmark(name)


# ---- Its maps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiles_with_maps():
    return load_benchmark("earth-elevation-map")


def test_maps_sizes_and_columns(tiles_with_maps):
    assert {split: len(rows) for split, rows in tiles_with_maps.items()} == {
        "train": 259,
        "validation": 51,
        "test": 105,
    }
    for rows in tiles_with_maps.values():
        assert rows.column_names == ["image", "label", "latitude", "longitude"]
        maps = np.array(rows["label"], np.float32)
        assert maps.shape[1:] == (32, 32)
        assert np.isfinite(maps).any(axis=(1, 2)).all()
        assert np.nanmin(maps) >= 0
        assert all(row["image"].size == (64, 64) for row in rows)
        assert rows.info.dataset_name == "earth-elevation-map"
        assert BENCHMARKS["earth-elevation-map"].credit == rows.info.citation


def test_maps_lie_as_their_images_do(tiles_with_maps):
    """Water is blue, and has no height."""
    blue, water = [], []
    for row in tiles_with_maps["train"]:
        missing = np.isnan(np.array(row["label"], np.float32))
        if 0.1 < missing.mean() < 0.9:
            pixels = np.asarray(row["image"]).astype(float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
            blue.append(pixels[..., 2] - pixels[..., 0])
            water.append(missing)
    found = {
        (y, x): np.corrcoef(np.ravel(blue), np.roll(water, (y, x), (1, 2)).ravel())[0, 1]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    }
    assert max(found, key=found.get) == (0, 0)
    assert found[0, 0] > 0.7


def test_maps_have_labels_of_every_shot(tiles_with_maps):
    benchmark = BENCHMARKS["earth-elevation-map"]
    pixels = {split: np.array(rows["label"], np.float32) for split, rows in tiles_with_maps.items()}
    train = pixels["train"][~np.isnan(pixels["train"])]
    few, many = (threshold * len(train) / 259 for threshold in benchmark.shot_thresholds)
    bins = make_bins(train, benchmark.bin_width, thresholds=(few, many))
    counts = {shot: int(mask.sum()) for shot, mask in shot_masks(bins.train_counts[0], bins.thresholds).items()}
    assert counts == {"many": 6, "median": 6, "few": 20}
    for split, found in {"validation": [40714, 4795, 2045], "test": [83094, 10987, 4845]}.items():
        labels = pixels[split][~np.isnan(pixels[split])]
        assert [int(mask.sum()) for mask in sample_shots(labels, bins).values()] == found
    assert benchmark_of(tiles_with_maps["train"], train).name == benchmark.name
    assert benchmark_of(tiles_with_maps["train"], train / 1000) is None
    readme = Path(sys.modules[load_benchmark.__module__].__file__).parent / "earth_elevation_map" / "README.md"
    assert all(text in readme.read_text() for text in (benchmark.credit, "83,094 | 10,987 | 4,845 | 23"))


# ---- Benchmarks that users have on their disks ----------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def colour(number):
    return (number, 255 - number, 7)


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour(number)).save(path)


SPLITS = ["train", "val", "test", "train", "train"]


def agedb(folder, csv="agedb.csv"):
    """AgeDB as its authors and those of the splits publish it, in small."""
    names = [f"AgeDB/{index}_JaneÈva_{30 + index}_f.png" for index in range(5)]
    for index, name in enumerate(names):
        picture(folder / name, index)
    lines = [f"{30 + index},{name},{split}" for index, (name, split) in enumerate(zip(names, SPLITS, strict=True))]
    (folder / csv).parent.mkdir(exist_ok=True)
    (folder / csv).write_text("age,path,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def assert_faces(data):
    found = {split: [(row["label"], row["image"].getpixel((0, 0))) for row in rows] for split, rows in data.items()}
    of = {split: [(30 + i, colour(i)) for i in numbers] for split, numbers in EXPECTED.items()}
    assert found == of


EXPECTED = {"train": [0, 3, 4], "validation": [1], "test": [2]}


def sources(folder, tmp_path):
    """The ways in which a user may have AgeDB."""
    (tmp_path / "elsewhere").mkdir()
    lists = tmp_path / "elsewhere" / "agedb.csv"
    lists.write_bytes((folder / "agedb.csv").read_bytes())
    among = tmp_path / "among" / "AgeDB"
    agedb(tmp_path / "among", "AgeDB/agedb.csv")
    rows = pa.csv.read_csv(folder / "agedb.csv").to_pylist()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = [
        {"photo": (folder / row["path"]).read_bytes(), "years": row["age"], "split": row["split"]} for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(stored), tmp_path / "rows.parquet")
    (tmp_path / "parts").mkdir()
    for split in ("train", "val", "test"):
        part = [{"image": row["photo"], "label": row["years"]} for row in stored if row["split"] == split]
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "parts" / f"{split}.parquet")
    for row in rows:
        part = tmp_path / "imagefolder" / row["split"]
        picture(part / f"{row['age']}.png", row["age"] - 30)
        first = not (part / "metadata.csv").exists()
        with (part / "metadata.csv").open("a") as file:
            file.write("file_name,age\n" * first + f"{row['age']}.png,{row['age']}\n")
    return {
        "folder": {"source": folder},
        "csv": {"source": folder / "agedb.csv"},
        "csv elsewhere": {"source": folder, "split_file": lists},
        "csv among the images": {"source": among},
        "jsonl": {"source": folder / "rows.jsonl"},
        "parquet": {"source": tmp_path / "rows.parquet", "columns": {"photo": "image", "years": "label"}},
        "imagefolder": {"source": tmp_path / "imagefolder"},
        "folder of parquet": {"source": tmp_path / "parts"},
    }


@pytest.mark.usefixtures("own_cache")
def test_agedb_from_all_that_it_may_be_in(tmp_path):
    for way, where in sources(agedb(tmp_path / "data"), tmp_path).items():
        data = load_benchmark("agedb-dir", **where)
        assert list(data) == ["train", "validation", "test"], way
        assert_faces(data)
        for rows in data.values():
            assert rows.info.dataset_name == "agedb-dir"
            assert "Moschoglou" in rows.info.citation
            assert "non-commercial" in rows.info.license


@pytest.mark.usefixtures("own_cache")
def test_bins_of_a_year_are_for_ages_in_years(tmp_path):
    train = load_benchmark("agedb-dir", agedb(tmp_path))["train"]
    ages = np.array(train["label"], np.float64)
    assert benchmark_of(train, ages).bin_width == 1
    assert benchmark_of(train, 12 * ages) is None
    assert benchmark_of(train, ages / 100) is None
    assert benchmark_of(train, np.stack([ages, ages], 1)) is None


def utkface(folder):
    for index in range(5):
        picture(folder / f"{30 + index}_0_1_2017011617452512{index}.png", index)
    return folder


@pytest.mark.usefixtures("own_cache")
def test_utkface_has_its_ages_in_its_names(tmp_path):
    data = load_benchmark("utkface", utkface(tmp_path / "faces"), require_splits=False)
    assert list(data) == ["train"]
    assert list(data["train"]["label"]) == [30, 31, 32, 33, 34]
    assert data["train"][3]["image"].getpixel((0, 0)) == colour(3)
    with pytest.raises(ValueError, match=r"have no split validation and no test\..*conr-hf split"):
        load_benchmark("utkface", tmp_path / "faces")
    splits = zip(sorted(file.name for file in (tmp_path / "faces").iterdir()), SPLITS, strict=True)
    lines = "".join(f"{name},{split}\n" for name, split in splits)
    (tmp_path / "faces" / "utkface.csv").write_text("path,split\n" + lines)
    assert_faces(load_benchmark("utkface", tmp_path / "faces"))


@pytest.mark.usefixtures("own_cache")
def test_utkface_in_a_folder_for_each_split(tmp_path):
    utkface(tmp_path / "all")
    for split, numbers in {"train": [0, 3, 4], "val": [1], "test": [2]}.items():
        for index in numbers:
            picture(tmp_path / "faces" / split / f"{30 + index}_0_1_20170116.png", index)
    assert_faces(load_benchmark("utkface", tmp_path / "faces"))
    picture(tmp_path / "faces" / "test" / "holiday.png", 0)
    with pytest.raises(ValueError, match=r'the name "holiday\.png" does not begin with an age'):
        load_benchmark("utkface", tmp_path / "faces")


@pytest.mark.usefixtures("own_cache")
def test_mpiigaze_has_two_labels(tmp_path):
    lines = ["path,pitch,yaw,split"]
    for index, split in enumerate(SPLITS):
        picture(tmp_path / "eyes" / f"{index}.png", index)
        lines.append(f"eyes/{index}.png,{-0.1 * index},{0.05 * index},{split}")
    (tmp_path / "mpiigaze.csv").write_text("\n".join(lines) + "\n")
    data = load_benchmark("mpiigaze-dir", tmp_path)
    assert list(data["train"]["yaw"]) == pytest.approx([0, 0.15, 0.2])
    assert data["test"][0]["pitch"] == pytest.approx(-0.2)
    gaze = np.stack([data["train"]["pitch"], data["train"]["yaw"]], 1)
    assert benchmark_of(data["train"], gaze).unit == "rad"
    assert benchmark_of(data["train"], np.degrees(gaze)) is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "agedb-dir",
            ["https://ibug.doc.ic.ac.uk/resources/agedb/", "agedb.csv", "beside", "non-commercial research"],
        ),
        ("imdb-wiki-dir", ["https://data.vision.ee.ethz.ch", "imdb_wiki.csv", "imdb_crop", "academic research"]),
        ("utkface", ["https://susanqq.github.io/UTKFace/", "non-commercial"]),
        ("nyud2-dir", ["https://github.com/YyzHarry/imbalanced-regression", "test_balanced_mask.npy", "research"]),
        ("mpiigaze-dir", ["https://www.mpi-inf.mpg.de", "path,pitch,yaw,split", "CC BY-NC-SA 4.0"]),
    ],
)
def test_what_is_not_there_is_told_with_where_to_get_it(name, parts, tmp_path):
    for source in (None, tmp_path / "nothing"):
        with pytest.raises(ValueError) as refused:
            load_benchmark(name, source)
        for part in (*parts, "--benchmark_source", name):
            assert part in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("own_cache")
def test_a_hub_data_set_of_other_columns(tmp_path, monkeypatch):
    """Its images lie in the cache of the Hub, wherever that is."""
    picture(tmp_path / "hub" / "0.png", 0)
    columns = {"photo": [str(tmp_path / "hub" / "0.png")], "years": [30]}
    rows = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **kwargs: None)  # of JSON or CSV it is not
    names = {"photo": "image", "years": "label"}
    data = load_benchmark("agedb-dir", "someone/agedb", columns=names, revision="v2")
    assert asked == [(("someone/agedb", None), {"revision": "v2"})]
    assert data["test"][0]["label"] == 30
    assert data["test"][0]["image"].getpixel((0, 0)) == colour(0)


@pytest.mark.usefixtures("own_cache")
def test_a_hub_data_set_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r'data "someone/agedb" cannot be read: .*ibug\.doc\.ic\.ac\.uk') as refused:
        load_benchmark("agedb-dir", "someone/agedb", revision="main")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("own_cache")
def test_sources_that_are_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"earth-elevation comes with the package; leave its source .* out"):
        load_benchmark("earth-elevation", tmp_path)
    agedb(tmp_path)
    with pytest.raises(ValueError, match=r'no column "years"; the columns are age, path, split'):
        load_benchmark("agedb-dir", tmp_path, columns={"years": "label"})
    with pytest.raises(ValueError, match=r'split_file "x\.txt" is no table'):
        load_benchmark("agedb-dir", tmp_path, split_file="x.txt")
    (tmp_path / "agedb.csv").write_text("years,path,split\n1,AgeDB/x.png,train\n1,x.png,val\n1,x.png,test\n")
    with pytest.raises(ValueError, match=r"have no column label or age; their columns are years, image, split\."):
        load_benchmark("agedb-dir", tmp_path)
    (tmp_path / "agedb.csv").write_text("age,path,split\n1,AgeDB/x.png,train\n1,../../x.png,val\n")
    with pytest.raises(ValueError, match=r'row 1, column "image": "\.\./\.\./x\.png" lies outside the folder'):
        load_benchmark("agedb-dir", tmp_path)
