"""Data as users have them: images of every kind, tables in other encodings, and what must not be read at all."""

import io
import os
import warnings
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import pgm_of, png_of_16_bits, tiff_of
from PIL import Image

from conr_hf.data.columns import read_labels, unreadable_rows
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.images import to_image
from conr_hf.data.local import load_local


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def stored(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(content):
    """What the model's processor gets of an image file, by a path of its own and by a data set."""
    image = to_image({"bytes": content, "path": None})
    rows = datasets.Dataset.from_dict({"image": [content]}).cast_column("image", datasets.Image())
    assert np.array_equal(np.asarray(to_image(rows[0]["image"])), np.asarray(image))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# ---- Images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_become_eight(form):
    """By clipping, as PIL does it, nearly all of them would be white."""
    values = noise(5, 7, dtype=np.uint16)
    values[0, :4] = 0, 65535, 128, 129  # 129 / 257 is nearer to 1 than to 0
    expected = np.rint(values / 257)[..., None].repeat(3, 2)
    assert expected[0, 2, 0] == 0
    assert expected[0, 3, 0] == 1
    assert np.array_equal(pixels(stored(Image.fromarray(values), form)), expected)
    assert np.array_equal(np.asarray(to_image(values)), expected)


def test_sixteen_bits_in_the_other_byte_order():
    values = noise(5, 7, dtype=np.uint16)
    image = Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(to_image(image))[..., 0], np.rint(values / 257))


def test_sixteen_bits_are_upright_too():
    values, exif = noise(5, 7, dtype=np.uint16), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    found = pixels(stored(Image.fromarray(values), "PNG", exif=exif))
    assert np.array_equal(found[..., 0], np.rot90(np.rint(values / 257), -1))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_have_no_white(dtype):
    content = stored(Image.fromarray(noise(4, 4).astype(dtype)), "TIFF")
    with pytest.raises(ValueError, match="nothing says which number is white"):
        to_image({"bytes": content, "path": None})


# ---- A range for images of more than 8 bits -------------------------------------------------------------------------


def scaled(values, low, high):
    """Slowly: number by number."""
    return np.array([round(255 * min(max((float(v) - low) / (high - low), 0), 1)) for v in values.flat]).reshape(
        values.shape
    )


TWELVE = noise(5, 7, 3, dtype=np.uint16) % 4096
WIDE = {
    "grey PNG": (stored(Image.fromarray(TWELVE[..., 0]), "PNG"), TWELVE[..., 0]),
    "grey TIFF": (stored(Image.fromarray(TWELVE[..., 0]), "TIFF"), TWELVE[..., 0]),
    "PGM, white by the type": (pgm_of(TWELVE[..., 0], 65535), TWELVE[..., 0]),
    "PGM, white in the file": (pgm_of(TWELVE[..., 0], 4095), TWELVE[..., 0]),
    "colour PNG": (png_of_16_bits(TWELVE), TWELVE),
    "transparent PNG": (png_of_16_bits(np.dstack([TWELVE, TWELVE[..., 0]])), TWELVE),
    "colour TIFF, little-endian": (tiff_of(TWELVE, 1), TWELVE),
    "colour TIFF, big-endian": (tiff_of(TWELVE, 1, ">"), TWELVE),
    "signed TIFF": (tiff_of(TWELVE[..., 0].astype(np.int16) - 2000, 2), TWELVE[..., 0].astype(int) - 2000),
    "signed TIFF of 8 bits": (tiff_of(noise(5, 7).astype(np.int8), 2), noise(5, 7).astype(np.int8)),
    "TIFF of 32 bits": (tiff_of(TWELVE[..., 0].astype(np.uint32) << 20, 1), TWELVE[..., 0].astype(float) * 2**20),
    "float TIFF": (tiff_of(TWELVE[..., 0].astype(np.float32) / 7, 3), TWELVE[..., 0].astype(np.float32) / 7),
}


@pytest.mark.parametrize("name", WIDE)
def test_a_range_names_black_and_white(name):
    content, numbers = WIDE[name]
    low, high = float(np.quantile(numbers, 0.1)), float(np.quantile(numbers, 0.8))  # what lies outside is clipped
    expected = scaled(numbers, low, high)
    expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    opened = Image.open(io.BytesIO(content))
    for cell in ({"bytes": content, "path": None}, opened):
        assert np.array_equal(np.asarray(to_image(cell, image_range=(low, high))), expected)


