"""Which images were read and found good, kept in the user's cache, so that no later run decodes them again."""

import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants
from PIL import Image, ImageFile
from torch.utils.data import Dataset

from conr_hf.data.images import Size, decode_image
from conr_hf.data.threads import blocks_in_threads

MOST_BYTES = 2**29  # of all files, 19 million images; beyond, the oldest files are removed

_RULES = 1  # to be raised where decode_image refuses what it took before
_RECORD = np.dtype([("key", "S16"), ("largest", "<i4"), ("height", "<i4"), ("width", "<i4")])


class CheckedImage(NamedTuple):
    """What is known of an image that can be read: its size, upright, and the largest of its numbers."""

    size: Size
    largest: int | None  # of an image of 16 bits


class CheckedImages:
    """
    The images of a data set's `rows` that were found good before, now or in an earlier run: `known`, by row.

    A file is known by its path, size and time of change in nanoseconds; one inside a data set by a SHA-256 of its
    bytes, since the fingerprint of a data set need not change with them. What decides beside the image belongs to it:
    `image_range`, Pillow's version and its limits. Of the rows of a data set that is no `datasets.Dataset`, or has a
    transform, nothing is known without making them, so all are read.

    Each check adds a small file to [`folder`], whole or not at all, so any number of runs and processes may share it.
    Where it cannot be read or written, images are read again.
    """

    def __init__(
        self,
        stored: Dataset[Any],
        column: str,
        rows: Sequence[int],
        image_range: Sequence[float] | None,
        title: str,
        show_progress: bool,
    ) -> None:
        self.known: dict[int, CheckedImage] = {}
        self._keys: dict[int, bytes] = {}
        if not has_stored_images(stored, column):
            return
        plain = stored.select_columns([column]).with_format("arrow")  # type: ignore[attr-defined]
        rules = _rules(image_range)

        def keys_of(block: Sequence[int]) -> list[bytes | None]:
            return [image_key(content, path, rules) for content, path in _cells(plain, column, block)]

        found = blocks_in_threads(keys_of, stored, rows, title, show_progress)
        self._keys = {row: key for row, key in zip(rows, found, strict=True) if key is not None}
        self.known = dict(_known(self._keys))

    def keep(self, found: Mapping[int, CheckedImage]) -> None:
        """Writes down the images that were read and `found` good, by row."""
        records = [
            (self._keys[row], -1 if image.largest is None else image.largest, *image.size)
            for row, image in found.items()
            if row in self._keys and row not in self.known
        ]
        if records:
            with contextlib.suppress(OSError):  # a cache that is full, or not the user's to write
                _write(np.unique(np.array(records, _RECORD)))


def check_image(cell: Any, image_range: Sequence[float] | None) -> CheckedImage:
    """Decodes the image of a cell; raises whatever a decoder does where it cannot be."""
    image, largest = decode_image(cell, image_range)
    return CheckedImage((image.height, image.width), largest)


def folder() -> Path:
    """The folder `conr_hf/checked_images` in the cache of Hugging Face (`HF_HOME`). It may be removed at any time."""
    return Path(constants.HF_HOME, "conr_hf", "checked_images")


def has_stored_images(stored: Dataset[Any], column: str) -> bool:
    """Whether the column of an undecoded data set holds encoded images, or their paths, as `datasets` stores them."""
    if not isinstance(stored, datasets.Dataset) or stored.format["type"] is not None:
        return False
    feature = stored.features.get(column)
    return isinstance(feature, datasets.Image) and not feature.decode


def image_key(content: pa.Buffer | None, path: str | None, rules: bytes) -> bytes | None:
    """16 bytes that change with an image and with the `rules`; `None` of one that is neither here nor in a file."""
    digest = hashlib.sha256(rules)
    if content is not None:
        digest.update(b"bytes")
        digest.update(content)
    elif path is None or "://" in path:  # in an archive, or elsewhere
        return None
    else:
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # not there, or no name of a file
            return None
        digest.update(
            f"{os.path.abspath(path)}\n{status.st_size}\n{status.st_mtime_ns}".encode(errors="surrogatepass")
        )
    return digest.digest()[:16]


def _rules(image_range: Sequence[float] | None) -> bytes:
    """What decides, beside the image, whether it can be read."""
    white = None if image_range is None else tuple(map(float, image_range))
    return repr((_RULES, PIL.__version__, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, white)).encode()


def _cells(plain: datasets.Dataset, column: str, rows: Sequence[int]) -> Iterator[tuple[pa.Buffer | None, str | None]]:
    """The bytes and the path of each row's image."""
    is_slice = isinstance(rows, range) and rows.step == 1  # which takes no copy
    table: Any = plain[rows[0] : rows[-1] + 1] if is_slice else plain[list(rows)]
    cells = table.column(column)
    contents, paths = pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path")
    for content, path in zip(contents, paths.to_pylist(), strict=True):
        yield content.as_buffer() if content.is_valid else None, path


# ---- The files ------------------------------------------------------------------------------------------------------


def _known(keys: Mapping[int, bytes]) -> Iterator[tuple[int, CheckedImage]]:
    """The rows whose keys stand in one of the files, with what is written beside."""
    records = np.concatenate([np.empty(0, _RECORD), *(_read(file) for file, _ in _files())])
    if len(records) == 0 or not keys:
        return
    records = records[np.argsort(records["key"])]
    wanted = np.array(list(keys.values()), "S16")
    places = np.searchsorted(records["key"], wanted).clip(max=len(records) - 1)
    hits = records["key"][places] == wanted
    for row, place, hit in zip(keys, places.tolist(), hits.tolist(), strict=True):
        if hit:
            _, largest, height, width = records[place].item()
            yield row, CheckedImage((height, width), None if largest < 0 else largest)


def _files() -> list[tuple[Path, int]]:
    """The files and how many bytes they have, the newest first; none where the folder cannot be read."""
    try:
        found = [(entry.stat(), entry.path) for entry in os.scandir(folder()) if entry.name.endswith(".npy")]
    except OSError:
        return []
    found.sort(key=lambda file: -file[0].st_mtime_ns)
    return [(Path(path), status.st_size) for status, path in found]


def _read(file: Path) -> npt.NDArray[Any]:
    """The records of a file; none of one that is damaged, or has just been removed."""
    try:
        records = np.lib.format.read_array(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (OSError, ValueError):
        return np.empty(0, _RECORD)
    return records if records.dtype == _RECORD and records.ndim == 1 else np.empty(0, _RECORD)


def _write(records: npt.NDArray[Any]) -> None:
    """Adds a file, called by what is in it, and removes the oldest where all are too large."""
    content = io.BytesIO()
    np.save(content, records, allow_pickle=False)
    name = hashlib.sha256(records.tobytes()).hexdigest()[:32]
    folder().mkdir(parents=True, exist_ok=True)
    unfinished = folder() / f"{name}.{uuid.uuid4().hex}.part"
    try:
        unfinished.write_bytes(content.getvalue())
        os.replace(unfinished, folder() / f"{name}.npy")
    finally:
        unfinished.unlink(missing_ok=True)
    files = _files()
    for (file, _), total in zip(files, np.cumsum([size for _, size in files]), strict=True):
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
