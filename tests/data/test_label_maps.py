"""Labels that are maps: what counts as one, how it is read, and what the trainer knows of all of them."""

import io

import datasets
import numpy as np
import pytest
import small
import torch
from image_files import tiff_of
from PIL import Image

from conr_hf.data import map_statistics
from conr_hf.data.columns import read_labels
from conr_hf.data.config import DataConfig
from conr_hf.data.inspection import inspect
from conr_hf.data.label_maps import is_map, to_map
from conr_hf.data.local import load_local
from conr_hf.data.map_statistics import has_maps
from conr_hf.training.config.resolved_config import resolve
from conr_hf.training.data_module import DataModule
from conr_hf.training.dataloaders import DataLoaders


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stored(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def heights(shape=(3, 4), dtype=np.uint16, seed=0):
    values = np.random.default_rng(seed).integers(1, 200, shape)
    values[0, 0] = 0
    return values.astype(dtype)


# ---- A map ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Image.new("L", (2, 2)), True),
        (np.zeros((2, 2)), True),
        (torch.zeros(2, 2), True),
        (torch.zeros(1, 3, 2), True),
        (np.zeros((1, 3, 2)), True),
        ([[1.0, 2.0], [3.0, 4.0]], True),
        ([[1.0, 2.0]], False),  # T numbers
        (np.zeros((1, 2)), False),
        ([[[1.0], [2.0]]], True),
        ([np.zeros(2), np.zeros(2)], True),
        ({"bytes": b"", "path": None}, True),
        ("depth/1.NPY", True),
        ("1.tiff", True),
        ("31 years", False),
        ("31.5", False),
        (31, False),
        (np.float32(3), False),
        (np.zeros(2), False),
        (np.zeros((2, 2, 3)), False),
        (torch.zeros(2, 3, 2), False),
        (torch.zeros(1, 1, 3, 2), False),
        ([1, 2], False),
        ([], False),
        ({"a": 1}, False),
        (None, False),
    ],
)
def test_what_a_map_is(cell, expected):
    assert is_map(cell) is expected


def ways(folder):
    """One map in all that it may be stored as."""
    values = heights()
    sixteen, eight = Image.fromarray(values), Image.fromarray(values.astype(np.uint8))
    floats = Image.fromarray(values.astype(np.float32))
    for name, content in {
        "16.png": stored(sixteen),
        "8.PNG": stored(eight),
        "32.tif": stored(floats, "TIFF"),
        "16.tiff": stored(sixteen, "TIFF"),
        "a.npy": npy(values.astype(np.int64)),
    }.items():
        (folder / name).write_bytes(content)
        yield str(folder / name)
        yield {"bytes": content, "path": None}
        yield {"bytes": None, "path": str(folder / name)}
    yield folder / "a.npy"
    yield from (eight, sixteen, floats, Image.fromarray(values.astype(np.int32)))
    yield Image.frombytes("I;16B", (4, 3), values.astype(">u2").tobytes())
    yield from (values.astype(dtype) for dtype in ("u1", "i2", "i8", "f2", "f4", "f8", ">f4"))
    yield from (torch.tensor(values.astype(np.int32)), torch.tensor(values.astype(np.float32)).bfloat16())
    yield values.tolist()
    yield [row.astype(float) for row in values]
    yield from (values[None], torch.tensor(values.astype(np.float32))[None], values[None].tolist())
    yield {"bytes": npy(values[None]), "path": None}


def test_every_kind_of_map_gives_the_same(tmp_path):
    expected = heights().astype(np.float64) * 0.5
    expected[0, 0] = np.nan
    for cell in ways(tmp_path):
        found = to_map(cell, scale=0.5, invalid=0)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        plain = to_map(cell)
        assert plain[0, 0] == 0
        np.testing.assert_array_equal(plain, heights())


def test_what_no_number_can_be_is_no_label():
    values = np.array([[1, np.nan, np.inf], [-np.inf, -9999.9, 2]], np.float32)
    expected = [[1, np.nan, np.nan], [np.nan, np.nan, 2]]
    np.testing.assert_array_equal(to_map(values, invalid=-9999.9), np.array(expected, np.float32))
    np.testing.assert_array_equal(to_map([[1.0, None]]), np.array([[1, np.nan]], np.float32))
    np.testing.assert_array_equal(to_map([[1e39, 1.0]]), np.array([[np.nan, 1]], np.float32))
    assert values[0, 1] != values[0, 1]  # the caller's own is left as it was
    assert values[1, 1] == np.float32(-9999.9)