@pytest.mark.parametrize("name", ["signed TIFF", "signed TIFF of 8 bits", "TIFF of 32 bits", "float TIFF"])
def test_without_a_range_it_is_not_known_what_is_white(name):
    kind = {"signed TIFF": "int16", "signed TIFF of 8 bits": "int8", "TIFF of 32 bits": "uint32"}.get(name, "float32")
    with pytest.raises(ValueError, match=f"^it holds {kind} numbers, and nothing says which number is white: name bl"):
        to_image({"bytes": WIDE[name][0]})


def test_a_range_leaves_eight_bits_as_they_are():
    """Data sets mix both kinds; and an image that was read is not scaled a second time."""
    image = Image.fromarray(noise(4, 4, 3))
    assert np.array_equal(np.asarray(to_image(image, image_range=(0, 4095))), np.asarray(image))


def test_the_white_that_a_pgm_names_is_its_white():
    assert np.array_equal(
        np.asarray(to_image({"bytes": pgm_of(TWELVE[..., 0], 4095)}, "L")), scaled(TWELVE[..., 0], 0, 4095)
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png_of_16_bits(TWELVE[..., :2]), "a PNG of 16 bits, of which Pillow keeps 8 in mode RGBA: save it as"),
        (
            b"P6\n7 5\n65535\n" + TWELVE.astype(">u2").tobytes(),
            "a PPM of 16 bits, of which Pillow keeps 8 in mode RGB",
        ),
    ],
)
def test_what_pillow_cuts_to_eight_bits_is_not_scaled_from_sixteen(content, says):
    assert to_image({"bytes": content}).size == (7, 5)
    with pytest.raises(ValueError, match=says):
        to_image({"bytes": content}, image_range=(0, 4095))


@pytest.mark.parametrize(
    ("dtype", "kind"), [("f8", "64-bit floats"), ("f2", "16-bit floats"), ("i8", "64-bit integers")]
)
def test_the_reason_why_a_tiff_is_not_read(dtype, kind):
    """It is an image, but not one of Pillow's."""
    content = tiff_of(np.ones((4, 5), dtype), 3 if dtype[0] == "f" else 2)
    with pytest.raises(ValueError, match=f"^it is a TIFF of {kind}, which Pillow does not read: save it with 8 or 16"):
        to_image({"bytes": content})
    with pytest.raises(OSError, match="cannot identify image file"):
        to_image({"bytes": b"II*\0 and no more"})


# ---- Arrays and tensors ---------------------------------------------------------------------------------------------

