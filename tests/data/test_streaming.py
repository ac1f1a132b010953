"""Training on a stream: the same rows, steps and labels as from the data set it comes from."""

import io
import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, Value
from PIL import Image as PILImage
from small import build, calls_of, images, models
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchStream
from transformers import TrainerCallback

import conr_hf.data.streaming
import conr_hf.data.streaming_dataset
from conr_hf import load_benchmark
from conr_hf.cli.main import main
from conr_hf.data import streaming_dataset
from conr_hf.data.streaming import label_stream, load_stream, read_histogram
from conr_hf.data.streaming_dataset import StreamingDataset
from conr_hf.imbalance import Bins, density_weights

ROWS, BATCH = 21, 8


@pytest.fixture(autouse=True)
def _no_rest_after_threads(monkeypatch):
    """`datasets` sleeps for seconds where it stops reading several files, so that a process may end at once after."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def stream_of(rows, shuffled=True):
    if not shuffled:
        return rows.to_iterable_dataset(num_shards=1)  # `datasets` may take shards in another order each epoch
    return rows.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=7)


def train(folder, rows, **changed):
    torch.manual_seed(0)
    model, processor = models["vit"]()
    settings = {"num_train_epochs": 2, "conr_weight": 0.5, "conr_window": 2.0, "reweight": "sqrt_inverse", **changed}
    resume = settings.pop("resume", None)
    trainer = build(model, processor, folder, rows, per_device_train_batch_size=BATCH, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same(ours, theirs):
    assert ours.state.global_step == theirs.state.global_step
    weights = ours.model.state_dict()
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(weights[name], value), name


def streamed(stream, count, batch=4, process=0, processes=1, drop_last=False, skip_bad_rows=False):
    return StreamingDataset(
        stream,
        "train_dataset",
        "image",
        ["label"],
        count=count,
        batch=batch,
        process=process,
        processes=processes,
        drop_last=drop_last,
        skip_bad_rows=skip_bad_rows,
    )


# ---- Training -------------------------------------------------------------------------------------------------------


def test_a_stream_trains_what_its_data_set_trains(tmp_path):
    """A user who moves to a stream would get another model, or train on some rows twice."""
    rows = images(ROWS)
    from_rows = train(tmp_path / "rows", rows, train_sampling_strategy="sequential")
    from_stream = train(tmp_path / "stream", stream_of(rows, shuffled=False))
    assert from_rows.state.global_step == 2 * 3
    assert_same(from_stream, from_rows)
    assert from_stream.resolved == from_rows.resolved
    assert from_stream.bins.to_dict() == from_rows.bins.to_dict()


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(tmp_path, persistent):
    """Workers would share the stream out among them, in an order of their own, or repeat the first epoch's."""
    alone = train(tmp_path / "alone", stream_of(images(ROWS)))
    changed = {"dataloader_num_workers": 2, "dataloader_persistent_workers": persistent}
    assert_same(train(tmp_path / "two", stream_of(images(ROWS)), **changed), alone)


def test_one_process_tells_the_stream_its_epoch(monkeypatch):
    """`set_epoch` adds the difference to a number that the workers share: of two at once both would add it."""
    tell, told = IterableDataset.set_epoch, []

    def set_epoch(self, epoch):
        assert get_worker_info() is None
        told.append(epoch)
        tell(self, epoch)

    monkeypatch.setattr(IterableDataset, "set_epoch", set_epoch)
    rows = streamed(stream_of(images(ROWS)), ROWS)
    rows.epoch = 1
    assert len(list(DataLoader(rows, batch_size=4, num_workers=2, collate_fn=len))) == 6
    assert told == [1]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_is_uninterrupted(tmp_path, workers):
    """Rows before the stop would come twice, and others never."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    changed = {"save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": workers}
    whole = train(tmp_path / "whole", stream_of(images(ROWS)), **changed)
    train(tmp_path / "late", stream_of(images(ROWS)), callbacks=[Stop()], **changed)
    late = train(tmp_path / "late", stream_of(images(ROWS)), resume=True, **changed)
    assert_same(late, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_does_not_decode_what_it_leaves_out(tmp_path, monkeypatch, workers):
    """Half an epoch of ImageNet's size would be decoded before the first step."""
    decoded = calls_of(monkeypatch, streaming_dataset, "to_image")
    changed = {"save_strategy": "steps", "save_steps": 2, "dataloader_num_workers": workers}
    train(tmp_path, stream_of(images(ROWS)), num_train_epochs=1, **changed)
    assert decoded.value == ROWS
    late = train(tmp_path, stream_of(images(ROWS)), resume=str(tmp_path / "checkpoint-2"), **changed)
    assert late.state.global_step == 6
    assert decoded.value == ROWS + (ROWS - 2 * BATCH) + ROWS


