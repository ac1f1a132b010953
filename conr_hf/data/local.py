"""A data set of the user's own: a folder of images, a table, or a data set on the Hub."""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import csv

TABLES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {  # how a split may be called -> what it is called here
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def load_local(path: str, image_column: str = "image", revision: str | None = None) -> datasets.DatasetDict:
    """
    Loads a data set with its splits.

    Args:
        path (`str`): A folder of images with a `metadata.csv` (or `.jsonl`, `.parquet`) that has a column `file_name`,
            in folders `train`, `validation` and `test` or in one, and for labels that are maps a column
            `label_file_name` of grey images or .npy files, which becomes `label`; a folder of Parquet files,
            `train.parquet`, `validation.parquet` and `test.parquet`; a CSV, JSON lines or Parquet file; or an id on
            the Hub. A table may hold paths of images, relative to the table; none may lead out of the table's folder.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the image.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.

    Returns:
        `datasets.DatasetDict`: the splits; a table is one split, `train`, or, where it has a column `split`, as many
        as that names (`val` is read as `validation`).

    Raises:
        `ValueError`: if there is no such data, or it cannot be read.
    """
    location = Path(path)
    if location.is_file() and location.suffix not in TABLES:
        raise ValueError(f'"{path}" is no table this reads; it must end in {", ".join(TABLES)}.')
    check_path(path)
    with load_errors(path):
        if location.is_dir():
            return _folder(location, image_column)
        if location.is_file():
            return split_by_column(with_images(read_table(location), image_column, location.parent))
        return datasets.load_dataset(path, revision=revision)


def check_path(path: str) -> None:
    """Raises a `ValueError` if `path` is nothing that data could be read from."""
    location = Path(path)
    if not location.exists() and (path.startswith((".", "/")) or len(location.parts) != 2):
        raise ValueError(f'data "{path}" is neither a folder, a file nor an id on the Hub (owner/name).')


@contextmanager
def load_errors(path: str) -> Iterator[None]:
    """Turns errors of the libraries that read the data at `path` into a `ValueError` of one sentence."""
    try:
        yield
    except (OSError, ValueError, DatasetGenerationError, DatasetNotFoundError) as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")
        if "corresponds to no data" in reason:
            reason = "a split of it has no rows"
        raise ValueError(f'data "{path}" cannot be read: {reason}.') from error


def read_table(file: Path) -> datasets.Dataset:
    """
    The rows of a CSV, JSON lines or Parquet file, as they are; raises a `ValueError` if it has none, or its text is
    not UTF-8, nor, of a CSV file, by its first bytes UTF-16.
    """
    kind = TABLES[file.suffix]
    if kind == "csv":
        text = _utf8(file, or_utf16=True)
        # In one block, so that a column has the type of all its rows: a text among numbers is found by its row later.
        table = csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(block_size=len(text) + 1, use_threads=False),  # threads do not report the row of an error
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(strings_can_be_null=True),
        )
        if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
            raise ValueError(f'column "{min(twice)}" stands in its header twice')
        rows = datasets.Dataset(table)
    else:
        if kind == "json":
            _utf8(file)
        whole = {"chunksize": file.stat().st_size + 1} if kind == "json" else {}
        rows = datasets.load_dataset(kind, data_files=str(file), split="train", **whole)
    if len(rows) == 0:
        raise ValueError("a split of it has no rows")
    return rows


def with_images(rows: datasets.Dataset, image_column: str, folder: Path) -> datasets.Dataset:
    """
    Makes a column of paths relative to `folder`, or of the bytes of image files, a column of images.

    Paths of .npy files, which are maps, become what an undecoded image is. A column of anything else is left as it
    is. A path that leads out of the folder raises a `ValueError` that names the row.
    """
    if image_column not in rows.column_names:
        return rows
    feature = rows.features[image_column]
    order, decode = rows.column_names, True
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    if kind not in ("string", "large_string", "binary", "large_binary", "dict", "Image"):
        return rows
    if kind in ("string", "large_string"):
        paths = _inside(rows[image_column], image_column, folder)
        decode = not any(path is not None and path.lower().endswith(".npy") for path in paths)
        rows = _replaced(rows, image_column, paths)
    elif kind in ("dict", "Image"):
        rows = _with_paths_inside(rows, image_column, folder)
    return rows.select_columns(order).cast_column(image_column, datasets.Image(decode=decode))