COLOURS = noise(6, 7, 3)
IN_MEMORY = {
    "array": COLOURS,
    "floats": COLOURS / 255,
    "channels first": np.moveaxis(COLOURS, 2, 0),
    "16 bits": COLOURS.astype(np.uint16) * 257,
    "tensor": torch.from_numpy(COLOURS).permute(2, 0, 1),
    "tensor of floats": torch.from_numpy(COLOURS).permute(2, 0, 1) / 255,
    "tensor, channels last": torch.from_numpy(COLOURS),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_arrays_and_tensors(name):
    assert np.array_equal(np.asarray(to_image(IN_MEMORY[name])), COLOURS)


def test_a_lone_channel_is_grey():
    for grey in (COLOURS[..., 0], COLOURS[..., :1], torch.from_numpy(COLOURS[None, ..., 0])):
        assert np.array_equal(np.asarray(to_image(grey, "L")), COLOURS[..., 0])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            torch.linspace(-2, 2, 48).view(3, 4, 4),
            "its floats run from -2 to 2, where 0 is black and 1 is white: scale",
        ),
        (COLOURS.astype(np.int64), "it holds int64 numbers, and nothing says which number is white"),
        (np.full((4, 4), np.nan), "it holds NaN or infinite numbers"),
        (np.zeros((2, 3, 4, 5)), r"it has the shape \(2, 3, 4, 5\), where an image has \(height, width\)"),
        (np.zeros((6, 7, 5)), r"it has the shape \(6, 7, 5\)"),
    ],
)
def test_arrays_that_are_no_images(value, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        to_image(value)


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_rows_in_a_format_are_read_as_plain_ones(form):
    cells = [{"bytes": png_of_16_bits(TWELVE), "path": None}] * 2
    plain = datasets.Dataset.from_dict({"image": cells, "label": [1.0, 2.0]}).cast_column("image", datasets.Image())
    rows = plain.with_format(form)
    assert unreadable_rows(rows, "image", [0, 1], "x", show_progress=False, image_range=(0, 4095)) == {}
    row = SampledDataset(rows, "x", [1], image_column="image", image_range=(0, 4095))[0][1]
    assert np.array_equal(np.asarray(row["image"]), scaled(TWELVE, 0, 4095))
    assert row["label"] == 2.0


@pytest.mark.parametrize("colour", [False, True])
def test_images_that_use_little_of_their_bits_are_told(colour, caplog):
    """Models would see them almost black; one image that is brighter shows that the others are dark."""
    values = TWELVE if colour else TWELVE[..., 0]
    write = png_of_16_bits if colour else lambda values: stored(Image.fromarray(values), "PNG")
    contents = [write(values // 2), write(values), stored(Image.fromarray(noise(4, 4)), "PNG"), b"no image"]
    rows = datasets.Dataset.from_dict({"image": contents}).cast_column("image", datasets.Image())
    assert list(unreadable_rows(rows, "image", range(4), "train", show_progress=False)) == [3]
    most = values.max()
    assert f'train, column "image": the images have 16 bits, but no number above {most:,} of 65,535' in caplog.text
    assert "If they hold 12 bits, set image_range to 0 4095, or" in caplog.text
    caplog.clear()
    unreadable_rows(rows, "image", range(3), "train", show_progress=False, image_range=(0, 4095))
    bright = datasets.Dataset.from_dict({"image": [*contents[:2], write(values * 16)]}).cast_column(
        "image", datasets.Image()
    )
    unreadable_rows(bright, "image", range(3), "train", show_progress=False)
    assert not caplog.text


# ---- Kinds of image files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "allowed"), [("TIFF", 1), ("JPEG", 6)])
def test_cmyk(form, allowed):
    """Of inks, as a printer would mix them; a JPEG of them is stored inverted."""
    inks = np.repeat(np.repeat(noise(3, 4, 4), 8, 0), 8, 1)
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    found = pixels(stored(Image.fromarray(inks, "CMYK"), form, **options))
    light = 255.0 - inks
    expected = light[..., :3] * light[..., 3:] / 255
    assert np.abs(found - expected).max() <= allowed


@pytest.mark.parametrize("form", ["PNG", "GIF"])
@pytest.mark.parametrize("transparent", [None, 3])
def test_palettes(form, transparent):
    """The colours of the palette, not its indices; what is transparent keeps its colour, as in a pipeline."""
    palette, indices = noise(16, 3), noise(6, 5) % 16
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    options = {} if transparent is None else {"transparency": transparent}
    assert np.array_equal(pixels(stored(image, form, **options)), palette[indices])


@pytest.mark.filterwarnings("error")  # which PIL would give, of an image that is right
def test_a_palette_with_shades_of_transparency():
    palette, indices = noise(16, 3), noise(6, 5) % 16
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    content = stored(image, "PNG", transparency=bytes(range(0, 256, 16)))
    assert np.array_equal(pixels(content), palette[indices])


def test_transparency_is_dropped():
    grey, colours = noise(6, 5, 2), noise(6, 5, 4)
    assert np.array_equal(pixels(stored(Image.fromarray(grey, "LA"), "PNG")), grey[..., :1].repeat(3, 2))
    assert np.array_equal(pixels(stored(Image.fromarray(colours, "RGBA"), "PNG")), colours[..., :3])


def test_two_colours():
    bits = noise(6, 9) > 127
    assert np.array_equal(pixels(stored(Image.fromarray(bits), "PNG")), 255 * bits[..., None].repeat(3, 2))


def decompression_bomb(side):
    """A PNG of a few bytes that says it is large."""
    content = bytearray(stored(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = 2 * side.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_cannot_be_read_are_told_apart(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    files = [stored(Image.fromarray(noise(4, 4)), "PNG"), b"", decompression_bomb(12_000), decompression_bomb(40_000)]
    cells = [{"bytes": content, "path": None} for content in files]
    cells += [{"bytes": None, "path": str(tmp_path / name)} for name in ("empty.png", "gone.png")]
    rows = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong = unreadable_rows(rows, "image", range(len(rows)), "x", show_progress=False)
    assert list(wrong) == [1, 2, 3, 4, 5]
    assert "the file is empty" in wrong[1]
    assert "12,000 x 12,000 pixels may be a decompression bomb" in wrong[2]
    assert "decompression bomb" in wrong[3]
    assert "the file is empty" in wrong[4]
    assert "No such file" in wrong[5]
    for cell in cells[1:]:
        with pytest.raises((OSError, ValueError)):
            to_image(cell)


def test_large_images_are_not_decoded_to_be_refused(monkeypatch):
    """One of 12,000 x 12,000 pixels takes 400 MB, on each thread."""
    loaded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: loaded.append(self.size))
    rows = datasets.Dataset.from_dict({"image": [{"bytes": decompression_bomb(12_000), "path": None}]})
    rows = rows.cast_column("image", datasets.Image())
    assert list(unreadable_rows(rows, "image", [0], "x", show_progress=False)) == [0]
    assert (12_000, 12_000) not in loaded


def test_one_missing_file_among_ten_thousand(tmp_path):
    Image.fromarray(noise(2, 2)).save(tmp_path / "there.bmp")
    names = ["there.bmp"] * 10_000
    names[7_312] = "gone.bmp"
    (tmp_path / "rows.csv").write_text("image,age\n" + "".join(f"{name},1\n" for name in names))
    rows = load_local(str(tmp_path / "rows.csv"))["train"]
    wrong = unreadable_rows(rows, "image", range(len(rows)), "train_dataset", show_progress=False)
    assert list(wrong) == [7_312]
    assert "gone.bmp" in wrong[7_312]


# ---- Tables ---------------------------------------------------------------------------------------------------------


def table(folder, text, encoding, name="rows.csv"):
    for image in ("Jürgen.png", "Ève.png"):
        Image.fromarray(noise(4, 4)).save(folder / image)
    (folder / name).write_bytes(text.encode(encoding))
    return str(folder / name)


TEXT = "image,Größe,note\nJürgen.png,1.5,\nÈve.png,2,überall\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be with a mark"])
@pytest.mark.parametrize("form", ["a table", "a folder"])
def test_encodings_that_a_file_tells(tmp_path, encoding, form):
    text, encoding = (f"\ufeff{TEXT}", "utf-16-be") if "mark" in encoding else (TEXT, encoding)
    if form == "a folder":
        table(tmp_path, text.replace("image", "file_name"), encoding, "metadata.csv")
    path = str(tmp_path) if form == "a folder" else table(tmp_path, text, encoding)
    rows = load_local(path)["train"]
    assert rows.column_names == ["image", "Größe", "note"]
    assert list(rows["Größe"]) == [1.5, 2]
    assert list(rows["note"]) == [None, "überall"]
    assert unreadable_rows(rows, "image", [0, 1], "x", show_progress=False) == {}


@pytest.mark.parametrize(
    ("name", "form"), [("rows.csv", "table"), ("rows.jsonl", "table"), ("metadata.csv", "folder")]
)
def test_an_encoding_that_nothing_tells_is_refused(tmp_path, name, form):
    """Guessed, names would be wrong and files missing."""
    text = '{"image": "a.png"}\n{"image": "Jürgen.png"}\n' if "json" in name else TEXT
    path = table(tmp_path, text, "latin-1", name)
    line = 2 if "json" in name else 1
    with pytest.raises(
        ValueError, match=rf'line {line} of "{name}" is not UTF-8 \(byte 0xf[c6]\)\. Save it as UTF-8\.$'
    ):
        load_local(str(tmp_path) if form == "folder" else path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "folder"])
def test_a_unit_in_the_text_far_down_is_found_by_its_row(tmp_path, form):
    """Readers that go by the first rows call the column whole numbers, and end where a label is none."""
    labels = ["31"] * 30_000 + ["31.5", "12 years", "40"]
    if form == "jsonl":
        text = "".join(f'{{"image": "x.png", "age": {x if x[-1].isdigit() else repr(x)}}}\n' for x in labels)
        text = text.replace("'", '"')
    else:
        text = f"{'file_name' if form == 'folder' else 'image'},age\n" + "".join(
            f"x.png,{label}\n" for label in labels
        )
    (tmp_path / ("metadata.csv" if form == "folder" else f"rows.{form}")).write_text(text)
    rows = load_local(str(tmp_path if form == "folder" else tmp_path / f"rows.{form}"))["train"]
    found, wrong = read_labels(rows, ["age"], "x")
    assert wrong == {30_001: 'column "age": "12 years" is not a number'}
    assert found[[0, 30_000, 30_002]].tolist() == [31, 31.5, 40]


OUTSIDE = ["../secret.png", "photos/../../secret.png", "/etc/passwd", "SIBLING/secret.png", ".."]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "parquet of datasets", "folder", "folder of parquet"])
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path, name, form):
    """A table from elsewhere could have any file of the disk read, and show it in a report."""
    home, sibling = tmp_path / "data", tmp_path / "data-of-others"
    for folder in (home / "photos", sibling):
        folder.mkdir(parents=True)
    for file in (tmp_path / "secret.png", sibling / "secret.png", home / "good.png"):
        Image.fromarray(noise(4, 4)).save(file)
    name = name.replace("SIBLING", str(sibling))
    images, path = ["good.png", name], str(home)
    if form in ("csv", "folder"):
        column, file = ("image", "rows.csv") if form == "csv" else ("file_name", "metadata.csv")
        (home / file).write_text(f"{column},age\n" + "".join(f"{image},1\n" for image in images))
        path = str(home / file) if form == "csv" else path
    elif form == "jsonl":
        (home / "rows.jsonl").write_text("".join(f'{{"image": "{image}"}}\n' for image in images))
        path = str(home / "rows.jsonl")
    else:
        cells = [{"bytes": None, "path": image} for image in images] if form == "parquet of datasets" else images
        file = home / ("train.parquet" if form == "folder of parquet" else "rows.parquet")
        pq.write_table(pa.table({"image": cells}), file)
        path = path if form == "folder of parquet" else str(file)
    with pytest.raises(ValueError) as refused:
        load_local(path)
    assert f'row 1, column "image": "{name}" lies outside the folder' in str(refused.value)
    assert "\n" not in str(refused.value)