def test_maps_are_upright_as_their_images_are():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    file = io.BytesIO()
    Image.fromarray(heights()).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(to_map({"bytes": file.getvalue(), "path": None}), np.rot90(heights(), -1))


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (None, "the map is missing"),
        ({"bytes": None, "path": None}, "the map is missing"),
        (Image.new("RGB", (4, 4)), "mode RGB"),
        (Image.new("P", (4, 4)), "mode P"),
        (np.zeros((2, 2, 3)), r"shape \(2, 2, 3\)"),
        (np.zeros((1, 1, 2, 3)), r"shape \(1, 1, 2, 3\)"),
        (np.zeros((0, 3)), "it is empty"),
        (np.array([["a", "b"]]), "it holds <U1"),
        (np.zeros((2, 2), complex), "complex"),
        ([[1, 2], [3]], "not as many in each"),
        ([["a", "b"]], "not numbers"),
        ("31 years", "no path of a map"),
        (5, 'it is "5", which is no map'),
        (b"x" * 1000, r"^it is .{1,50}, which is no map"),
        ({"bytes": b"", "path": None}, "the file is empty"),
        ({"bytes": npy(np.array([[Harm()]]), allow_pickle=True), "path": None}, "allow_pickle=False"),
        ({"bytes": npy(np.zeros((9, 9)))[:-8], "path": None}, "."),
        ("gone.npy", "gone.npy"),
    ],
)
def test_what_is_no_map_is_told_in_a_sentence(cell, says):
    with pytest.raises((OSError, ValueError), match=says) as refused:
        to_map(cell)
    assert "\n" not in str(refused.value)


def test_text_named_npy_is_not_unpickled(tmp_path):
    for content in (b"no array", b""):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"no \.npy file"):
            to_map(tmp_path / "a.npy")


# ---- The maps of a data set -----------------------------------------------------------------------------------------


def processor():
    return small.models["vit"]()[1]


NUMBERS = datasets.List(datasets.List(datasets.Value("float32")))


def rows(maps, image_size=(32, 32), label=NUMBERS):
    """Images of `image_size` (width, height) and maps, as they are stored in a data set."""
    images = [Image.new("RGB", image_size, (index, 0, 0)) for index in range(len(maps))]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    return datasets.Dataset.from_dict({"image": images, "label": maps}, features=features)


def data_module(folder, train=None, evaluation=None, **changed):
    return DataModule(small.settings(folder, **changed), train, evaluation, None)


def loaders_of(data):
    return DataLoaders(data.args, data, processor(), lambda: 8)


def varied(n=7, shape=(4, 4), seed=0):
    """Maps with more and fewer pixels without a label."""
    random = np.random.default_rng(seed)
    maps = random.normal(50, 20, (n, *shape)).astype(np.float32)
    for index, one in enumerate(maps):
        one.ravel()[: 2 * index] = np.nan
    return list(maps)


def test_a_trainer_knows_the_labels_of_all_valid_pixels(tmp_path):
    maps = varied()
    of = data_module(tmp_path, rows(maps))
    of.check()
    assert of.labels_are_maps
    assert of.training_rows() == 7
    valid = [one[np.isfinite(one)] for one in maps]
    np.testing.assert_array_equal(of.training_labels(), np.concatenate(valid))
    assert of.training_labels().dtype == np.float32
    np.testing.assert_array_equal(of.pixel_rows(), np.concatenate([[i] * len(v) for i, v in enumerate(valid)]))
    assert of.valid_share() == pytest.approx(np.mean([len(v) / 16 for v in valid]))
    mean = np.mean([len(v) for v in valid])
    assert of.shot_thresholds() == pytest.approx((20 * mean, 100 * mean))
    assert loaders_of(of).steps_per_epoch() == 1  # 7 rows in a batch of 8
    assert of.load_split(of.train_dataset, "train_dataset")[1] is None


def test_one_number_a_row_is_as_it_was(tmp_path):
    of = data_module(tmp_path, small.images(10))
    assert not of.labels_are_maps
    assert of.shot_thresholds() is None
    assert of.training_rows() == len(of.training_labels()) == 10
    with pytest.raises(ValueError, match="no maps"):
        of.valid_share()


