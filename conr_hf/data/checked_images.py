"""Which images were read and found good, kept in the user's cache, so that no later run decodes them again."""

import contextlib
import hashlib
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
from PIL import Image, ImageFile, features
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

    A file is known by its path, its size, and when its contents and its entry in the file system were changed, in
    nanoseconds; one inside a data set by a SHA-256 of its bytes, since the fingerprint of a data set need not change
    with them. What decides beside the image belongs to it: `image_range`, and Pillow's version, limits and decoders.
    Of the rows of a data set that is no `datasets.Dataset`, or has a transform, nothing is known without making them,
    so all are read.

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
        self._rows = rows
        self._keys = np.zeros(len(rows), "S16")  # empty where an image has none
        if not has_stored_images(stored, column):
            return
        plain = stored.select_columns([column]).with_format("arrow")  # type: ignore[attr-defined]
        rules = _rules(image_range)

        def keys_of(block: Sequence[int]) -> list[bytes]:
            return [image_key(content, path, rules) or b"" for content, path in _cells(plain, column, block)]

        keys = blocks_in_threads(keys_of, stored, rows, title, show_progress)
        self._keys = np.fromiter(keys, "S16", count=len(rows))
        wanted, which = np.unique(self._keys, return_inverse=True)
        records = _find(wanted)[which]
        for place in np.flatnonzero(records["width"]):
            _, largest, height, width = records[place].item()
            self.known[rows[int(place)]] = CheckedImage((height, width), None if largest < 0 else largest)

    def keep(self, found: Mapping[int, CheckedImage]) -> None:
        """Writes down the images that were read and `found` good, by row."""
        new = (
            (key, -1 if found[row].largest is None else found[row].largest, *found[row].size)
            for row, key in zip(self._rows, self._keys, strict=True)
            if key and row in found and row not in self.known
        )
        records = np.fromiter(new, _RECORD)
        if len(records):
            with contextlib.suppress(OSError):  # a cache that is full, or not the user's to write
                _write(records[np.unique(records["key"], return_index=True)[1]])


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
    """16 bytes that change with an image and with the `rules`; `None` of one neither here nor in a file to be read."""
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
        if not os.access(path, os.R_OK):
            return None
        # Tools that copy or unpack files set st_mtime, but none sets st_ctime.
        about = (os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update("\n".join(map(str, about)).encode(errors="surrogatepass"))
    return digest.digest()[:16]


def _rules(image_range: Sequence[float] | None) -> bytes:
    """What decides, beside the image, whether it can be read."""
    Image.init()  # which fills Image.OPEN
    white = None if image_range is None else tuple(map(float, image_range))
    limits = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decoders = (sorted(Image.OPEN), features.get_supported_modules(), features.get_supported_codecs())
    return repr((_RULES, PIL.__version__, limits, decoders, white)).encode()


def _cells(plain: datasets.Dataset, column: str, rows: Sequence[int]) -> Iterator[tuple[pa.Buffer | None, str | None]]:
    """The bytes and the path of each row's image."""
    is_slice = isinstance(rows, range) and rows.step == 1  # which takes no copy
    table: Any = plain[rows[0] : rows[-1] + 1] if is_slice else plain[list(rows)]
    cells = table.column(column)
    contents, paths = pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path")
    for content, path in zip(contents, paths.to_pylist(), strict=True):
        yield content.as_buffer() if content.is_valid else None, path


# ---- The files, each of records sorted by their keys, and nothing else ----------------------------------------------


def _find(wanted: npt.NDArray[np.bytes_]) -> npt.NDArray[Any]:
    """The record of each of these keys, which are sorted and differ; of width 0 where none of the files has it."""
    found = np.zeros(len(wanted), _RECORD)
    for file, _ in _files():
        try:
            records = np.asarray(np.memmap(file, _RECORD, "r"))
        except (OSError, ValueError):  # just removed, or cut off
            continue
        if len(records) < len(wanted):
            theirs, ours = _common(records["key"], wanted)
        else:
            ours, theirs = _common(wanted, records["key"])
        found[ours] = records[theirs]
    return found


def _common(
    few: npt.NDArray[np.bytes_], many: npt.NDArray[np.bytes_]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where the keys that both have stand in `few`, and where in `many`, which is sorted and not empty."""
    places = np.searchsorted(many, few).clip(max=len(many) - 1)
    hits = np.flatnonzero(many[places] == few)
    return hits, places[hits]


def _files() -> list[tuple[str, int]]:
    """The paths of the files and how many bytes they have, the newest first; none where the folder cannot be read."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder()) as entries:
        for entry in entries:
            if entry.name.endswith(".records"):
                with contextlib.suppress(FileNotFoundError):  # just removed
                    found.append((entry.stat(), entry.path))
    found.sort(key=lambda file: -file[0].st_mtime_ns)
    return [(path, status.st_size) for status, path in found]


def _write(records: npt.NDArray[Any]) -> None:
    """Adds a file, called by what is in it, and removes the oldest, but never the newest, where all are too large."""
    content = records.tobytes()
    name = hashlib.sha256(content).hexdigest()[:32]
    folder().mkdir(parents=True, exist_ok=True)
    unfinished = folder() / f"{name}.{uuid.uuid4().hex}.part"
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, folder() / f"{name}.records")
    finally:
        unfinished.unlink(missing_ok=True)
    total = 0
    for age, (file, size) in enumerate(_files()):
        total += size
        if age > 0 and total > MOST_BYTES:
            Path(file).unlink(missing_ok=True)