def test_paths_that_stay_in_the_folder_are_not_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("photos/..a.png", "b.png"):
        Image.fromarray(noise(4, 4)).save(tmp_path / name)
    names = ["photos/..a.png", "photos/../b.png", "./b.png", str(tmp_path / "b.png")]
    os.symlink(tmp_path / "b.png", tmp_path / "photos" / "link.png")
    (tmp_path / "rows.csv").write_text("image,age\n" + "".join(f"{name},1\n" for name in [*names, "photos/link.png"]))
    rows = load_local(str(tmp_path / "rows.csv"))["train"]
    assert unreadable_rows(rows, "image", range(5), "x", show_progress=False) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,age\na.png,1\nb.png,2,3\n", "Row #3: Expected 2 columns, got 3: b.png,2,3"),
        ("image,age,age\na.png,1,2\n", 'column "age" stands in its header twice'),
    ],
)
def test_tables_that_are_none(tmp_path, text, says):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"rows\.csv\" cannot be read: .*{says}\.$"):
        load_local(str(tmp_path / "rows.csv"))


# ---- A folder of Parquet files --------------------------------------------------------------------------------------


def parquet(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [stored(Image.new("L", (3, 3), value), "PNG") for value in values]
    pq.write_table(pa.table({"image": images, "age": values}), file)


@pytest.mark.parametrize("pattern", ["{}.parquet", "data/{}-00000-of-00001.parquet", "{}/0.parquet"])
def test_a_folder_of_parquet_files_has_their_splits(tmp_path, pattern):
    parts = {"train": [1, 2, 3], "validation": [4], "test": [5, 6]}
    for split, values in parts.items():
        parquet(tmp_path / pattern.format(split), values)
    (tmp_path / "README.md").write_text("A data card.\n")
    data = load_local(str(tmp_path))
    assert set(data) == set(parts)
    for split, values in parts.items():
        assert list(data[split]["age"]) == values
        assert [to_image(row["image"]).getpixel((0, 0))[0] for row in data[split]] == values


def test_one_parquet_file_in_a_folder_may_name_the_splits(tmp_path):
    parquet(tmp_path / "faces.parquet", [1, 2, 3])
    rows = pq.read_table(tmp_path / "faces.parquet").append_column("split", pa.array(["train", "val", "test"]))
    pq.write_table(rows, tmp_path / "faces.parquet")
    data = load_local(str(tmp_path))
    assert {split: list(part["age"]) for split, part in data.items()} == {"train": [1], "validation": [2], "test": [3]}


def test_a_split_without_metadata_is_not_left_out(tmp_path):
    """The test split of a run would be missing, unnoticed."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(noise(4, 4)).save(tmp_path / split / "a.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,age\na.png,1\n")
    with pytest.raises(ValueError, match=r'the folder "test" has none of metadata\.csv, '):
        load_local(str(tmp_path))
    (tmp_path / "test" / "metadata.csv").write_text("name,age\na.png,1\n")
    says = r'"metadata\.csv" has no column "file_name"; its columns are name, age\. Name .* image_column\.$'
    with pytest.raises(ValueError, match=says):
        load_local(str(tmp_path))