def test_stored_numbers_become_label_units(tmp_path):
    values = [heights((8, 8), np.uint16, seed) for seed in range(3)]
    data = rows([stored(Image.fromarray(one)) for one in values], label=datasets.Image())
    of = data_module(tmp_path, data, map_scale=0.001, map_invalid=0)
    expected = np.concatenate([one[one > 0] for one in values]) * 0.001
    np.testing.assert_allclose(of.training_labels(), expected, rtol=1e-6)


@pytest.mark.parametrize("ready", ["plain", "transform"])
def test_rows_that_are_ready_for_the_model(tmp_path, ready):
    maps = varied(4)

    class Ready:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"pixel_values": np.zeros((3, 32, 32), np.float32), "labels": maps[index]}

    def transform(batch):
        return {"pixel_values": [np.zeros((3, 32, 32), np.float32)] * len(batch["label"]), "labels": batch["label"]}

    data = Ready() if ready == "plain" else rows(maps).with_transform(transform)
    of = data_module(tmp_path, data)
    assert of.labels_are_maps
    of.check()
    np.testing.assert_array_equal(of.training_labels(), np.concatenate([one[np.isfinite(one)] for one in maps]))


@pytest.mark.parametrize(
    ("most", "counts"),
    [(83, None), (70, None), (40, [9, 8, 7, 6, 4, 4, 2]), (7, [2, 1, 1, 1, 1, 1, 1]), (1, [1] * 7)],
)
def test_of_too_many_pixels_the_same_share_of_each_map(tmp_path, monkeypatch, most, counts):
    """7 maps with 16, 14, ... 4 valid pixels, 70 in all."""
    maps = varied()
    monkeypatch.setattr(map_statistics, "MOST_PIXELS", most)
    of = data_module(tmp_path / "a", rows(maps))
    valid = [one[np.isfinite(one)] for one in maps]
    counts = counts or [len(v) for v in valid]
    found = np.split(of.training_labels(), np.cumsum(counts)[:-1])
    for part, whole in zip(found, valid, strict=True):
        assert len(set(part.tolist())) == len(part)
        assert set(part.tolist()) <= set(whole.tolist())
    np.testing.assert_array_equal(of.pixel_rows(), np.repeat(np.arange(7), counts))
    assert of.valid_share() == pytest.approx(np.mean([len(v) / 16 for v in valid]))
    assert of.shot_thresholds() == pytest.approx((20 * sum(counts) / 7, 100 * sum(counts) / 7))
    again = data_module(tmp_path / "b", rows(maps))
    np.testing.assert_array_equal(again.training_labels(), of.training_labels())


def dense_and_sparse():
    """Maps of 900 labels around 20, and of 9 around 80."""
    random = np.random.default_rng(0)
    for index in range(60):
        one = random.normal(20 if index % 2 else 80, 3, (30, 30)).astype(np.float32)
        if index % 2 == 0:
            one.ravel()[9:] = np.nan
        yield one


def test_sparse_maps_count_no_more_in_a_sample(tmp_path, monkeypatch):
    maps = list(dense_and_sparse())
    every = np.concatenate([one[np.isfinite(one)] for one in maps])
    monkeypatch.setattr(map_statistics, "MOST_PIXELS", 3000)
    labels = data_module(tmp_path, rows(maps)).training_labels()
    assert len(labels) == pytest.approx(3000, abs=30)
    assert (labels > 50).mean() == pytest.approx((every > 50).mean(), abs=0.001)
    assert labels.mean() == pytest.approx(every.mean(), abs=0.2)
    assert np.histogram(labels, [0, 18, 22, 50, 100])[0] / len(labels) == pytest.approx(
        np.histogram(every, [0, 18, 22, 50, 100])[0] / len(every), abs=0.03
    )


