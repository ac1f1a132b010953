"""Tables and folders as people have them: what is read of them, and the one sentence where it cannot be."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import conr, table_rows
from PIL import Image
from transformers import AutoConfig

from conr_hf.data.columns import only_columns, read_labels, unreadable_rows
from conr_hf.data.inspection import inspect
from conr_hf.data.local import load_local
from conr_hf.data.streaming import load_stream
from conr_hf.data.tables import read_table

SMALL = "--model timm/test_resnet --pretrained false --max_steps 1 --image_size 32 --use_cpu true --report_to none"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    yield
    datasets.enable_progress_bars()


def written(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def picture(path, seed=0):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def readable(rows, column="image"):
    return unreadable_rows(rows, column, range(len(rows)), "x", show_progress=False) == {}


# ---- CSV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("file;age\na.png;31\n", {"file": ["a.png"], "age": [31]}),
        ("file\tage\na.png\t31\n", {"file": ["a.png"], "age": [31]}),
        ("file|age\na.png|31\n", {"file": ["a.png"], "age": [31]}),
        ("file;age\ra.png;31\r", {"file": ["a.png"], "age": [31]}),
        ("file;age\na, b.png;31,5\n", {"file": ["a, b.png"], "age": ["31,5"]}),
        ('"file; x";"age, y"\n"a;b.png";"31"\n', {"file; x": ["a;b.png"], "age, y": [31]}),
        ('file,note\na.png,"one;\ntwo;three"\n', {"file": ["a.png"], "note": ["one;\ntwo;three"]}),
        ("sep=;\nfile;age\na.png;31\n", {"file": ["a.png"], "age": [31]}),
        ("# by me, on Monday\n# x\n\nfile;age\na.png;31\n", {"file": ["a.png"], "age": [31]}),
        ("#id,age\n1,31\n", {"#id": [1], "age": [31]}),
        ("file\na.png\nb.png\n", {"file": ["a.png", "b.png"]}),
        ("id,age\n007,31\n7,32\n", {"id": ["007", "7"], "age": [31, 32]}),
        ("id,age\n12345678901234567890,31\n1.5,32\n", {"id": ["12345678901234567890", "1.5"], "age": [31, 32]}),
        ("x,y\n0.5,-0.25\n1e-12,0\n", {"x": [0.5, 1e-12], "y": [-0.25, 0.0]}),
    ],
)
def test_a_csv_file_is_read_as_its_header_tells(text, columns):
    assert read_table(written("rows.csv", text)).to_dict() == columns


@pytest.mark.parametrize("first", ["Exported 2024\n", "Exported 2024\n\n", "Exported 2024\nby me\n"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_lines_before_the_header_are_named(first, separator):
    text = first + "".join(f"{name}{separator}{age}\n" for name, age in (("file", "age"), ("a.png", 31), ("b.png", 4)))
    written("rows.csv", text)
    with pytest.raises(ValueError, match=r'its line 1 \("Exported 2024"\) has one cell and later ones 2: are there'):
        load_local("rows.csv")


def test_the_ending_may_be_in_capitals():
    picture("a.png")
    written("ROWS.TSV", "image\tage\na.png\t31\n")
    assert readable(load_local("ROWS.TSV")["train"])


# ---- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ('{"a": 1}\n{"a": 2.5}\n', {"a": [1, 2.5]}),
        ('{\n  "a": 1\n}\n{"a": null, "b": "x"}', {"a": [1, None], "b": [None, "x"]}),
        ('[{"a": 1e-12}, {"a": 3}]', {"a": [1e-12, 3]}),
        ('{"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": "y"}}', {"a": [1, 2], "b": ["x", "y"]}),
        ('{"a": [1, 2], "b": ["x", "y"]}', {"a": [1, 2], "b": ["x", "y"]}),
        ('{"a": 31}\n{"a": "-"}\n{"a": true}\n', {"a": ["31", "-", "true"]}),
        ('{"a": [0.1, 0.2]}\n{"a": [1, 2]}\n', {"a": [[0.1, 0.2], [1.0, 2.0]]}),
        ('{"a": [1, true]}\n{"a": ["x"]}\n', {"a": ["[1, true]", '["x"]']}),
        ('{"a": {"b": 1}}\n{"a": {"c": "x"}}\n', {"a": [{"b": 1, "c": None}, {"b": None, "c": "x"}]}),
    ],
)
def test_json_in_all_its_forms(text, columns):
    assert read_table(written("rows.json", text)).to_dict() == columns


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1}\n\n{"a": ', r"its line 3 is no JSON \(expecting value\)"),
        ('[{"a": 1}, 5]', r"row 1 is 5; each must be an object, \{\"image\": \.\.\., \.\.\.\}"),
        ("[]", "a split of it has no rows"),
    ],
)
def test_json_that_is_no_table(text, says):
    written("rows.json", text)
    with pytest.raises(ValueError, match=rf'^data "rows\.json" cannot be read: {says}\.$'):
        load_local("rows.json")


# ---- Names of images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [["7", "8"], ["007", "x"], ["7.0", ""]])
@pytest.mark.parametrize("place", ["", "rows/", "rows/rows/", "photos/"])
def test_ids_become_names_of_files(ids, place):
    names = [name.removesuffix(".0") for name in ids if name]
    for seed, name in enumerate(names):
        picture(f"data/{place}{name}.png", seed)
    written("data/rows.csv", "id,age\n" + "".join(f"{name},{age}\n" for age, name in enumerate(ids)))
    folder = {"image_folder": "photos"} if place == "photos/" else {}
    rows = load_local("data/rows.csv", "id", image_suffix=".png", **folder)["train"]
    assert readable(rows.select(range(len(names))), "id")
    assert rows.column_names == ["id", "age"]


@pytest.mark.parametrize(
    ("cell", "file", "says"),
    [
        ("1377", "1377.png", r'"1377" is no file, but "1377\.png" is one\. Add image_suffix \.png\.$'),
        ("ab", "rows/ab.jpg", r'"ab" is no file, but "rows/ab\.jpg" is one\. Add image_suffix \.jpg\.$'),
        (
            "7",
            "x/y/7.png",
            r'"7" is no file, but "x/y/7\.png" is one\. Add image_folder x/y and image_suffix \.png\.$',
        ),
        ("a.png", "x/a.png", r'"a\.png" is no file, but "x/a\.png" is one\. Add image_folder x\.$'),
        ("https://a.b/c.png", "c.png", r'"https://a\.b/c\.png" is a URL, from which nothing is loaded\. Download'),
        ("70 80 " * 900, "c.png", r'"70 80 [70 80]*\.\.\." is too long for the name of a file\. Write each image'),
    ],
)
def test_names_that_are_those_of_no_file_are_told_with_the_mend(cell, file, says):
    picture(f"data/{file}")
    written("data/rows.csv", f"photo,age\n{cell},3\n{cell},4\n")
    with pytest.raises(ValueError, match=rf'cannot be read: row 0, column "photo": {says}') as refused:
        load_local("data/rows.csv", "photo")
    assert len(str(refused.value)) < 300


def test_a_folder_of_images_that_there_is_not():
    written("rows.csv", "image,age\na.png,3\n")
    with pytest.raises(ValueError, match=r'image_folder "photos" is no folder, neither in "\." nor here'):
        load_local("rows.csv", image_folder="photos")


@pytest.mark.parametrize("name", ["metadata.csv", "scores.csv"])
def test_the_column_of_the_images_may_have_any_name(name):
    """As in covid-chestxray-dataset, whose images are in a folder beside its metadata.csv."""
    picture("data/images/a.png")
    written(f"data/{name}", "filename,age, url,note\na.png,3,x,\n")
    assert readable(load_local("data", "filename", image_folder="images")["train"], "filename")


def test_a_text_column_like_a_file_name_stays_one():
    picture("data/a.png")
    written("data/metadata.csv", "file_name,original_file_name,image,age\na.png,photo 0.jpg,5,3\n")
    rows = load_local("data")["train"]
    assert rows.column_names == ["image", "original_file_name", "age"]
    assert readable(rows)
    assert rows["original_file_name"][:] == ["photo 0.jpg"]


def test_images_of_other_columns_are_not_decoded():
    picture("a.png")
    cells = {"image": Path("a.png").read_bytes(), "thumbnail": b"no image"}
    rows = datasets.Dataset.from_dict({name: [{"bytes": cell, "path": None}] for name, cell in cells.items()})
    rows = rows.cast(datasets.Features({name: datasets.Image() for name in cells}))
    assert only_columns(rows, ["image", "label"])[0].keys() == {"image"}


# ---- Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one", "several", "of each"])
def test_folders_that_save_to_disk_wrote(form):
    picture("a.png")
    rows = datasets.Dataset.from_dict({"image": ["a.png"] * 3, "age": [1, 2, 3]}).cast_column(
        "image", datasets.Image()
    )
    if form == "one":
        rows.add_column("split", ["train", "val", "test"]).save_to_disk("data")
    else:
        parts = {name: rows.select([row]) for row, name in enumerate(("train", "valid", "test"))}
        if form == "several":
            datasets.DatasetDict(parts).save_to_disk("data")
        for name, part in parts.items() if form == "of each" else ():
            part.save_to_disk(f"data/{name}")
    found = load_local("data")
    assert {split: part["age"][:] for split, part in found.items()} == {"train": [1], "validation": [2], "test": [3]}


def test_a_folder_of_a_table_for_each_split():
    picture("data/train/a.png")
    picture("data/test/b.png")
    written("data/train.csv", "Id,y\na,1\n")
    written("data/test.csv", "Id\nb\n")
    written("data/sample_submission.csv", "Id,y\nb,0\n")
    found = load_local("data", "Id", image_suffix=".png")
    assert {split: rows.column_names for split, rows in found.items()} == {"train": ["Id", "y"], "test": ["Id"]}
    assert all(readable(rows, "Id") for rows in found.values())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["a.csv", "b.csv"], r"it has several tables: a\.csv, b\.csv\. Name one as data"),
        (["train.csv", "val.csv", "valid.csv"], "several of its splits, .* are read as validation"),
        (["shards/0.tar"], r'it holds "shards/0\.tar", an archive\. Unpack it'),
        (["x.arrow"], r'it holds "x\.arrow", without the state\.json that save_to_disk writes'),
    ],
)
def test_folders_that_are_not_read_as_data(files, says):
    for file in files:
        written(f"data/{file}", "image,age\na.png,3\n")
    with pytest.raises(ValueError, match=rf'^data "data" cannot be read: {says}'):
        load_local("data")


def repository(*names, default=None, form="jsonl"):
    """A copy of a repository with a configuration of each name, whose labels count the letters of it."""
    configs = []
    for name in names:
        rows = [{"image": "a.png", "age": len(name), "id": "007"}]
        path = Path(f"data/{name}/train.{form}")
        picture(f"data/{name}/a.png")
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist([{**row, "image": f"{name}/a.png"} for row in rows]), path)
        else:
            written(path, "".join(json.dumps(row) + "\n" for row in rows))
        configs.append({"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*.{form}"}]})
        configs[-1] |= {"default": True} if name == default else {}
    written("data/README.md", f"---\nconfigs: {json.dumps(configs)}\n---\nA card.\n")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_configuration_of_a_copied_repository_is_named(form):
    """Rows of two were one training split."""
    repository("en", "fra", form=form)
    for name, wrong in ((None, ""), ("de", ', and none called "de"')):
        with pytest.raises(
            ValueError, match=rf"it has the configurations en, fra{wrong}\. Name one with data_config\.$"
        ):
            load_local("data", data_config=name)
    rows = load_local("data", data_config="fra")["train"]
    assert rows["age"][:] == [3]
    assert rows["id"][:] == ["007"]
    assert readable(rows)
    repository("en", "fra", default="fra", form=form)
    assert load_local("data")["train"]["age"][:] == [3]
    with pytest.raises(ValueError, match=r"names no configurations\. Leave data_config out"):
        load_local(str(written("other/README.md", "A card.").parent), data_config="en")


def test_a_stream_has_one_configuration():
    repository("en", "fra", form="parquet")
    with pytest.raises(ValueError, match=r"it has the configurations en, fra\. Name one with data_config\.$"):
        load_stream("data")
    repository("en", "fra")
    written("data/x.parquet", "")
    with pytest.raises(ValueError, match="its files are JSON, in which a stream would round numbers"):
        load_stream("data", data_config="en")


# ---- Splits ---------------------------------------------------------------------------------------------------------


def test_values_of_split_are_read_as_they_are_meant():
    names = ["train", " training", "val ", "VALID", "dev", "validation", "test", "Testing", "holdout", "", "  "]
    written("rows.csv", "age,Split\n" + "".join(f'{age},"{name}"\n' for age, name in enumerate(names)))
    data = load_local("rows.csv")
    assert {split: rows["age"][:] for split, rows in data.items()} == {
        "train": [0, 1],
        "validation": [2, 3, 4, 5],
        "test": [6, 7],
        "holdout": [8],
        "none": [9, 10],
    }


def test_a_split_that_has_the_very_name_goes_before_others():
    rows = datasets.Dataset.from_dict({"age": [1]})
    datasets.DatasetDict(dict.fromkeys(("train", "dev", "validation"), rows)).save_to_disk("data")
    assert list(load_local("data")) == ["train", "dev", "validation"]
    names = datasets.ClassLabel(names=["test", "train"])
    rows = datasets.Dataset.from_dict({"age": [1, 2], "split": [0, 1]}).cast_column("split", names)
    rows.to_parquet("rows.parquet")
    assert {split: part["age"][:] for split, part in load_local("rows.parquet").items()} == {"train": [2], "test": [1]}


def test_splits_that_are_left_out_are_named_and_counted():
    picture("a.png")
    written(
        "rows.csv", "image,label,split\n" + "".join(f"a.png,{age},train\n" for age in range(8)) + "a.png,8,holdout\n"
    )
    problems = inspect(load_local("rows.csv"), show_progress=False)["problems"]
    assert problems["unused_splits"] == [{"split": "holdout", "rows": 1}]
    ended = conr("inspect", "rows.csv")
    assert (
        "- 1 splits are neither train, validation nor test, and nothing is done with them\n    holdout: 1 row"
        in ended.out
    )


def test_a_column_of_splits_under_another_name_is_hinted_at(caplog):
    written("rows.csv", "age,Set\n1,train\n2,test\n")
    assert list(load_local("rows.csv")) == ["train"]
    assert 'column "Set" holds test, train. Call it split' in caplog.text
    caplog.clear()
    written("rows.csv", "age,Set\n1,train\n2,blue\n")
    load_local("rows.csv")
    assert caplog.text == ""


@pytest.mark.parametrize("form", ["no column", "empty cells"])
def test_a_test_split_without_labels_is_predicted_and_not_scored(form):
    """As Kaggle gives it: train.csv with train/, test.csv with test/; no column image is taken for a misspelt age."""
    for row in range(8):
        picture(f"pet/train/{row:03}.jpg", row)
    for row in range(3):
        picture(f"pet/test/{row:03}.jpg", 20 + row)
    written("pet/train.csv", "Id,age,image\n" + "".join(f"{row:03},{20 + row},x\n" for row in range(8)))
    label = (",image", ",x") if form == "no column" else (",age", ",")
    written("pet/test.csv", f"Id{label[0]}\n" + "".join(f"{row:03}{label[1]}\n" for row in range(3)))
    files = ["--image_column", "Id", "--image_suffix", "jpg"]
    ended = conr("train", "--data", "pet", "--label_columns", "age", *files, "--output_dir", "run", *SMALL.split())
    assert ended.code == 0, ended.err
    assert "Split test has no labels: its 3 rows are predicted, without errors." in ended.out
    assert "test" not in json.loads(Path("run/results.json").read_text())
    rows = table_rows("run/predictions.csv")
    assert [(row["split"], row["row"], row["label"], row["shot"]) for row in rows] == [
        ("test", str(row), "", "") for row in range(3)
    ]
    assert all(15 < float(row["prediction"]) < 35 for row in rows)
    ended = conr("predict", "run", "pet/test.csv", "--output", "again.csv")  # read as the run's own table
    assert ended.code == 0, ended.err
    again = [float(row["age"]) for row in table_rows("again.csv")]
    assert again == pytest.approx([float(row["prediction"]) for row in rows], rel=1e-5)
    ended = conr("report", "run")
    assert ended.code == 2
    assert 'predicted split "test" without labels' in ended.err
    ended = conr("evaluate", "run")
    assert ended.code == 2
    reasons = {
        "no column": 'split "test" has no column "age"',
        "empty cells": 'Split "test" has no labels, so nothing',
    }
    assert reasons[form] in ended.err
    inspected = conr("inspect", "pet", "--label_columns", "age", *files)
    assert inspected.code == 0, inspected.err
    assert "Problems: none found." in inspected.out


def test_the_command_line_trains_on_a_column_of_several_numbers():
    """As the TID2013 labels of idealo's image-quality-assessment."""
    random = np.random.default_rng(0)
    rows = []
    for row in range(8):
        picture(f"tid/i{row}.bmp", row)
        rows.append({"image_id": f"i{row}", "label": random.dirichlet(np.ones(3)).tolist()})
    written("tid/labels.json", json.dumps(rows))
    files = ["--image_column", "image_id", "--image_suffix", ".bmp"]
    ended = conr("train", "--data", "tid/labels.json", *files, "--output_dir", "run", *SMALL.split())
    assert ended.code == 0, ended.err
    assert list(AutoConfig.from_pretrained("run").id2label.values()) == ["label_0", "label_1", "label_2"]
    labels, wrong = read_labels(load_local("tid/labels.json")["train"], ["label"], "x")
    assert wrong == {}
    assert labels.tolist() == [row["label"] for row in rows]
    ended = conr("evaluate", "run", "--data", "tid/labels.json", "--split", "train", *files)
    assert ended.code == 0, ended.err
    assert "all" in ended.out
    written("tid/one.csv", "image_id,label\ni0,1.5\n")
    ended = conr("evaluate", "run", "--data", "tid/one.csv", "--split", "train", *files)
    assert 'The model predicts 3 values, but a label of split "train" is 1 (label).' in ended.err
    inspected = conr("inspect", "tid/labels.json", *files)
    assert inspected.code == 0, inspected.err
    assert "label_2  train" in inspected.out
    ended = conr("split", "tid/labels.json", "--label", "label", "--out", "out", "--bin_width", "0.9", *files)
    assert "label_0 min" in ended.out, ended.err
