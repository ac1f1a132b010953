"""Columns that name images: their files found, none outside the data's folder."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from conr_hf.data.label_maps import truncate

_TEXTS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")
_LONGEST_NAME = 255  # of a file, in bytes
_TRIED = 100  # first names, of which one is that of a file


def with_images(
    rows: datasets.Dataset,
    image_column: str,
    folder: Path,
    image_folder: str | None = None,
    image_suffix: str | None = None,
    table: str = "",
) -> datasets.Dataset:
    """
    Makes a column of paths relative to `folder`, or of the bytes of image files, a column of images.

    Paths may be relative to `image_folder` instead, or to the folder of the name `table` beside the table, if the
    first image is there; `image_suffix` is added to names without it, of which numbers are such. Paths of .npy files,
    which are maps, become what an undecoded image is. A column of anything else is left as it is.

    A path that leads out of the folder raises a `ValueError` that names the row, and so do a URL and a first name that
    is that of a file but for its suffix or folder.
    """
    if image_column not in rows.column_names:
        return rows
    if image_suffix is not None and "." not in image_suffix:
        image_suffix = f".{image_suffix}"
    feature = rows.features[image_column]
    order, decode = rows.column_names, True
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    is_number = kind.startswith(("int", "uint", "float"))
    if kind in _TEXTS or is_number:
        names = [_name(cell, image_suffix) for cell in rows[image_column]]
        first = next((name for name in names if name is not None), None)
        root = _root(folder, image_folder, table, first)
        is_file = any(name is not None and _exists(root, name) for name in names[:_TRIED])
        if first is not None and not is_file:
            _check_name(first, image_column, names.index(first), root, table, image_suffix is None)
        if is_number and image_suffix is None and not is_file:
            return rows  # quantities, or files that there are not
        paths = _inside(names, image_column, root)
        decode = not any(path is not None and path.lower().endswith(".npy") for path in paths)
        rows = _replaced(rows, image_column, paths)
    elif kind in ("dict", "Image"):
        rows = _with_paths_inside(rows, image_column, _root(folder, image_folder, table, None))
    elif kind not in _BYTES:
        return rows
    return rows.select_columns(order).cast_column(image_column, datasets.Image(decode=decode))


def path_inside(root: str, name: str) -> str | None:
    """
    The absolute path of `name`, which is relative to the absolute path `root`; `None` where it leads out of it.

    Links are not followed: those in a folder are its owner's, and a data set's folder in the cache of the Hub is made
    of links to files outside it.
    """
    path = os.path.normpath(os.path.join(root, name))
    return path if path.startswith(root.rstrip(os.sep) + os.sep) else None


def _name(cell: Any, suffix: str | None) -> str | None:
    """The file that a cell names."""
    if cell is None or cell != cell:  # NaN
        return None
    name = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    return name if suffix is None or name.lower().endswith(suffix.lower()) else f"{name}{suffix}"


def _root(folder: Path, image_folder: str | None, table: str, first: str | None) -> Path:
    """The folder that names are relative to."""
    if image_folder is not None:
        for root in (folder / image_folder, Path(image_folder)):
            if root.is_dir():
                return root
        raise ValueError(f'image_folder "{image_folder}" is no folder, neither in "{folder}" nor here')
    if first is not None and not _exists(folder, first):
        for beside in (folder / table, folder / table / table):
            if table and _exists(beside, first):
                return beside
    return folder


def _exists(root: Path, name: str) -> bool:
    return os.path.isfile(os.path.join(root, name))


def _check_name(name: str, column: str, row: int, root: Path, table: str, may_lack_suffix: bool) -> None:
    """Refuses a name that is none of a file, where it is known how to mend it."""
    place = f'row {row:,}, column "{column}": {truncate(name)}'
    if name.startswith(("http://", "https://")):
        raise ValueError(f"{place} is a URL, from which nothing is loaded. Download the images, and name their files")
    last = Path(name).name
    if len(os.fsencode(last)) > _LONGEST_NAME:
        raise ValueError(f"{place} is too long for the name of a file. Write each image into a file, and name it")
    if not last or os.path.isabs(name):
        return
    suffixes = Image.registered_extensions()
    for path in sorted(root.rglob(f"{glob.escape(last)}*")):
        found = path.relative_to(root).as_posix()
        suffix = path.suffix if path.stem == last and may_lack_suffix else ""
        if path.suffix.lower() in suffixes and f"/{found}".endswith(f"/{name}{suffix}"):
            inside = found.removesuffix(f"{name}{suffix}").rstrip("/")
            add = [f"image_suffix {suffix}"] if suffix else []
            if inside not in ("", table, f"{table}/{table}"):  # where they are looked for anyway
                add.insert(0, f"image_folder {inside}")
            raise ValueError(f'{place} is no file, but "{found}" is one. Add {" and ".join(add)}')


def _inside(names: Sequence[str | None], column: str, folder: Path) -> list[str | None]:
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
    """The rows with other cells in a column, which may be their only one."""
    return rows.add_column(f"new {column}", cells).remove_columns(column).rename_column(f"new {column}", column)