@pytest.mark.parametrize("most", [40, 8])
def test_a_sample_is_the_same_for_any_number_of_processes(monkeypatch, most):
    """Each process thins when its own maps are too many; what none had to thin is thinned when all are known."""
    monkeypatch.setattr(map_statistics, "MOST_PIXELS", most)
    maps = [*varied(7, seed=1), *varied(7, seed=2)]
    data = rows(maps, image_size=(4, 4))
    valid = {row: int(np.isfinite(one).sum()) for row, one in enumerate(maps)}
    samples = []
    for processes in (1, 2, 3, 14):
        ours = {}
        for process in range(processes):
            read = map_statistics.read_maps(data, range(process, 14, processes), "x", DataConfig(), True, False)
            assert sum(len(one.values) for one in read.values()) <= 2 * most + 16 + 2 * 14
            ours |= map_statistics.subsample_evenly(read, valid)
        samples.append([ours[row].values.tolist() for row in range(14)])
    assert samples[0] == samples[1] == samples[2] == samples[3]
    assert sum(map(len, samples[0])) == pytest.approx(most, abs=7)


def scanned(folder, kind):
    """Images and what a scanner stored of them, in millimetres, 0 where it saw nothing."""
    (folder / "maps").mkdir(parents=True)
    values, lines = [heights((8, 8), np.uint16, seed) * 10 for seed in range(3)], []
    for index, one in enumerate(values):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(folder / f"{index}.png")
        form = "npy" if kind == "npy" or (kind == "both" and index == 1) else "png"
        content = npy(one) if form == "npy" else stored(Image.fromarray(one))
        (folder / "maps" / f"{index}.{form}").write_bytes(content)
        lines.append(f"{index}.png,maps/{index}.{form}\n")
    (folder / "metadata.csv").write_text("file_name,label_file_name\n" + "".join(lines))
    return values


@pytest.mark.parametrize("kind", ["png", "npy", "both"])
@pytest.mark.parametrize("form", ["one folder", "a folder a split", "parquet"])
def test_maps_of_the_users_own(tmp_path, kind, form):
    folder = tmp_path / "data"
    values = scanned(folder / "train" if form == "a folder a split" else folder, kind)
    if form == "parquet":
        load_local(str(folder))["train"].to_parquet(tmp_path / "rows.parquet")
        folder = tmp_path / "rows.parquet"
    data = load_local(str(folder))["train"]
    assert data.column_names == ["image", "label"]
    of = data_module(tmp_path / "run", data, map_scale=0.001, map_invalid=0)
    of.check()
    assert of.labels_are_maps
    expected = np.concatenate([one[one > 0] for one in values]) / 1000
    np.testing.assert_allclose(of.training_labels(), expected, rtol=1e-6)
    batch = loaders_of(of).collator()([(None, data[index]) for index in range(3)])
    np.testing.assert_allclose(
        batch["labels"].numpy(), np.where(np.stack(values) > 0, np.stack(values) / 1000, np.nan), rtol=1e-6
    )


def test_maps_of_the_users_own_stay_in_their_folder(tmp_path):
    scanned(tmp_path / "data", "npy")
    lines = (tmp_path / "data" / "metadata.csv").read_text().replace("maps/1.npy", "../1.npy")
    (tmp_path / "data" / "metadata.csv").write_text(lines)
    with pytest.raises(ValueError, match=r'row 1, column "label": "\.\./1\.npy" lies outside the folder'):
        load_local(str(tmp_path / "data"))


def test_has_maps_looks_at_the_first_row_alone(tmp_path):
    assert has_maps(rows([b"no image"] * 2, label=datasets.Image()), ["label"], "x")  # nothing is decoded
    assert not has_maps(rows(varied(2)), ["label", "other"], "x")
    assert not has_maps(rows(varied(2)).select_columns("image"), ["label"], "x")
    files = datasets.Dataset.from_dict({"image": ["a.png"], "label": ["depth/a.npy"]})
    assert has_maps(files, ["label"], "x")


def test_streams_of_maps_are_refused(tmp_path):
    stream = rows(varied()).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"^train_dataset is a stream, and its labels are maps\. Give maps by index"):
        has_maps(stream, ["label"], "train_dataset")
    of = data_module(tmp_path, stream)
    with pytest.raises(ValueError, match="stream, and its labels are maps"):
        of.check()


