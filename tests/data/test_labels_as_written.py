"""Whatever labels are stored in: the number that reaches the loss is the one that was written, or the row is named."""

import io
import json
import math
from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small import build, images, models
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.collator import ImageCollator
from conr_hf.data.columns import class_numbers, column_names, read_labels
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.inspection import inspect
from conr_hf.data.local import load_local
from conr_hf.data.splits import dir_split
from conr_hf.data.streaming import load_stream
from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.training.data_module import DataModule

# What is written -> the labels that are meant, None where a row must be named. Texts are those of JSON strings.
CASES = {
    "decimals": ([1e-12, 3.2e-11, 0.1234567890123456, 1 / 3, 63.37, -0.5, 2.0**40], None),
    "large": ([2.0**53, 1e30, 1.5], None),
    "missing": ([31, None, 40.25, None], [31, None, 40.25, None]),
    "texts among numbers": (
        [31, "-", "007", "1e", True, None, "48", " ", "12 years", "1_0"],
        [31, None, None, None, None, None, 48, None, None, None],
    ),
    "numbers as texts": (["1.5", "2", "1e-12", "63.37"], [1.5, 2, 1e-12, 63.37]),
    "a fixed width": (["031", "007", "048"], [31, 7, 48]),
    "10,000 whole numbers before a half": ([*range(10_000), 0.5], None),
    "long": ([12345678901234567890123, 1.5, 7], None),
    "long whole": ([9007199254740993, 1, 7], None),
}
PERSONS = (7, "007", "-", 0, "12E5", 12345678901234567890123)
IMAGE = io.BytesIO()
Image.new("RGB", (2, 2)).save(IMAGE, "PNG")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    (tmp_path / "x.png").write_bytes(IMAGE.getvalue())


def rows_of(cells, image="image"):
    """Rows with what stands beside labels: columns of some rows only, nested ones, ids that are numbers and texts."""
    rows = []
    for index, cell in enumerate(cells):
        row = {image: "x.png", "label": cell, "person": PERSONS[index % len(PERSONS)]}
        row["seen"] = {"at": index} if index % 2 else {"by": "me", "at": index}
        rows.append({**row, "note": "x"} if index == 1 else row)
    return rows


def text(cell):
    if cell is None or cell is True:
        return "" if cell is None else "true"
    return repr(cell) if isinstance(cell, float) else str(cell)


def write_csv(path, cells, separator=",", image="image"):
    rows = rows_of(cells)
    lines = [separator.join(["x.png", text(row["label"]), str(row["person"])]) + "\n" for row in rows]
    path.write_text(separator.join([image, "label", "person"]) + "\n" + "".join(lines))


