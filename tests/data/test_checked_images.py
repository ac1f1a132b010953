"""Images that were found good are not decoded again, and nothing that changed is taken for good."""

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_files import png_of_16_bits, tiff_of
from PIL import Image

from conr_hf.data import checked_images, inspection, threads
from conr_hf.data.columns import unreadable_rows
from conr_hf.data.config import DataConfig
from conr_hf.data.inspection import inspect
from conr_hf.data.map_statistics import ReadMap, read_maps
from conr_hf.data.threads import cores


@pytest.fixture
def decoded(monkeypatch):
    """The cells that were decoded since it was cleared."""
    cells, decode = [], checked_images.decode_image
    monkeypatch.setattr(checked_images, "decode_image", lambda cell, *a: (cells.append(cell), decode(cell, *a))[1])
    return cells


def png(seed, size=(6, 4)):
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def images_of(cells):
    return datasets.Dataset.from_dict({"image": list(cells)}).cast_column("image", datasets.Image())


def files(folder, contents):
    """Rows of the paths of files with these contents."""
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)
    return images_of(str(folder / f"{number}.png") for number in range(len(contents)))


def check(rows, image_range=None):
    return unreadable_rows(rows, "image", range(len(rows)), "x", show_progress=False, image_range=image_range)


@pytest.mark.parametrize("embedded", [False, True])
def test_a_second_check_decodes_only_what_was_bad_or_is_new(tmp_path, decoded, embedded):
    contents = [png(0), b"no image", png(2), png(3)[:-30]]
    rows = images_of(contents) if embedded else files(tmp_path, contents)
    wrong = check(rows)
    assert list(wrong) == [1, 3]
    assert len(decoded) == 4
    decoded.clear()
    assert check(rows) == wrong
    assert len(decoded) == 2
    more = datasets.concatenate_datasets([rows.select([2, 0]), images_of([png(9)])])  # as a split is made
    decoded.clear()
    assert check(more) == {}
    assert len(decoded) == 1
    decoded.clear()
    assert check(more.with_format("torch")) == {}
    assert decoded == []


def test_a_file_that_changed_is_read_again(tmp_path, decoded, monkeypatch):
    rows = files(tmp_path, [png(0), png(1)])
    assert check(rows) == {}
    path = tmp_path / "1.png"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)  # as large, and no image
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert "it is not an image" in check(rows)[1]
    path.write_bytes(png(1)[:-30])  # at the same time, and smaller
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "truncated" in check(rows)[1]
    path.write_bytes(b"x" * before.st_size)  # as large and at the same time, as tar and rsync leave it
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ctime_ns != before.st_ctime_ns
    assert "it is not an image" in check(rows)[1]
    path.unlink()
    assert "No such file" in check(rows)[1]
    path.write_bytes(png(1))
    decoded.clear()
    assert check(rows) == check(rows) == {}
    assert len(decoded) == 1
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert check(rows) == {}
    assert len(decoded) == 3


def test_bytes_that_changed_are_read_again_although_the_fingerprint_is_the_same(tmp_path):
    images_of([png(0)]).save_to_disk(tmp_path / "good")
    images_of([png(0)[:-30]]).save_to_disk(tmp_path / "bad")
    rows = datasets.load_from_disk(tmp_path / "good")
    assert check(rows) == {}
    arrow = "data-00000-of-00001.arrow"
    os.replace(tmp_path / "bad" / arrow, tmp_path / "good" / arrow)
    changed = datasets.load_from_disk(tmp_path / "good")
    assert changed._fingerprint == rows._fingerprint
    assert list(check(changed)) == [0]