@pytest.mark.parametrize(
    ("shape", "image_size", "fits"),
    [
        ((32, 32), (32, 32), True),
        ((16, 16), (32, 32), True),
        ((48, 64), (640, 480), True),
        ((53, 71), (640, 480), True),  # a ninth, rounded down
        ((54, 71), (640, 480), True),
        ((960, 1280), (640, 480), True),
        ((64, 48), (640, 480), False),
        ((48, 48), (640, 480), False),
        ((50, 64), (640, 480), False),
        ((33, 32), (32, 32), False),
    ],
)
def test_a_map_has_the_aspect_of_its_image(tmp_path, shape, image_size, fits):
    of = data_module(tmp_path, rows([np.ones(shape, np.float32)], image_size))
    if fits:
        of.check()
        return
    with pytest.raises(ValueError) as refused:
        of.check()
    assert str(refused.value).startswith(
        f'train_dataset, row 0, column "label": its map has {shape[1]} x {shape[0]} pixels and its image '
        f"{image_size[0]} x {image_size[1]}; "
    )


def bad_rows():
    good = stored(Image.fromarray(heights((8, 8))))
    wrong = {
        1: (b"no image", "the map cannot be read (it is not an image)"),
        2: (stored(Image.new("RGB", (8, 8))), "mode RGB"),
        3: (stored(Image.new("I;16", (8, 8))), "its map has no valid pixel"),
        5: (stored(Image.new("L", (8, 4), 1)), "its map has 8 x 4 pixels"),
        6: (None, "the map cannot be read (the map is missing)"),
    }
    return [wrong[index][0] if index in wrong else good for index in range(8)], wrong


def test_maps_that_cannot_be_used_are_named_by_row(tmp_path, caplog):
    cells, wrong = bad_rows()
    data = rows(cells, label=datasets.Image())
    with pytest.raises(ValueError) as refused:
        data_module(tmp_path, data, map_invalid=0).check()
    text = str(refused.value)
    assert text.startswith('train_dataset, row 1, column "label": the map cannot be read (it is not an image). 4 more')
    of = data_module(tmp_path, data, map_invalid=0, skip_bad_rows=True)
    of.check()
    assert of.load_split(data, "train_dataset")[0].indices.tolist() == [0, 4, 7]
    assert of.training_rows() == 3
    assert sorted(set(of.pixel_rows().tolist())) == [0, 1, 2]
    for index, (_, why) in wrong.items():
        assert f"row {index}, " in caplog.text
        assert why in caplog.text


