"""Rows of the user's own data: labels read and checked, images read, folders and tables loaded."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conr_hf.data.columns import column_names, read_labels, unreadable_rows
from conr_hf.data.images import to_image
from conr_hf.data.local import load_local


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed=0, size=(6, 4)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png(seed=0):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def same(image, seed):
    return np.array_equal(np.asarray(image), np.asarray(picture(seed)))


class Plain:
    """A map-style data set that is none of `datasets`."""

    def __init__(self, rows):
        self.rows, self.reads = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.rows[index]


# ---- read_labels ----------------------------------------------------------------------------------------------------

CELLS = [20, None, 31.5, float("nan"), "31 years", "48", float("inf"), -2]
WRONG = {1: "the label is missing", 3: "the label is nan", 4: '"31 years" is not a number', 6: "the label is inf"}


def test_labels_that_are_no_finite_numbers_are_told_apart_by_row():
    labels, wrong = read_labels(Plain([{"age": cell} for cell in CELLS]), ["age"], "train_dataset")
    assert labels.dtype == np.float64
    np.testing.assert_array_equal(labels, [20, np.nan, 31.5, np.nan, np.nan, 48, np.nan, -2])
    assert wrong == {row: f'column "age": {why}' for row, why in WRONG.items()}


@pytest.mark.parametrize("cell", [[1, 2], {"a": 1}, "", "1,5", b"x"])
def test_cells_that_hold_no_one_number(cell):
    labels, wrong = read_labels(Plain([{"age": cell}, {"age": 1}]), ["age"], "train_dataset")
    assert list(wrong) == [0]
    assert 'column "age"' in wrong[0]
    np.testing.assert_array_equal(labels, [np.nan, 1])


def test_a_data_set_gives_up_its_labels_without_its_images():
    """A million images are not decoded for their labels."""
    rows = datasets.Dataset.from_dict(
        {"image": [b"no image"] * 3, "label": [3, 1, 2], "other": ["a", "b", "c"]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("int32"), "other": datasets.Value("string")}
        ),
    )
    for form in (rows, rows.with_format("torch"), rows.with_format("numpy"), rows.with_format(columns=["image"])):
        labels, wrong = read_labels(form, ["label"], "train_dataset")
        assert labels.tolist() == [3, 1, 2]
        assert labels.dtype == np.float64
        assert wrong == {}


def test_labels_of_two_dimensions():
    rows = datasets.Dataset.from_dict({"yaw": [1, 2, None], "pitch": [0.5, None, 0.25]})
    labels, wrong = read_labels(rows, ["pitch", "yaw"], "train_dataset")
    np.testing.assert_array_equal(labels, [[0.5, 1], [np.nan, 2], [0.25, np.nan]])
    assert wrong == {1: 'column "pitch": the label is missing', 2: 'column "yaw": the label is missing'}


def test_labels_of_rows_that_are_ready_for_the_model():
    assert read_labels(Plain([{"labels": 4}, {"labels": np.float32(5)}]), ["age"], "x")[0].tolist() == [4, 5]
    both = Plain([{"labels": np.array([4, 5])}])
    assert read_labels(both, ["pitch", "yaw"], "x")[0].tolist() == [[4, 5]]
    with pytest.raises(ValueError, match=r'^train_dataset: "labels" holds 2 numbers, but label_columns names 1\.$'):
        read_labels(both, ["age"], "train_dataset")


def test_labels_that_a_transform_makes_are_those_that_count():
    rows = datasets.Dataset.from_dict({"label": [1, 2, 3]})

    def double(batch):
        return {"label": [2 * label for label in batch["label"]]}

    assert read_labels(rows.with_transform(double), ["label"], "x")[0].tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("columns", "hint"),
    [(["lable"], r' Did you mean "label"\?'), (["zzz"], r"label_columns\."), (["label", "zzz"], "label_columns")],
)
@pytest.mark.parametrize("make", [datasets.Dataset.from_list, Plain])
def test_a_missing_label_column_is_told_with_those_that_there_are(make, columns, hint):
    rows = make([{"image": "x", "label": 1}])
    with pytest.raises(ValueError, match=rf'^eval_dataset has no column "{columns[-1]}"; .* image, label\..*{hint}'):
        read_labels(rows, columns, "eval_dataset")


# ---- Columns and images ---------------------------------------------------------------------------------------------


def test_column_names_are_those_of_the_rows_a_user_gets():
    rows = datasets.Dataset.from_dict({"image": ["x"], "label": [1]})
    assert column_names(rows) == ["image", "label"]
    assert column_names(rows.with_transform(lambda batch: {"pixel_values": [0], "labels": [1]})) == [
        "pixel_values",
        "labels",
    ]
    plain = Plain([{"image": "x", "age": 1}])
    assert column_names(plain) == ["image", "age"]
    bad = datasets.Dataset.from_dict({"image": [b"no image"]}).cast_column("image", datasets.Image())
    assert column_names(bad) == ["image"]  # nothing was decoded


def test_unreadable_images_are_told_by_row_and_no_other_is_read(tmp_path):
    good, text, cut, gone = (tmp_path / name for name in ("good.png", "text.png", "cut.png", "gone.png"))
    good.write_bytes(png())
    text.write_text("no image")
    cut.write_bytes(png()[:-30])
    rows = Plain([{"photo": cell} for cell in (good, text, cut, gone, None, 5, text)])
    wrong = unreadable_rows(rows, "photo", range(6), "train_dataset", show_progress=False)
    assert sorted(rows.reads) == list(range(6))
    assert list(wrong) == [1, 2, 3, 4, 5]
    assert all(why.startswith('column "photo": the image cannot be read (') for why in wrong.values())
    assert "it is not an image" in wrong[1]
    assert "truncated" in wrong[2]
    assert f"No such file or directory: {gone}" in wrong[3]
    assert "the image is missing" in wrong[4]
    assert all(" at 0x" not in why and "\n" not in why for why in wrong.values())


def test_progress_is_shown_only_where_it_is_wanted(capsys):
    rows = Plain([{"image": picture()}])
    unreadable_rows(rows, "image", [0], "train_dataset", show_progress=False)
    assert capsys.readouterr().err == ""
    unreadable_rows(rows, "image", [0], "train_dataset", show_progress=True)
    assert "train_dataset" in capsys.readouterr().err


def test_an_image_is_upright_rgb_wherever_it_comes_from(tmp_path):
    picture(3).save(tmp_path / "x.png")
    for cell in (
        picture(3),
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        np.asarray(picture(3)),
        {"bytes": png(3), "path": None},
        {"bytes": None, "path": str(tmp_path / "x.png")},
        {"path": str(tmp_path / "x.png")},
    ):
        image = to_image(cell)
        assert image.mode == "RGB"
        assert same(image, 3)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        picture(3).save(tmp_path / "turned.png", exif=exif)
        assert to_image(tmp_path / "turned.png").size == ((6, 4) if orientation < 5 else (4, 6))
    grey = picture(3).convert("L")
    assert np.array_equal(np.asarray(to_image(grey)), np.asarray(grey.convert("RGB")))
    assert to_image(picture(3), "L").mode == "L"
    for bad in ({"bytes": b"no image", "path": None}, str(tmp_path / "gone.png"), None):
        with pytest.raises((OSError, ValueError)):
            to_image(bad)


# ---- load_local -----------------------------------------------------------------------------------------------------


def folder_of(path, count, first=0, metadata="csv"):
    path.mkdir(parents=True)
    rows = []
    for index in range(first, first + count):
        (path / f"{index}.png").write_bytes(png(index))
        rows.append({"file_name": f"{index}.png", "age": index + 0.5})
    if metadata == "csv":
        (path / "metadata.csv").write_text("file_name,age\n" + "".join(f"{r['file_name']},{r['age']}\n" for r in rows))
    else:
        (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def assert_rows(rows, numbers):
    assert list(rows["age"]) == [number + 0.5 for number in numbers]
    assert all(same(row["image"], number) for row, number in zip(rows, numbers, strict=True))


@pytest.mark.parametrize("metadata", ["csv", "jsonl"])
def test_a_folder_with_a_folder_for_each_split(tmp_path, metadata):
    folder_of(tmp_path / "data" / "train", 3, metadata=metadata)
    folder_of(tmp_path / "data" / "val", 2, 3, metadata)
    folder_of(tmp_path / "data" / "test", 1, 5, metadata)
    data = load_local(str(tmp_path / "data"))
    assert list(data) == ["train", "validation", "test"]
    assert all(type(name) is str for name in data)
    for split, numbers in {"train": [0, 1, 2], "validation": [3, 4], "test": [5]}.items():
        assert_rows(data[split], numbers)


def test_a_folder_without_splits_is_training_data(tmp_path):
    folder_of(tmp_path / "data", 3)
    data = load_local(str(tmp_path / "data"))
    assert list(data) == ["train"]
    assert_rows(data["train"], [0, 1, 2])


def test_a_text_in_one_split_leaves_the_others_as_they_are(tmp_path):
    """So that it is found by its row, and not as a difference of two files."""
    for split in ("train", "test"):
        folder_of(tmp_path / "data" / split, 3)
    file = tmp_path / "data" / "train" / "metadata.csv"
    file.write_text(file.read_text().replace("1.5", "1.5 years"))
    data = load_local(str(tmp_path / "data"))
    _, wrong = read_labels(data["train"], ["age"], "train_dataset")
    assert wrong == {1: 'column "age": "1.5 years" is not a number'}
    assert read_labels(data["test"], ["age"], "x")[0].tolist() == [0.5, 1.5, 2.5]


def test_names_of_folders_are_no_labels(tmp_path):
    """They would be numbered, and a model trained on the numbers."""
    for name in ("old", "young"):
        folder_of(tmp_path / "data" / "train" / name, 2)
        (tmp_path / "data" / "train" / name / "metadata.csv").unlink()
    assert load_local(str(tmp_path / "data"))["train"].column_names == ["image"]


@pytest.fixture
def table(tmp_path):
    """A folder with images, and the rows of a table that stands in it."""
    folder_of(tmp_path / "data" / "photos", 4)
    return tmp_path / "data", [{"image": f"photos/{index}.png", "age": index + 0.5} for index in range(4)]


def write_csv(path, rows):
    path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "json": write_jsonl, "parquet": write_parquet}


@pytest.mark.parametrize("ending", WRITERS)
def test_paths_in_a_table_are_relative_to_the_table(table, tmp_path, monkeypatch, ending):
    folder, rows = table
    WRITERS[ending](folder / f"rows.{ending}", rows)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = load_local(f"../data/rows.{ending}")
    assert list(data) == ["train"]
    assert_rows(data["train"], [0, 1, 2, 3])


def test_absolute_paths_and_another_image_column(table, tmp_path):
    folder, rows = table
    rows = [{"photo": str(folder / row["image"]), "age": row["age"], "image": "a note"} for row in rows]
    write_csv(tmp_path / "rows.csv", rows)
    data = load_local(str(tmp_path / "rows.csv"), "photo")["train"]
    assert same(data[2]["photo"], 2)
    assert data[2]["image"] == "a note"


@pytest.mark.parametrize("form", ["binary", "struct", "of datasets"])
def test_parquet_with_the_images_in_it(tmp_path, form):
    path = tmp_path / "rows.parquet"
    ages = [index + 0.5 for index in range(3)]
    if form == "of datasets":
        features = datasets.Features({"image": datasets.Image(), "age": datasets.Value("float32")})
        images = [picture(index) for index in range(3)]
        datasets.Dataset.from_dict({"image": images, "age": ages}, features=features).to_parquet(path)
    else:
        images = [png(index) if form == "binary" else {"bytes": png(index), "path": None} for index in range(3)]
        pq.write_table(pa.table({"image": images, "age": ages}), path)
    assert_rows(load_local(str(path))["train"], [0, 1, 2])


def test_a_column_split_makes_splits(table):
    folder, rows = table
    names = ["train", "val", "Train", "test"]
    write_csv(folder / "rows.csv", [{**row, "split": name} for row, name in zip(rows, names, strict=True)])
    data = load_local(str(folder / "rows.csv"))
    assert set(data) == {"train", "validation", "test"}
    assert_rows(data["train"], [0, 2])
    assert_rows(data["validation"], [1])
    assert_rows(data["test"], [3])


def test_a_table_is_read_anew_when_it_changed(table):
    """Labels corrected in place must not come from a cache."""
    folder, rows = table
    write_csv(folder / "rows.csv", rows)
    assert_rows(load_local(str(folder / "rows.csv"))["train"], [0, 1, 2, 3])
    write_csv(folder / "rows.csv", rows[2:])
    assert_rows(load_local(str(folder / "rows.csv"))["train"], [2, 3])


def test_a_cell_without_an_image_is_left_for_the_check_of_rows(table):
    folder, rows = table
    write_csv(folder / "rows.csv", [rows[0], {"image": "", "age": 3}])
    data = load_local(str(folder / "rows.csv"))["train"]
    wrong = unreadable_rows(data, "image", [0, 1], "x", show_progress=False)
    assert list(wrong) == [1]
    assert "missing" in wrong[1]


def test_a_column_that_holds_no_images_is_left_for_the_check_of_rows(table):
    folder, rows = table
    write_csv(folder / "rows.csv", rows)
    data = load_local(str(folder / "rows.csv"), "age")["train"]
    assert list(unreadable_rows(data, "age", [0, 1], "x", show_progress=False)) == [0, 1]
    assert load_local(str(folder / "rows.csv"), "photo")["train"].column_names == ["image", "age"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing", r'data "nothing" is neither a folder, a file nor an id on the Hub \(owner/name\)\.'),
        ("./some/where", r'data "\./some/where" is neither'),
        ("rows.txt", r'"rows\.txt" is no table this reads; it must end in \.csv, \.tsv, \.json, \.jsonl, \.parquet\.'),
        ("empty", r'data "empty" cannot be read: .*any data files\.'),
        ("empty.csv", r'data "empty\.csv" cannot be read: '),
        ("header.csv", r'data "header\.csv" cannot be read: a split of it has no rows\.'),
        ("broken.jsonl", r'data "broken\.jsonl" cannot be read: its line 2 is no JSON \(expecting value\)\.'),
        ("broken.parquet", r'data "broken\.parquet" cannot be read: '),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_sentence(tmp_path, monkeypatch, path, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, content in {
        "rows.txt": "x",
        "empty.csv": "",
        "header.csv": "image,age\n",
        "broken.jsonl": '{"image": "x", "age": 1}\n{"image": ',
        "broken.parquet": "no parquet",
    }.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^{says}") as refused:
        load_local(path)
    assert "\n" not in str(refused.value)