def test_what_decides_beside_the_image_belongs_to_it(monkeypatch):
    floats = tiff_of(np.linspace(-1, 5, 12, dtype=np.float32).reshape(3, 4), 3)
    rows = images_of([floats, png(0)])
    assert check(rows, image_range=(0, 5)) == {}
    assert list(check(rows)) == [0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert list(check(rows, image_range=(0, 5))) == [1]


def test_images_are_read_again_where_pillow_has_other_decoders(monkeypatch):
    rows = images_of([png(0)])
    assert check(rows) == {}
    with monkeypatch.context() as patch:
        patch.delitem(Image.OPEN, "PNG")
        assert list(check(rows)) == [0]
    assert check(rows) == {}
    monkeypatch.setattr(checked_images.features, "get_supported_codecs", lambda: ["jpg"])
    monkeypatch.setattr(checked_images, "decode_image", lambda *_: 1 / 0)
    assert list(check(rows)) == [0]


def test_dark_images_are_told_at_every_start(caplog):
    dark = np.full((3, 4, 3), 4095, np.uint16)
    rows = images_of([png_of_16_bits(dark), png_of_16_bits(dark // 2)])
    for _ in range(2):
        caplog.clear()
        assert check(rows) == {}
        assert "no number above 4,095 of 65,535" in caplog.text
    caplog.clear()
    assert check(datasets.concatenate_datasets([rows, images_of([png_of_16_bits(dark * 8)])])) == {}
    assert caplog.text == ""


def test_a_cache_that_cannot_be_used_costs_nothing_but_time(tmp_path, decoded, monkeypatch):
    rows = files(tmp_path, [png(0), b"no image"])
    home = tmp_path / "home"
    monkeypatch.setattr(checked_images.constants, "HF_HOME", str(home))
    home.write_text("a file, where a folder could be made")
    assert [list(check(rows)) for _ in range(2)] == [[1], [1]]
    assert len(decoded) == 4
    home.unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert list(check(rows)) == [1]
    assert list(checked_images.folder().iterdir()) == []
    assert list(check(rows)) == [1]
    (file,) = checked_images.folder().iterdir()
    good = file.read_bytes()
    for damaged in (good[:-1], b"", bytes(len(good)), b"x" * len(good), good[:-12] + bytes(12)):
        file.write_bytes(damaged)
        decoded.clear()
        assert list(check(rows)) == [1]
        assert len(decoded) == 2


def test_runs_that_check_at_the_same_time_lose_nothing(decoded, monkeypatch):
    rows = images_of(png(seed) for seed in range(4))
    good = checked_images.CheckedImage((4, 6), None)
    stored = rows.cast_column("image", datasets.Image(decode=False))
    halves = [[0, 1], [1, 2, 3]]
    both = [checked_images.CheckedImages(stored, "image", half, None, "x", False) for half in halves]
    for checked, half in zip(both, halves, strict=True):
        checked.keep(dict.fromkeys(half, good))
    assert check(rows) == {}
    assert decoded == []
    assert len(list(checked_images.folder().iterdir())) == 2
    monkeypatch.setattr(checked_images, "MOST_BYTES", 500)
    assert check(images_of([png(9)])) == check(images_of([png(9)])) == {}
    assert len(decoded) == 1
    assert len(list(checked_images.folder().iterdir())) == 3


def test_the_oldest_files_are_removed_but_never_the_newest(decoded, monkeypatch):
    monkeypatch.setattr(checked_images, "MOST_BYTES", 3 * 28)
    rows = images_of(png(seed) for seed in range(8))
    for block in ([0, 1], [2], [3], range(4, 8)):
        assert check(rows.select(block)) == {}
        (newest, *_), before = checked_images._files(), decoded.copy()
        os.utime(newest[0], ns=(0, len(before) * 10**9))
        assert check(rows.select(block)) == {}
        assert decoded == before
        if block == [3]:
            assert [size for _, size in checked_images._files()] == [28, 28]
    assert [size for _, size in checked_images._files()] == [4 * 28]


def test_every_file_is_looked_up_though_another_vanishes(decoded, monkeypatch):
    rows = images_of(png(seed) for seed in [0, 1, 2, 0, 3, 4, 5])
    for block in ([0, 1], [2], [4, 5, 6]):
        assert check(rows.select(block)) == {}
    os.symlink("nowhere", checked_images.folder() / "vanished.records")
    decoded.clear()
    assert check(rows) == check(rows.select([3])) == check(rows.select([6, 1])) == {}
    assert decoded == []


@pytest.mark.parametrize(
    ("module", "read"),
    [
        (inspection, lambda rows: inspect({"train": rows}, show_progress=False)),
        (checked_images, lambda rows: read_maps(rows, range(20), "x", DataConfig(), True, False)),
        (checked_images, check),
    ],
)
def test_what_was_read_is_kept_where_the_user_ends_it(decoded, monkeypatch, module, read):
    monkeypatch.setattr(threads, "cores", lambda: 1)
    rows = images_of(png(seed) for seed in range(20)).add_column("label", [np.ones((4, 6)).tolist()] * 20)
    decode = module.decode_image

    def ends(cell, image_range):
        if cell["bytes"] == png(17):
            raise KeyboardInterrupt
        return decode(cell, image_range)

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode_image", ends)
        with pytest.raises(KeyboardInterrupt):
            read(rows)
    decoded.clear()
    assert check(rows) == {}
    assert len(decoded) < 8


def test_rows_that_are_made_when_they_are_asked_for_are_always_read(decoded):
    """What a transform, or a data set of the user's own, gives may change without a trace."""
    rows = images_of([png(0), png(1)])
    moved = rows.with_transform(lambda batch: {"image": [one.rotate(90) for one in batch["image"]]})
    own = [{"image": {"bytes": png(0), "path": None}}]
    for _ in range(2):
        assert check(moved) == check(own) == {}
    assert len(decoded) == 6


def test_inspected_images_are_known_to_training(tmp_path, decoded):
    rows = files(tmp_path, [png(0), b"no image", png(2)]).add_column("label", [1.0, 2.0, 3.0])
    inspect({"train": rows}, show_progress=False)
    assert list(check(rows)) == [1]
    assert len(decoded) == 1


def test_images_of_maps_are_known_by_their_size(decoded):
    maps = [np.ones((4, 6)), np.ones((4, 6)), np.ones((6, 4))]
    rows = images_of([png(0), b"no image", png(2)]).add_column("label", [one.tolist() for one in maps])
    first, second = (read_maps(rows, range(3), "x", DataConfig(), True, False) for _ in range(2))
    assert len(decoded) == 4
    assert isinstance(first[0], ReadMap)
    assert first[0].size == second[0].size == (4, 6)
    assert first[1] == second[1]
    assert first[2] == second[2]
    assert "its map has 4 x 6 pixels and its image 6 x 4" in first[2]


def test_processes_of_a_node_share_its_cores(monkeypatch):
    alone = cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(alone))
    assert cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert cores() == 1