def split_by_column(rows: datasets.Dataset) -> datasets.DatasetDict:
    """The rows by their column `split`; without one all are `train`."""
    if "split" not in rows.column_names:
        return datasets.DatasetDict({"train": rows})
    splits: dict[str, list[int]] = {}
    for index, name in enumerate(rows["split"]):
        name = str(name).lower()
        splits.setdefault(SPLITS.get(name, name), []).append(index)
    order = sorted(splits, key=[*SPLITS.values(), *splits].index)
    return datasets.DatasetDict({name: rows.select(splits[name]) for name in order})


def _folder(location: Path, image_column: str) -> datasets.DatasetDict:
    parts = {SPLITS[part.name.lower()]: part for part in sorted(location.iterdir()) if part.name.lower() in SPLITS}
    described = {split: _metadata(part) for split, part in parts.items() if part.is_dir()}
    if any(described.values()):
        for split, file in described.items():
            if file is None:
                raise ValueError(f'the folder "{parts[split].name}" has none of {", ".join(METADATA)}')
        found = {split: _described(file) for split, file in described.items() if file is not None}
        return datasets.DatasetDict({split: found[split] for split in sorted(found, key=[*SPLITS.values()].index)})
    if metadata := _metadata(location):
        return split_by_column(_described(metadata))
    if any(location.rglob("*.parquet")):
        tables = datasets.load_dataset("parquet", data_dir=str(location))
        images = {split: with_images(rows, image_column, location) for split, rows in tables.items()}
        return split_by_column(images["train"]) if list(images) == ["train"] else datasets.DatasetDict(images)
    # Without drop_labels the names of folders would become labels.
    return datasets.load_dataset("imagefolder", data_dir=str(location), drop_labels=True)


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _described(metadata: Path) -> datasets.Dataset:
    """Images and what a metadata file says of them: `file_name` names the image, `x_file_name` that of column `x`."""
    rows = read_table(metadata)
    if "file_name" not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise ValueError(f'"{metadata.name}" has no column "file_name"; its columns are {columns}')
    for column in rows.column_names:
        if column == "file_name" or column.endswith("_file_name"):
            image = column.removesuffix("file_name").removesuffix("_") or "image"
            rows = with_images(rows.rename_column(column, image), image, metadata.parent)
    return rows


def _utf8(file: Path, or_utf16: bool = False) -> bytes:
    """The text of a file, as UTF-8, for which alone its readers are made."""
    content = file.read_bytes()
    utf16 = or_utf16 and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig").encode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f'line {line:,} of "{file.name}" is not UTF-8 (byte 0x{content[error.start]:02x}). Save it as UTF-8'
        ) from None


def path_inside(root: str, name: str) -> str | None:
    """
    The absolute path of `name`, which is relative to the absolute path `root`; `None` where it leads out of it.

    Links are not followed: those in a folder are its owner's, and a data set's folder in the cache of the Hub is made
    of links to files outside it.
    """
    path = os.path.normpath(os.path.join(root, name))
    return path if path.startswith(root.rstrip(os.sep) + os.sep) else None


def _inside(names: list[str | None], column: str, folder: Path) -> list[str | None]:
    """Absolute paths of the files called `names` in `folder`."""
    root = os.path.abspath(folder)
    paths = [None if name is None else path_inside(root, name) for name in names]
    for row, (name, path) in enumerate(zip(names, paths, strict=True)):
        if name is not None and path is None:
            raise ValueError(
                f'row {row:,}, column "{column}": "{name}" lies outside the folder "{folder}". Put the images in it, '
                "or the table above them"
            )
    return paths


def _with_paths_inside(rows: datasets.Dataset, column: str, folder: Path) -> datasets.Dataset:
    """Images as `datasets` stores them: bytes, or paths where there are none."""
    cells = rows.with_format("arrow")[column].combine_chunks()
    fields = [field.name for field in cells.type]
    if not {"bytes", "path"} <= set(fields):
        return rows
    content = pc.struct_field(cells, "bytes")
    if content.null_count == 0:
        return rows
    names = pc.if_else(pc.is_valid(content), None, pc.struct_field(cells, "path")).to_pylist()
    paths = pa.array(_inside(names, column, folder), pa.string())
    stored = pa.StructArray.from_arrays([content, paths], ["bytes", "path"])
    return _replaced(rows, column, stored)


def _replaced(rows: datasets.Dataset, column: str, cells: Any) -> datasets.Dataset:
    """Rows with other cells in a column, which then comes last; it may be the only one."""
    new = f"{column} "
    return rows.add_column(new, cells).remove_columns(column).rename_column(new, column)