class Counted(TorchStream):
    """A stream of the user's own, which counts the rows it gave."""

    def __init__(self, rows):
        self.rows, self.given = rows, 0

    def __iter__(self):
        for row in self.rows:
            self.given += 1
            yield row


def test_a_torch_stream_trains_too(tmp_path):
    """What is no data set of the Hub's could not be streamed."""
    rows = images(ROWS)
    from_stream = train(tmp_path / "stream", Counted(rows))
    assert_same(from_stream, train(tmp_path / "rows", rows, train_sampling_strategy="sequential"))


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path):
    """Trainer's own way with streams."""
    assert train(tmp_path, stream_of(images(ROWS)), max_steps=4).state.epoch == pytest.approx(1 + 1 / 3)


# ---- Epochs of rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 8, 13, 16])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_once_an_epoch_and_repeats_last(count, processes, workers):
    """A process that runs out before the others would leave them waiting for ever."""
    rows = images(count)
    parts = []
    for process in range(processes):
        loader = DataLoader(
            streamed(stream_of(rows), count, process=process, processes=processes),
            batch_size=4,  # of all processes, of which accelerate gives each its part
            num_workers=workers,
            collate_fn=list,
        )
        assert len(loader) == -(-count // 4)
        parts.append([example for batch in loader for example in batch])
    for part in parts:
        assert [draw.position for draw, _ in part] == list(range(len(part)))
        assert len(part) == (count if processes == 1 else -(-count // 4) * 4)
        assert sorted(row["label"] for _, row in part[:count]) == sorted(rows["label"])
        labels = [row["label"] for _, row in part]
        assert labels[count:] == [labels[i % count] for i in range(count, len(part))]
        assert labels == [row["label"] for _, row in parts[0]]


def test_only_own_images_are_decoded():
    """Each of eight processes would decode the images of all."""
    stream = images(8).cast_column("image", Image(decode=False)).to_iterable_dataset()
    kinds = [isinstance(row["image"], PILImage.Image) for _, row in streamed(stream, 8, process=1, processes=2)]
    assert kinds == 2 * [False, False, True, True]


def test_the_order_is_another_each_epoch():
    """`set_epoch` would not reach the stream."""
    rows = streamed(stream_of(images(20)), 20)
    orders = []
    for epoch in (0, 1, 0):
        rows.epoch = epoch
        orders.append([row["label"] for _, row in rows])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_last_batch_that_is_not_full_is_dropped():
    """`dataloader_drop_last` would be ignored, as accelerate's loaders of streams do."""
    rows = streamed(stream_of(images(11)), 11, drop_last=True)
    assert len(rows) == len(list(rows)) == 8


def test_a_stream_that_ends_early_begins_again():
    """With a histogram of more labels than there are rows, the last steps of an epoch would have no batch."""
    labels = [row["label"] for _, row in streamed(stream_of(images(5), shuffled=False), 12)]
    assert labels == (3 * images(5)["label"][:])[:12]


# ---- Labels ---------------------------------------------------------------------------------------------------------


def test_given_labels_are_not_read(tmp_path):
    """A stream from far would be read once more for nothing."""
    stream = Counted(images(ROWS))
    trainer = train(tmp_path, stream, train_labels=images(ROWS)["label"], num_train_epochs=1)
    assert stream.given < 1.5 * ROWS  # the epoch, and first rows for the names of the columns
    assert sum(trainer.bins.train_counts[0]) == ROWS


def test_a_histogram_gives_the_density_of_its_labels(tmp_path):
    """Re-weighting from a histogram would differ from that of the labels it counts."""
    rows = images(ROWS)
    bins = Bins((np.arange(0.0, 101.0, 10.0),), (np.histogram(rows["label"], np.arange(0.0, 101.0, 10.0))[0],))
    trainer = train(tmp_path, stream_of(rows), train_labels=bins, num_train_epochs=1)
    assert trainer.bins is bins
    weights = trainer.training_objective.base.density.weights(torch.tensor(rows["label"]))
    expected = density_weights(rows["label"], bins, "sqrt_inverse")
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert trainer.resolved.label_scale == pytest.approx(np.std(rows["label"]), rel=0.15)
    assert trainer.state.global_step == 3


def test_labels_of_several_dimensions(tmp_path):
    rows = images(ROWS, dimensions=2)
    torch.manual_seed(0)
    model, processor = models["vit"](["label0", "label1"])
    trainer = build(model, processor, tmp_path, stream_of(rows), label_columns=["label0", "label1"])
    trainer.train()
    expected = zip(rows["label0"], rows["label1"], strict=True)
    assert sorted(map(tuple, trainer.data.training_labels().tolist())) == sorted(expected)


# ---- What cannot be done --------------------------------------------------------------------------------------------


def with_bad(rows, image=None, label=None):
    """The rows, image bytes among them; those at place `image` and the label at place `label` are none."""
    cells = rows.cast_column("image", Image(decode=False))["image"][:]
    labels = rows["label"][:]
    if image is not None:
        cells[image] = {"bytes": b"no image", "path": None}
    if label is not None:
        labels[label] = float("nan")
    features = Features({"image": Image(decode=False), "label": Value("float64")})
    return Dataset.from_dict({"image": cells, "label": labels}, features=features)


def test_a_bad_label_is_named_before_training(tmp_path):
    with pytest.raises(ValueError, match=r'train_dataset, row 5, column "label": the label is nan\. Mend the data'):
        train(tmp_path, stream_of(with_bad(images(ROWS), label=5), shuffled=False))


def test_bad_rows_are_left_out_if_they_may_be(tmp_path):
    rows = images(ROWS)
    stream = stream_of(with_bad(rows, label=5), shuffled=False)
    kept = train(tmp_path / "kept", stream, skip_bad_rows=True)
    without = rows.select([row for row in range(ROWS) if row != 5])
    assert_same(kept, train(tmp_path / "without", without, train_sampling_strategy="sequential"))


@pytest.mark.parametrize("decoded", [False, True])
def test_a_bad_image_is_named(tmp_path, decoded):
    rows = with_bad(images(ROWS), image=5)
    rows = rows.cast_column("image", Image()) if decoded else rows
    message = r'row 5 in the order of epoch 1, column "image": the image cannot be read \(it is not an image\)\. Mend'
    with pytest.raises(ValueError, match=message):
        train(tmp_path, stream_of(rows, shuffled=False))


@pytest.mark.parametrize("bad", [0, 5])
@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (0, 2)])
def test_another_row_takes_the_place_of_a_bad_image(bad, workers, processes):
    """One image among a million that cannot be read would end a run after days."""
    rows = with_bad(images(8), image=bad)
    expected = rows["label"][:]
    expected[bad] = expected[1 if bad == 0 else 0]
    labels = {}
    for process in range(processes):
        stream = rows.cast_column("image", Image()).to_iterable_dataset()
        part = streamed(stream, 8, process=process, processes=processes, skip_bad_rows=True)
        loader = DataLoader(part, batch_size=4, num_workers=workers, collate_fn=list)
        for draw, row in (example for batch in loader for example in batch):
            if isinstance(row["image"], PILImage.Image):
                labels[draw.position] = row["label"]
    assert [labels[position] for position in range(8)] == expected


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("column", ["labels", "sample_weight"])
def test_numbers_of_ready_rows_are_checked(column, skips):
    """A NaN would be told as a training that diverged."""
    rows = [{"pixel_values": np.zeros((3, 4, 4)), "labels": float(i), "sample_weight": 1.0} for i in range(6)]
    rows[2] = {**rows[2], column: float("nan")}
    stream = streamed(Counted(rows), 5, skip_bad_rows=skips)
    if skips:
        assert [row["labels"] for _, row in stream] == [0, 1, 3, 4, 5]
    else:
        with pytest.raises(ValueError, match="train_dataset, row 2 in the order of epoch 1, column"):
            list(stream)


def test_rows_for_a_collator_of_the_users_are_left_as_they_are(tmp_path):
    """An array that is no image would be forced to be one."""

    def collate(rows):
        return {
            "pixel_values": torch.stack([torch.tensor(row["image"]) for row in rows])[:, None],
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    rows = [{"image": np.full((3, 32, 32), i / 9, np.float32), "label": 20.0 + i} for i in range(9)]
    model, processor = models["vit"]()
    trainer = build(model, processor, tmp_path, Counted(rows), data_collator=collate)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_stream_without_an_image_that_can_be_read():
    rows = images(2)
    cells = [{"bytes": b"no image", "path": None}] * 2
    features = Features({"image": Image(decode=False), "label": Value("float64")})
    stream = Dataset.from_dict({"image": cells, "label": rows["label"][:]}, features=features).to_iterable_dataset()
    with pytest.raises(ValueError, match="no image of the stream can be read"):
        list(streamed(stream, 2, skip_bad_rows=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resample": "inverse", "reweight": "none"}, "resample is inverse, but train_dataset is a stream"),
        (
            {"cmixup_alpha": 2.0, "conr_weight": 0.0, "reweight": "none"},
            "cmixup_alpha is 2.0, but train_dataset is a stream",
        ),
        ({"label_columns": ["age"]}, 'no column "age"; its columns are image, label'),
        ({"label_columns": ["age"], "train_labels": [1.0] * ROWS}, 'no column "age"; its columns are image, label'),
        ({"image_column": "photo"}, 'train_dataset has no column "photo"; its columns are image, label'),
        ({"train_labels": [[1.0, 2.0]]}, r"train_labels has shape \(1, 2\) and label_columns names 1"),
        ({"train_labels": []}, r"train_labels has shape \(0, 1\)"),
        (
            {"train_labels": Bins(([0.0, 1.0],), ([3],)), "bin_width": 1.0},
            "bin_width is 1.0, but train_labels has bins",
        ),
        ({"train_labels": Bins(([0.0, 1.0],), ([0],))}, "train_labels counts no label"),
        ({"train_labels": Bins(2 * ([0.0, 1.0],), 2 * ([3],))}, "which tells of one label column"),
    ],
)
def test_what_a_stream_cannot_do_is_said_before_training(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, stream_of(images(ROWS)), **changed)


def test_labels_are_given_for_streams_alone(tmp_path):
    with pytest.raises(ValueError, match="train_labels is for a stream"):
        train(tmp_path, images(ROWS), train_labels=[1.0] * ROWS)


def test_a_search_trains_on_a_stream(tmp_path):
    """Each trial makes a new accelerator, which would deal the batches out itself."""
    pytest.importorskip("optuna")
    processor = models["vit"]()[1]
    rows, evaluation = stream_of(images(ROWS)), images(4)
    trainer = build(None, processor, tmp_path, rows, evaluation, model_init=lambda: models["vit"]()[0])
    trainer.hyperparameter_search(
        lambda trial: {"weight_decay": trial.suggest_float("weight_decay", 0, 1)}, n_trials=1
    )
    assert trainer.accelerator.dataloader_config.dispatch_batches is False
    assert trainer.state.global_step == 3


def test_longer_and_shorter_streams_than_labels_are_told(monkeypatch):
    said = []
    monkeypatch.setattr(conr_hf.data.streaming_dataset.logger, "warning_once", said.append)
    assert len(list(streamed(stream_of(images(9)), 8))) == 8
    assert len(list(streamed(stream_of(images(8)), 8))) == 8
    assert ["has more rows than the 8 labels" in sentence for sentence in said] == [True]
    list(streamed(stream_of(images(5)), 8))
    assert "ended after 5 of 8 rows and begins again" in said[1]


def test_an_evaluation_stream_is_refused(tmp_path):
    model, processor = models["vit"]()
    with pytest.raises(ValueError, match="test data is a stream"):
        build(model, processor, tmp_path, images(ROWS)).predict(stream_of(images(4)))
    with pytest.raises(ValueError, match="eval_dataset is a stream"):
        build(model, processor, tmp_path, images(ROWS), stream_of(images(4)))


def test_an_empty_stream_is_refused(tmp_path):
    features = Features({"image": Image(), "label": Value("float64")})
    empty = IterableDataset.from_generator(lambda: iter(()), features=features)
    with pytest.raises(ValueError, match="train_dataset is a stream without rows"):
        train(tmp_path, empty)


# ---- Files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A folder of Parquet files, the training split in two."""
    folder = tmp_path_factory.mktemp("parquet")
    rows = images(40)
    rows.select(range(25)).to_parquet(folder / "train-00000-of-00002.parquet")
    rows.select(range(25, 40)).to_parquet(folder / "train-00001-of-00002.parquet")
    images(9, seed=1).to_parquet(folder / "validation-00000-of-00001.parquet")
    images(7, seed=2).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_splits_of_a_folder(parquet):
    data = load_stream(str(parquet))
    assert isinstance(data["train"], IterableDataset)
    assert [row["label"] for row in data["train"]] == images(40)["label"][:]
    assert isinstance(next(iter(data["train"]))["image"], dict)
    assert (len(data["validation"]), len(data["test"])) == (9, 7)
    expected = np.asarray(images(7, seed=2)[3]["image"])
    np.testing.assert_array_equal(np.asarray(data["test"][3]["image"]), expected)
    assert next(iter(label_stream(str(parquet), ["label"]))) == {"label": images(40)["label"][0]}


def test_binary_images_and_one_file(tmp_path):
    """Parquet written without `datasets` holds plain bytes."""

    def png(value):
        buffer = io.BytesIO()
        PILImage.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    file = tmp_path / "rows.parquet"
    Dataset.from_dict({"photo": [png(7), png(9)], "label": [1.0, 2.0]}).to_parquet(file)
    rows = load_stream(str(file), "photo")["train"]
    kept = StreamingDataset(
        rows, "it", "photo", ["label"], count=2, batch=2, process=0, processes=1, drop_last=False, skip_bad_rows=False
    )
    assert [row["photo"].getpixel((0, 0))[0] for _, row in kept] == [7, 9]


def test_parquet_on_the_hub_is_read_without_its_images(parquet, monkeypatch):
    """The builder of a data set on the Hub tells whether single columns can be read."""
    of_files = datasets.load_dataset_builder("parquet", data_dir=str(parquet))
    of_images = datasets.load_dataset_builder("imagefolder", data_files={"train": [__file__]})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append(kwargs.get("columns")) or {})
    for builder in (of_files, of_images):
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, found=builder, **kwargs: found)
        with pytest.raises(KeyError):
            label_stream("owner/name", ["label"])
    assert asked == [["label"], None]


