"""The benchmark inside the package: what is in it, and that it needs neither a network nor a cache."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conr_hf.data.benchmarks import BENCHMARKS, load_benchmark
from conr_hf.metrics import constant_median, shot_metrics


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


@pytest.mark.parametrize("name", ["earth_elevation", "Earth-Elevation", "agedb", ""])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match=r'Known: earth-elevation\. Did you mean "earth-elevation"'):
        load_benchmark(name)