def write_jsonl(path, cells, image="image"):
    rows = rows_of(cells, image)
    for row in rows[::2]:  # a missing number has no key here, and null there
        if row["label"] is None:
            del row["label"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arrow(cells, kind):
    """The column as libraries write it to Parquet; texts where they could not write the cells in one."""
    if all(cell is None or type(cell) in (int, float) for cell in cells) and kind != "texts":
        if kind == "decimals" and all(cell is None or 1e-13 < abs(cell) < 1e15 for cell in cells):
            return pa.array([None if cell is None else Decimal(text(cell)) for cell in cells])
        if kind == "pandas" and all(cell is None or (type(cell) is int and cell < 2**63) for cell in cells):
            return pa.array(pd.array(cells, dtype="Int64"))
        if all(cell is None or float(cell) == cell for cell in cells):
            return pa.array([None if cell is None else float(cell) for cell in cells])
    written = [None if cell is None else text(cell) for cell in cells]
    if kind == "categories":
        return pa.array(written, pa.large_string()).dictionary_encode()
    return pa.array(written, pa.string_view() if kind == "texts" else pa.large_string())


def parquet(path, cells, kind, image=None):
    column = pa.array([image or "x.png"] * len(cells))
    pq.write_table(pa.table({"image": column, "label": arrow(cells, kind)}), path)
    return path


def load_csv(folder, cells):
    write_csv(folder / "rows.CSV", cells)
    return load_local(str(folder / "rows.CSV"))["train"]


def load_tsv(folder, cells):
    write_csv(folder / "rows.tsv", cells, "\t")
    return load_local(str(folder / "rows.tsv"))["train"]


def load_jsonl(folder, cells):
    write_jsonl(folder / "rows.jsonl", cells)
    return load_local(str(folder / "rows.jsonl"))["train"]


def load_json(folder, cells):
    (folder / "rows.json").write_text(json.dumps(rows_of(cells), indent=1))
    return load_local(str(folder / "rows.json"))["train"]


def load_json_columns(folder, cells):
    rows = rows_of(cells)
    columns = {name: {str(i): row.get(name) for i, row in enumerate(rows)} for name in rows[0]}
    (folder / "rows.json").write_text(json.dumps(columns))
    return load_local(str(folder / "rows.json"))["train"]


def load_folder(folder, cells):
    write_jsonl(folder / "metadata.jsonl", cells, "file_name")
    return load_local(str(folder))["train"]


def load_saved(folder, cells):
    rows = datasets.Dataset(pq.read_table(parquet(folder / "rows.parquet", cells, "pandas")))
    rows.save_to_disk(folder / "saved" / "train")
    (folder / "saved" / "train" / "x.png").write_bytes(IMAGE.getvalue())
    return load_local(str(folder / "saved" / "train"))["train"]


def load_configuration(folder, cells):
    (folder / "en").mkdir()
    (folder / "fr").mkdir()
    write_jsonl(folder / "en" / "train.jsonl", cells)
    write_jsonl(folder / "fr" / "train.jsonl", [1.0])
    (folder / "en" / "x.png").write_bytes(IMAGE.getvalue())
    configs = [{"config_name": name, "data_files": f"{name}/train.jsonl"} for name in ("en", "fr")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\nA card.\n")
    return load_local(str(folder), data_config="en")["train"]


def of_parquet(kind):
    def load(folder, cells):
        return load_local(str(parquet(folder / "rows.parquet", cells, kind)))["train"]

    return load


LOADERS = {
    "memory": lambda folder, cells: [{"image": Image.new("RGB", (2, 2)), "label": cell} for cell in cells],
    "csv": load_csv,
    "tsv": load_tsv,
    "jsonl": load_jsonl,
    "json": load_json,
    "json columns": load_json_columns,
    "imagefolder": load_folder,
    "save_to_disk": load_saved,
    "configuration": load_configuration,
    **{f"parquet, {kind}": of_parquet(kind) for kind in ("pandas", "texts", "decimals", "categories")},
}


def collate(examples):
    """The labels of a batch, as the loss gets them."""

    def processor(images, return_tensors):
        return {"pixel_values": torch.zeros(len(images), 3, 2, 2)}

    return ImageCollator(processor, "image", ["label"], 1, Augmentation(), 0)(examples)["labels"]


LONG = "10,000 whole numbers before a half"  # of readers that go by the first rows
EACH = [(source, case) for source in LOADERS for case in CASES if case != LONG or source in ("csv", "jsonl", "json")]


@pytest.mark.parametrize(("source", "case"), EACH)
def test_the_label_is_the_one_written_or_its_row_is_named(tmp_path, source, case):
    cells, meant = CASES[case]
    meant = cells if meant is None else meant
    rows = LOADERS[source](tmp_path, cells)
    found, wrong = read_labels(rows, ["label"], "train_dataset")
    assert sorted(wrong) == [row for row, label in enumerate(meant) if label is None]
    assert all(why.startswith('column "label": ') for why in wrong.values())
    valid = [row for row, label in enumerate(meant) if label is not None]
    assert [found[row] for row in valid] == [float(meant[row]) for row in valid]
    sampled = SampledDataset(rows, "train_dataset", valid)
    some = range(len(valid)) if len(valid) < 50 else (0, 1, len(valid) - 1)
    expected = torch.tensor([float(meant[valid[place]]) for place in some], dtype=torch.float32)
    assert torch.equal(collate([sampled[place] for place in some]), expected)


@pytest.mark.parametrize("kind", ["pandas", "texts", "decimals", "categories"])
@pytest.mark.parametrize("case", [case for case in CASES if len(CASES[case][0]) < 100])
def test_the_label_of_a_stream_is_the_one_written_or_its_row_is_named(tmp_path, case, kind):
    cells, meant = CASES[case]
    meant = cells if meant is None else meant
    if case == "texts among numbers":  # a code such as 007 is found where all labels are known, before training
        meant = [7 if cell == "007" else label for cell, label in zip(cells, meant, strict=True)]
    image = {"bytes": IMAGE.getvalue(), "path": None}
    parquet(tmp_path / "train.parquet", cells, kind, image)
    stream = load_stream(str(tmp_path))["train"]
    valid = [label for label in meant if label is not None]
    rows = StreamingDataset(stream, "x", "image", ["label"], len(valid), 4, 0, 1, drop_last=False, skip_bad_rows=True)
    expected = torch.tensor([float(label) for label in valid], dtype=torch.float32)
    assert torch.equal(collate([(None, row) for _, row in rows]), expected)
    if len(valid) < len(cells):
        rows.skip_bad_rows = False
        with pytest.raises(ValueError, match=rf'row {meant.index(None)} .*column "label": '):
            list(rows)


def test_a_code_among_numbers_is_named():
    _, wrong = read_labels([{"label": 31}, {"label": "007"}, {"label": "0.5"}], ["label"], "x")
    assert wrong == {1: 'column "label": "007" begins with a zero, as a code does. Write the number without it'}


@pytest.mark.parametrize("load", [load_csv, load_json, load_jsonl, load_folder])
def test_ids_stay_as_they_are_written(tmp_path, load):
    """Persons 7 and 007 would become one, and be in two splits or in none."""
    rows = load(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert list(rows["person"]) == ["7", "007", "-", "0", "12E5", "12345678901234567890123"]
    problems = inspect({"train": rows}, group_column="person", show_progress=False)["problems"]
    assert problems["groups_across"] == problems["bad_labels"] == []


# ---- Classes --------------------------------------------------------------------------------------------------------

NAMES = ["1", "10", "2.5"]


def classes(n=12, names=NAMES):
    """Images with a class for a label: its index is stored, its name is the number."""
    rows = images(n).remove_columns("label").add_column("label", [index % len(names) for index in range(n)])
    return rows.cast_column("label", datasets.ClassLabel(names=names))


def meant(rows):
    return [float(NAMES[index]) for index in rows["label"]]


def test_a_class_is_the_number_that_it_is_called_wherever_labels_are_read(tmp_path):
    rows = classes()
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    expected = meant(rows)
    forms = [rows, rows.with_format("torch"), rows.to_iterable_dataset(), Subset(rows, range(12))]
    forms += [load_local(str(tmp_path / name))["train"] for name in ("rows.parquet", "saved")]
    forms += [ConcatDataset([rows.select(range(6)), rows.select(range(6, 12))]), rows.select(range(12))]
    for form in forms:
        assert read_labels(form, ["label"], "x")[0].tolist() == expected
    assert inspect({"train": rows}, show_progress=False)["splits"]["train"]["labels"]["label"]["max"] == 10
    data = DataModule(build_settings(tmp_path), rows, rows, None)
    data.check()
    split, labels = data.load_split(rows, "train_dataset")
    assert labels.tolist() == [row["label"] for _, row in (split[index] for index in range(12))] == expected
    stream = StreamingDataset(rows.to_iterable_dataset(), "x", "image", ["label"], 12, 4, 0, 1, False, False)
    assert [row["label"] for _, row in stream] == expected
    parts = dir_split(classes(120), "label", cap=4)
    assert [sum(label == 10 for label in meant(parts[name])) for name in ("validation", "test")] == [4, 4]


def build_settings(folder, **changed):
    model, processor = models["timm-resnet"]()
    return build(model, processor, folder, images(4), **changed).args


@pytest.mark.parametrize("names", [["cat", "dog"], ["18-25", "26-35"], ["1", "2", "nan"]])
def test_classes_that_are_no_numbers_are_refused(names):
    rows = classes(6, names)
    with pytest.raises(ValueError, match=r'^train_dataset, column "label" holds classes \(.*is not a number|is nan'):
        read_labels(rows, ["label"], "train_dataset")
    with pytest.raises(ValueError, match="holds classes"):
        inspect({"train": rows}, show_progress=False)
    with pytest.raises(ValueError, match="holds classes"):
        dir_split(rows, "label")


def test_a_transform_that_gives_the_index_of_a_class_is_refused():
    rows = classes(6)
    with pytest.raises(ValueError, match=r"its transform gives their indices\. Make it give the number"):
        read_labels(rows.with_transform(lambda batch: {"label": batch["label"]}), ["label"], "x")
    named = rows.with_transform(lambda batch: {"label": [float(NAMES[index]) for index in batch["label"]]})
    assert read_labels(named, ["label"], "x")[0].tolist() == meant(rows)


def test_a_row_without_a_class_has_no_label():
    rows = datasets.Dataset(pa.table({"label": pa.array([0, None, 1, -1])}))
    rows = rows.cast(datasets.Features({"label": datasets.ClassLabel(names=["5", "6"])}))
    labels, wrong = read_labels(rows, ["label"], "x")
    np.testing.assert_array_equal(labels, [5, np.nan, 6, np.nan])
    assert wrong == dict.fromkeys([1, 3], 'column "label": the label is missing')


@pytest.mark.parametrize(
    "cell",
    [True, np.True_, np.datetime64(3, "ns"), np.timedelta64(3, "s"), pd.Timestamp(0), "2020-01-01", "1_000", "31,5"],
)
def test_what_python_would_make_a_number_of_is_none(cell):
    _, wrong = read_labels([{"label": cell}, {"label": 1.0}], ["label"], "x")
    assert list(wrong) == [0]
    assert "is not a number" in wrong[0]


# ---- Vectors --------------------------------------------------------------------------------------------------------

PAIRS = [[0.1, 0.2], [0.3, -0.4], [0.5, 0.6], [0.7, 0.8]] * 3
VECTORS = {
    "list": lambda pairs: datasets.List(datasets.Value("float64")),
    "fixed": lambda pairs: datasets.List(datasets.Value("float32"), length=2),
    "large": lambda pairs: datasets.LargeList(datasets.Value("float64")),
    "array": lambda pairs: datasets.Array2D((1, 2), "float64"),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_one_column_may_hold_the_labels_of_all_dimensions(tmp_path, kind):
    cells = [[pair] for pair in PAIRS] if kind == "array" else PAIRS
    rows = images(12).remove_columns("label").add_column("gaze", cells).cast_column("gaze", VECTORS[kind](cells))
    rows.to_parquet(tmp_path / "rows.parquet")
    expected = np.array(PAIRS, np.float32 if kind == "fixed" else np.float64)
    loaded = load_local(str(tmp_path / "rows.parquet"))["train"]
    for form in (rows, rows.with_format("torch"), rows.to_iterable_dataset(), loaded):
        labels, wrong = read_labels(form, ["gaze"], "x")
        np.testing.assert_array_equal(labels, expected)
        assert wrong == {}


def test_a_model_of_two_targets_trains_on_a_column_of_two_numbers(tmp_path):
    rows = images(12).remove_columns("label").add_column("gaze", PAIRS)
    seen = []

    def loss(outputs, labels, num_items_in_batch):
        seen.append(labels)
        return outputs.logits.sum()

    model, processor = models["timm-resnet"](target=["pitch", "yaw"])
    trainer = build(model, processor, tmp_path / "run", rows, rows, label_columns=["gaze"], compute_loss_func=loss)
    trainer.train()
    given = torch.cat(seen).reshape(-1, 2)
    assert {tuple(pair) for pair in given.tolist()} == {tuple(pair) for pair in torch.tensor(PAIRS).tolist()}
    assert trainer.predict(rows).label_ids.shape == (12, 2)
    streamed, wanted = rows.to_iterable_dataset(), torch.tensor(PAIRS)
    stream = StreamingDataset(streamed, "x", "image", ["gaze"], 12, 4, 0, 1, False, False)
    batch = ImageCollator(processor, "image", ["gaze"], 1, Augmentation(), 0)([(None, row) for _, row in stream])
    assert torch.equal(batch["labels"], wanted)
    one, processor = models["timm-resnet"]()
    with pytest.raises(ValueError, match=r"predicts 1 values, but label_columns names 2 \(gaze_0, gaze_1\)"):
        build(one, processor, tmp_path / "one", rows, label_columns=["gaze"])


def test_a_list_of_one_number_is_that_number():
    rows = [{"a": [25.0], "b": np.array([1.0])}, {"a": 3, "b": torch.tensor([2.0])}]
    labels, wrong = read_labels(rows, ["a", "b"], "x")
    assert labels.tolist() == [[25, 1], [3, 2]]
    assert wrong == {}
    assert read_labels([{"a": [25.0]}, {"a": (30,)}], ["a"], "x")[0].tolist() == [25, 30]


def test_lists_that_do_not_fit_are_told():
    _, wrong = read_labels([{"a": [1, 2], "b": 3}], ["a", "b"], "x")
    assert wrong[0].startswith(
        'column "a": it holds a list of 2 numbers; make a column of each, or name it as the onl'
    )
    labels, wrong = read_labels([{"a": [1, 2]}, {"a": [1, 2, 3]}, {"a": 1}, {"a": None}, {"a": [4, "x"]}], ["a"], "x")
    assert wrong == {
        1: 'column "a": it holds 3 numbers, where others hold 2',
        2: 'column "a": it holds 1 numbers, where others hold 2',
        3: 'column "a": the label is missing',
        4: 'column "a_1": "x" is not a number',
    }
    np.testing.assert_array_equal(labels, [[1, 2], *[[math.nan] * 2] * 3, [4, math.nan]])


# ---- Rows that are none ---------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new("RGB", (32, 32)), 25.0


def stream_of_pairs():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (Pairs()[index] for index in range(4))

    return Stream()


@pytest.mark.parametrize("make", [Pairs, lambda: TensorDataset(torch.zeros(4, 3), torch.zeros(4)), stream_of_pairs])
def test_rows_that_are_no_mappings_are_refused(tmp_path, make):
    model, processor = models["timm-resnet"]()
    with pytest.raises(ValueError, match=r'^train_dataset gives rows of type tuple; each must be a mapping .*"image"'):
        build(model, processor, tmp_path, make())
    with pytest.raises(ValueError, match=r"^eval_dataset gives rows of type tuple"):
        build(model, processor, tmp_path, images(4), make() if make is not stream_of_pairs else Pairs())


def test_a_dictionary_of_splits_is_not_trained_on(tmp_path):
    model, processor = models["timm-resnet"]()
    data = datasets.DatasetDict({"train": images(4), "test": images(4)})
    says = r'^train_dataset is a DatasetDict of the splits train, test\. .*train_dataset=data\["train"\]'
    with pytest.raises(ValueError, match=says):
        build(model, processor, tmp_path, data)
    assert column_names(data["train"]) == ["image", "label"]
    assert class_numbers(data["train"], ["label"], "x") == {}