@pytest.mark.parametrize("kind", ["csv", "folder", "paths", "cells", "splits", "nothing"])
def test_what_is_no_stream_is_said(tmp_path, kind):
    path = tmp_path / "data"
    message = "leave streaming out"
    if kind == "csv":
        path = tmp_path / "data.csv"
        path.write_text("image,label\na.png,1\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "paths":
        path.mkdir()
        Dataset.from_dict({"image": ["a.png"], "label": [1.0]}).to_parquet(path / "train.parquet")
    elif kind == "cells":
        path.mkdir()
        outside = tmp_path / "outside.png"
        PILImage.new("RGB", (4, 4)).save(outside)
        cells = [{"bytes": None, "path": str(outside)}]
        features = Features({"image": Image(decode=False), "label": Value("float64")})
        table = Dataset.from_dict({"image": cells, "label": [1.0]}, features=features).data.table
        pq.write_table(table, path / "train.parquet")
    elif kind == "splits":
        path = tmp_path / "rows.parquet"
        images(4).add_column("split", ["train", "train", "val", "test"]).to_parquet(path)
    else:
        message = "is neither a folder, a file nor an id on the Hub"
    with pytest.raises(ValueError, match=message):
        load_stream(str(path))


def test_benchmarks_stream(tmp_path):
    """IMDB-WIKI from Parquet files: its columns' names, bins and licence are known as of the table."""
    rows = images(30).rename_columns({"label": "age"})
    rows = rows.map(lambda row: {"age": float(round(row["age"]))})
    for split in ("train", "validation", "test"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    data = load_benchmark("imdb-wiki-dir", str(tmp_path), streaming=True)
    assert isinstance(data["train"], IterableDataset)
    assert data["train"].info.dataset_name == "imdb-wiki-dir"
    trainer = train(tmp_path / "run", data["train"], num_train_epochs=1)
    assert trainer.data.bin_width() == 1
    with pytest.raises(ValueError, match="comes with the package and is read into memory; leave streaming out"):
        load_benchmark("earth-elevation", streaming=True)


HISTOGRAM = "low,high,count\n20,30,30\n30,50,8\n60,90,2\n"


def test_histogram_file(tmp_path):
    file = tmp_path / "histogram.csv"
    file.write_text(HISTOGRAM)
    bins = read_histogram(str(file))
    assert bins.edges[0].tolist() == [20, 30, 50, 60, 90]
    assert bins.train_counts[0].tolist() == [30, 8, 0, 2]
    file.write_text("low,high,count\n0.1,0.30000000000000004,5.0\n0.3,0.4,2.0\n")  # as numpy writes 3 * 0.1
    assert read_histogram(str(file)).train_counts[0].tolist() == [5, 2]
    with pytest.raises(ValueError, match="it must be a CSV file with columns low, high and count"):
        read_histogram(str(tmp_path / "histogram.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low,high\n1,2\n", 'no column "count"'),
        ("low,high,count\n1,2,3\n1.5,3,4\n", r"row 1: the bin 1.5 .. 3 must ascend"),
        ("low,high,count\n1,2,-3\n", "row 0: low is 1, high 2 and count -3"),
        ("low,high,count\n1,2,1.5\n", "row 0: low is 1, high 2 and count 1.5"),
        ("low,high,count\n,2,1\n", "row 0: low is None, high 2 and count 1"),
        ("low,high,count\n1,2,0\n", "it counts no label"),
    ],
)
def test_histogram_files_that_cannot_be_meant(tmp_path, text, message):
    file = tmp_path / "histogram.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_histogram(str(file))


@pytest.mark.parametrize("histogram", [False, True])
def test_the_command_line_streams(tmp_path, parquet, capsys, histogram):
    """`--streaming true` leaves what any run leaves, and evaluate and report read it."""
    run = tmp_path / "run"
    options = {
        "data": parquet,
        "streaming": "true",
        "shuffle_buffer": 10,
        "model": "timm/test_resnet",
        "pretrained": "false",
        "image_size": 32,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "output_dir": run,
        "report_to": "none",
        "use_cpu": "true",
        "disable_tqdm": "true",
        **({"label_histogram": tmp_path / "histogram.csv"} if histogram else {}),
    }
    (tmp_path / "histogram.csv").write_text(HISTOGRAM)
    with pytest.raises(SystemExit) as ended:
        main(["train", *(str(part) for name, value in options.items() for part in (f"--{name}", value))])
    assert ended.value.code == 0
    results = json.loads((run / "results.json").read_text())
    assert (results["steps"], results["validation"]["all"]["n"], results["test"]["all"]["n"]) == (2 * 3, 9, 7)
    assert sum(results["bins"]["train_counts"][0]) == 40
    assert (results["bins"]["train_counts"][0] == [30, 8, 0, 2]) is histogram
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), "--data", str(parquet), "--streaming"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run)])
    assert ended.value.code == 0, capsys.readouterr().err