def test_images_and_weights_are_checked_beside_maps(tmp_path):
    data = rows(varied(4)).add_column("sample_weight", [1.0, 1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match=r'row 2, column "sample_weight": -1\.0 is less than 0'):
        data_module(tmp_path, data).check()
    images = [stored(Image.new("RGB", (4, 4))), b"no image"]
    features = datasets.Features({"image": datasets.Image(), "label": rows(varied(1)).features["label"]})
    broken = datasets.Dataset.from_dict({"image": images, "label": varied(2)}, features=features)
    with pytest.raises(ValueError, match=r'row 1, column "image": the image cannot be read \(it is not an image\)'):
        data_module(tmp_path, broken).check()


def test_a_transform_that_fails_names_the_row(tmp_path):
    def transform(batch):
        if batch["label"][0][0][0] == 3:
            raise ValueError("the scanner was off")
        return batch

    data = rows([np.full((4, 4), value) for value in (1, 2, 3)]).with_transform(transform)
    with pytest.raises(ValueError, match=r"^train_dataset, row 2, it cannot be read \(the scanner was off\)\."):
        data_module(tmp_path, data).check()


def test_maps_of_an_evaluation_set_are_of_one_size(tmp_path):
    several = rows([np.ones((4, 4)), np.ones((4, 4)), np.ones((8, 8))])
    data_module(tmp_path, several).check()
    for of in (data_module(tmp_path, rows(varied()), several), data_module(tmp_path, several, several)):
        with pytest.raises(ValueError, match=r"^eval_dataset, rows 0 and 2: their maps have 4 x 4 and 8 x 8 pixels"):
            of.check()


def test_a_map_where_one_number_is_read_is_told():
    assert read_labels(rows(varied(1)), ["label"], "x")[1] == {0: 'column "label": the label is a map, not one number'}


class Cells:
    """A data set of images and label cells as they are, tensors and arrays too."""

    def __init__(self, cells, column="label"):
        self.cells, self.column, self.reads = cells, column, 0

    def __len__(self):
        return len(self.cells)

    def __getitem__(self, index):
        self.reads += 1
        return {"image": Image.new("RGB", (32, 32)), self.column: self.cells[index]}


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_a_map_may_have_an_axis_of_1_before_it(tmp_path, kind):
    maps = varied(3)
    of = data_module(tmp_path, Cells([kind(one[None]) for one in maps]), Cells([kind(one[None]) for one in maps]))
    of.check()
    assert of.labels_are_maps
    np.testing.assert_array_equal(of.training_labels(), np.concatenate([one[np.isfinite(one)] for one in maps]))
    batch = loaders_of(of).collator()([(None, row) for row in of.train_dataset])
    np.testing.assert_array_equal(batch["labels"].numpy(), np.stack(maps))


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("cell", [np.zeros((3, 40, 40)), torch.zeros(3, 40, 40), torch.zeros(1, 1, 40, 40)])
def test_other_shapes_are_refused_in_a_short_sentence(tmp_path, cell, column):
    of = data_module(tmp_path, Cells([cell, cell], column))
    with pytest.raises(ValueError, match="the shape") as refused:
        of.check()
    assert str(tuple(cell.shape)) in str(refused.value)
    assert len(str(refused.value)) < 300


def test_labels_that_are_long_are_not_told_in_full():
    cells = [list(range(1000)), np.arange(1000), torch.arange(1000), "word " * 1000]
    data = [{**row, "other": 1} for row in Cells(cells)]  # beside another column, where a cell holds one number
    wrong = read_labels(data, ["label", "other"], "x")[1]
    assert sorted(wrong) == [0, 1, 2, 3]
    assert all("1000 numbers" in wrong[row] for row in range(3))
    assert "is not a number" in wrong[3]
    assert all(len(why) < 150 and "\n" not in why for why in wrong.values())


def test_what_is_known_of_the_data_costs_no_more_reading(tmp_path):
    """A training step asks for the share of valid pixels."""
    data = Cells(varied(4))
    of = data_module(tmp_path, data, skip_bad_rows=True)
    of.check()
    reads = data.reads
    for _ in range(3):
        of.valid_share(), of.shot_thresholds(), of.bin_width(), of.training_labels(), of.pixel_rows()
    assert data.reads == reads
    numbers = Ready(4)
    of = data_module(tmp_path, numbers, skip_bad_rows=True)
    of.check()
    reads = numbers.reads
    of.training_labels(), of.training_rows(), of.bin_width(), of.check()
    assert numbers.reads == reads


class Ready:
    """Rows that are ready for the model."""

    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        return {"pixel_values": np.zeros((3, 32, 32), np.float32), "labels": float(index)}


def test_a_negative_label_of_a_map_is_told_with_its_value():
    args = small.settings("out", loss_space="log1p")
    with pytest.raises(ValueError, match=r"but a label of a training map is -3; labels must not be negative\."):
        resolve(args, np.array([1.0, -3.0, 2.0]), of_maps=True)


def test_bad_maps_are_inspected_too():
    maps = varied(3)
    maps[1] = np.full((4, 4), np.nan, np.float32)
    found = inspect({"train": rows(maps)}, show_progress=False)
    assert [problem["row"] for problem in found["problems"]["bad_labels"]] == [1]


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_gives_the_numbers_that_it_stores(dtype, order):
    """Pillow reads -5 of 8 bits as 251, and 3,000,000,000 of 32 bits as a negative number."""
    kind = np.dtype(dtype)
    ends = (-5, 7) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    values = np.linspace(*ends, 12).reshape(3, 4).astype(kind)
    form = {"u": 1, "i": 2, "f": 3}[kind.kind]
    if (dtype, order) == ("u4", ">"):  # which Pillow does not read
        with pytest.raises(ValueError, match=r"^it is a TIFF of 32-bit integers, which Pillow does not read"):
            to_map({"bytes": tiff_of(values, form, order), "path": None})
        return
    found = to_map({"bytes": tiff_of(values, form, order), "path": None})
    assert np.array_equal(found, values.astype(np.float32))


def test_a_pgm_gives_the_numbers_that_it_stores():
    """Pillow scales them to its own white."""
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    content = b"P5\n4 3\n4095\n" + values.astype(">u2").tobytes()
    assert np.array_equal(to_map({"bytes": content, "path": None}), values)
