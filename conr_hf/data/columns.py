"""The rows of a data set: their labels, checked, and which of them can be read."""

import difflib
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from tqdm.auto import tqdm
from transformers.utils import logging

from conr_hf.data.checked_images import CheckedImage, CheckedImages, check_image, has_stored_images
from conr_hf.data.images import describe_error, to_image
from conr_hf.data.label_maps import is_map, truncate
from conr_hf.data.threads import blocks_in_threads
from conr_hf.utils.distributed import rank

logger = logging.get_logger(__name__)

Row = Mapping[str, Any]


def column_names(dataset: Dataset[Any], name: str = "The data set") -> list[str]:
    """
    Names of the columns of a data set's rows, of a plain `datasets.Dataset` without reading a row. Rows that are no
    mappings are refused.
    """
    if isinstance(dataset, IterableDataset):
        if isinstance(dataset, datasets.IterableDataset) and dataset.column_names is not None:
            return list(dataset.column_names)
        row = next(iter(dataset), None)
        if row is None:
            raise ValueError("The stream has no rows. Give it at least one.")
    elif isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        return list(dataset.column_names)
    else:
        row = dataset[0]
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{name} gives rows of type {type(row).__name__}; each must be a mapping of columns, such as "
            '{"image": image, "label": 25.0}. Wrap it in a data set that returns such rows.'
        )
    return list(row)


def read_labels(dataset: Dataset[Any], columns: Sequence[str], name: str) -> tuple[np.ndarray, dict[int, str]]:
    """
    The labels of every row, `(N,)`, or `(N, T)` for T > 1 dimensions, float64, in label units, NaN where there is no
    number; and what is wrong with those that are not finite numbers, by row. A missing column is refused.

    One column may hold T numbers a row. A column of classes (`datasets.ClassLabel`) holds the numbers that are its
    classes' names; other classes are refused. Of a `datasets.Dataset` only the label columns are read; of any other
    data set, or one with a transform, every row, because only then are its labels known; a stream is read once from
    its first row to its last. Rows ready for the model may have their labels as `labels`. Messages call the data set
    `name`, for example `"train_dataset"`.
    """
    numbers, widths = array("d"), array("q")  # one row after another, and how many each has
    wrong: dict[int, str] = {}
    texts: list[tuple[int, str, str]] = []
    numbered: set[str] = set()  # columns that hold numbers, not as texts
    classes = class_numbers(dataset, columns, name)
    for index, row in enumerate(_label_rows(dataset, columns)):
        cells = label_values(with_numbers(row, classes), columns, name)
        widths.append(0 if all(cell is None for cell in cells) else len(cells))
        for column, cell in zip(label_names(columns, len(cells)), cells, strict=True):
            problem = label_error(cell)
            if problem is not None:
                wrong[index] = f'column "{column}": {problem}'
            if widths[-1]:
                numbers.append(float(cell) if problem is None else math.nan)
            if isinstance(cell, str):
                texts.append((index, column, cell))
            elif cell is not None:
                numbered.add(column)
    codes = _codes(texts, numbered)
    wrong = {**codes, **wrong}
    counts = np.array(widths)
    found, rows_of = np.unique(counts[counts > 0], return_counts=True)
    width = int(found[rows_of.argmax()]) if len(found) else len(columns)  # T: what most rows have
    for index in np.flatnonzero((counts > 0) & (counts != width)).tolist():
        wrong.setdefault(index, f'column "{columns[0]}": it holds {counts[index]} numbers, where others hold {width}')
    labels = np.full((len(counts), width), np.nan)
    labels[counts == width] = np.array(numbers)[np.repeat(counts == width, counts)].reshape(-1, width)
    labels[list(codes)] = np.nan
    _check_transform(dataset, columns, labels, name)
    return labels[:, 0] if width == 1 else labels, wrong


def label_values(row: Row, columns: Sequence[str], name: str) -> list[Any]:
    """
    The T label cells of a row, or its map, from its label columns or, in one ready for the model, from `labels`. A
    cell that is a vector gives its numbers, where it is the only one or they are one.
    """
    if all(column in row for column in columns):
        cells = [row[column] for column in columns]
        if all(type(cell) in (int, float) for cell in cells):  # nearly always
            return cells
        vectors = [_vector(cell) for cell in cells]
        if len(columns) == 1 and vectors[0]:
            return vectors[0]
        return [one[0] if one and len(one) == 1 else cell for one, cell in zip(vectors, cells, strict=True)]
    if "labels" in row:
        array = np.asarray(row["labels"])
        cells = array.reshape(-1).tolist()
        if len(cells) == len(columns):
            return list(cells)
        if len(columns) == 1 and is_map(row["labels"]):
            return [row["labels"]]
        found = f"has the shape {array.shape}" if array.ndim > 1 else f"holds {len(cells)} numbers"
        raise ValueError(f'{name}: "labels" {found}, but label_columns names {len(columns)}.')
    missing = next(column for column in columns if column not in row)
    near = difflib.get_close_matches(missing, list(row), n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    raise ValueError(
        f'{name} has no column "{missing}"; its columns are {", ".join(row)}. '
        f"Name the column of the label with label_columns.{hint}"
    )


def label_names(columns: Sequence[str], width: int) -> list[str]:
    """A name for each of the T label dimensions: the columns, or their only one, numbered."""
    if len(columns) == width:
        return list(columns)
    return [f"{columns[0]}_{dimension}" for dimension in range(width)]


def count_labels(dataset: Dataset[Any], columns: Sequence[str], name: str) -> int:
    """T, the number of label dimensions: of one column, the numbers of its first cell that holds any."""
    if len(columns) > 1:
        return len(columns)
    for row in _label_rows(undecoded(dataset, columns), columns, show_progress=False):
        if not isinstance(row, Mapping) or columns[0] not in row:
            return 1
        if row[columns[0]] is not None:
            return len(label_values(row, columns, name))
    return 1


def has_labels(dataset: Dataset[Any], columns: Sequence[str], name: str, known: Sequence[str] = ()) -> bool:
    """
    Whether there are labels: their columns, with anything in them; or some of them, or a column of a name like theirs
    that is none of the `known` ones, which is a mistake to be told.
    """
    names = column_names(dataset)
    missing = [column for column in columns if column not in names]
    if missing and "labels" not in names:
        others = [name for name in names if name not in known]
        return len(missing) < len(columns) or any(difflib.get_close_matches(column, others, n=1) for column in missing)
    labels = _label_rows(undecoded(dataset, columns), columns, show_progress=False)
    rows = (label_values(row, columns, name) for row in labels)
    return any(cell is not None for cells in rows for cell in cells)


# ---- Classes and codes, which are no numbers yet -------------------------------------------------------------------


def class_numbers(dataset: Any, columns: Sequence[str], name: str) -> dict[str, list[float]]:
    """
    The numbers that the classes of label columns are called, by column, in the order of their stored indices; nothing
    where no column holds classes, and where a transform makes the rows. Classes that are no numbers are refused.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        first, *others = [class_numbers(part, columns, name) for part in dataset.datasets]
        if any(other != first for other in others):
            raise ValueError(f"{name} joins data sets whose classes differ. Make a column of numbers of each.")
        return first
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset) or _has_transform(dataset):
        return {}
    found = {}
    for column in columns:
        feature = (dataset.features or {}).get(column)
        if isinstance(feature, datasets.ClassLabel):
            bad = [text for text in feature.names if label_error(text) is not None]
            if bad:
                shown = ", ".join(feature.names[:5]) + ", ..." * (len(feature.names) > 5)
                raise ValueError(
                    f'{name}, column "{column}" holds classes ({shown}), of which {truncate(bad[0])} is not a number. '
                    "Map them to numbers, in a column of type float64."
                )
            found[column] = [float(text) for text in feature.names]
    return found


def with_numbers(row: Row, classes: Mapping[str, Sequence[float]]) -> Row:
    """A row whose classes are numbers; one without a class (-1) has `None`."""
    if not classes:
        return row
    changed = {}
    for column in classes.keys() & row.keys():
        cell = row[column]
        index = -1 if cell is None else int(cell)
        changed[column] = classes[column][index] if index >= 0 else None
    return {**row, **changed}


def _has_transform(dataset: Any) -> bool:
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"


def _check_transform(dataset: Any, columns: Sequence[str], labels: np.ndarray, name: str) -> None:
    """Refuses a transform that gives the index of each row's class for its label, where that is not its name."""
    if not _has_transform(dataset) or labels.shape[1] != len(columns):
        return
    stored = dataset.with_format(None)
    for column, given in zip(columns, labels.T, strict=True):
        feature = stored.features.get(column)
        if not isinstance(feature, datasets.ClassLabel) or feature.names == [
            str(i) for i in range(len(feature.names))
        ]:
            continue
        if np.array_equal(given, np.array(stored[column], dtype=np.float64), equal_nan=True):
            raise ValueError(
                f'{name}, column "{column}" holds classes, and its transform gives their indices. Make it give the '
                f"number that is the class's name: float(features[{column!r}].int2str(index))."
            )


def _codes(texts: Sequence[tuple[int, str, str]], numbered: set[str]) -> dict[int, str]:
    """
    What is wrong with texts such as "007" among 31 and 48, by row: they are codes. Among 031 and 048 they are numbers,
    of one width. `texts` are the row, the column and the text of all cells that are one; `numbered` columns hold
    numbers beside them.
    """
    digits = [re.match(r"\s*[+-]?(\d+)", text) for *_, text in texts]
    widths = {(column, len(found[1])) for (_, column, _), found in zip(texts, digits, strict=True) if found}
    uneven = numbered | {column for column, _ in widths if sum(one == column for one, _ in widths) > 1}
    return {
        row: f'column "{column}": {truncate(text)} begins with a zero, as a code does. Write the number without it'
        for (row, column, text), found in zip(texts, digits, strict=True)
        if found and column in uneven and re.match("0[0-9]", found[1])
    }


def check_column(column: str, columns: Sequence[str], name: str, option: str) -> None:
    """Refuses a data set whose `columns` lack the one that the option names."""
    if column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(
            f'{name} has no column "{column}"; its columns are {", ".join(columns)}. Name one of them with {option}.'
            f"{hint}"
        )


def unreadable_rows(
    dataset: Dataset[Any],
    image_column: str,
    rows: Sequence[int],
    name: str,
    show_progress: bool = True,
    image_range: Sequence[float] | None = None,
) -> dict[int, str]:
    """
    Reads the images of `rows` in threads, but for those that an earlier run has found good, and returns by row why one
    cannot be read. Warns where none of them uses more than a quarter of its 16 bits.
    """
    stored = only_columns(undecoded(dataset, [image_column]), [image_column])
    in_blocks = has_stored_images(stored, image_column)
    checked = CheckedImages(stored, image_column, rows, image_range, f"Looking up {name}", show_progress)

    def read(index: int, row: Row | None = None) -> CheckedImage | str:
        try:
            row = stored[index] if row is None else row
            return check_image(cell_of(dataset, row, index, image_column), image_range)
        except Exception as error:  # whatever a decoder raises, the row cannot be used
            return f'column "{image_column}": the image cannot be read ({describe_error(error)})'

    def read_block(block: Sequence[int]) -> list[CheckedImage | str]:
        if not in_blocks:
            return [read(index) for index in block]
        cells = stored[block][image_column]  # many at once, which takes a tenth of the time
        return [read(index, {image_column: cell}) for index, cell in zip(block, cells, strict=True)]

    left = [row for row in rows if row not in checked.known]
    good, wrong = dict[int, CheckedImage](), dict[int, str]()
    reading = blocks_in_threads(read_block, dataset, left, f"Reading {name}", show_progress)
    try:
        for row, found in zip(left, reading, strict=True):
            if isinstance(found, str):
                wrong[row] = found
            else:
                good[row] = found
    finally:  # also where the user ends it
        checked.keep(good)
    warning = dark_images([image.largest for image in (*checked.known.values(), *good.values())])
    if warning is not None and rank() == 0:
        logger.warning(f'{name}, column "{image_column}": {warning}')
    return wrong


def dark_images(largest: Sequence[int | None]) -> str | None:
    """What to say of images that have 16 bits and use less than a quarter of their range, by their largest numbers."""
    wide = [number for number in largest if number is not None]
    if not wide or max(wide) >= 2**14:
        return None
    bits = max(max(wide), 1).bit_length()
    return (
        f"the images have 16 bits, but no number above {max(wide):,} of 65,535, so models see them almost black. If "
        f"they hold {bits} bits, set image_range to 0 {2**bits - 1}, or else to the numbers of black and white."
    )


def image_at(dataset: Dataset[Any], index: int, column: str, **options: Any) -> Image.Image:
    """The image of a row, read with the options of [`~conr_hf.data.images.to_image`]."""
    return to_image(cell_of(dataset, undecoded(dataset, [column])[index], index, column), **options)


def undecoded(dataset: Dataset[Any], columns: Sequence[str]) -> Dataset[Any]:
    """
    A data set that does not decode the images of `columns`, so that one too large is refused before it is, and none
    loses what Pillow cannot hold. Its rows are plain, whatever format was set.
    """
    unopened: Any = dataset
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        if dataset.format["type"] is not None:
            unopened = dataset.with_format(None, columns=dataset.format["columns"])
        for column in columns:
            feature = dataset.features.get(column)
            if isinstance(feature, datasets.Image) and feature.mode is None:
                unopened = unopened.cast_column(column, datasets.Image(decode=False))
    return unopened


def only_columns(dataset: Dataset[Any], columns: Sequence[str]) -> Dataset[Any]:
    """A data set with these columns alone, where they can be had so: nobody needs the others to be decoded."""
    if not isinstance(dataset, datasets.Dataset) or _has_transform(dataset):
        return dataset
    return dataset.select_columns([name for name in dataset.column_names if name in columns])


def cell_of(dataset: Dataset[Any], row: Row, index: int, column: str) -> Any:
    """A cell of an [`undecoded`] row; of the decoded one where it lies in an archive, which `datasets` can open."""
    cell = row[column]
    in_archive = isinstance(cell, dict) and cell["bytes"] is None and "://" in (cell["path"] or "")
    return dataset[index][column] if in_archive else cell


def _label_rows(dataset: Dataset[Any], columns: Sequence[str], show_progress: bool = True) -> Iterator[Row]:
    plain: datasets.Dataset | datasets.IterableDataset | None = None  # where columns can be read alone
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        plain = dataset.with_format(None)
    elif isinstance(dataset, datasets.IterableDataset) and dataset.column_names is not None:
        plain = dataset
    if plain is not None:
        present = [column for column in [*columns, "labels"] if column in plain.column_names]
        if not all(column in present for column in columns) and "labels" not in present:
            return iter([dict.fromkeys(plain.column_names)])
        dataset = plain.select_columns(present)
    if isinstance(dataset, datasets.Dataset) and plain is not None:
        has_images = any(isinstance(feature, datasets.Image) for feature in dataset.features.values())
        return iter(dataset) if has_images else _in_blocks(dataset)
    if isinstance(dataset, IterableDataset):
        return iter(tqdm(dataset, "Reading labels", leave=False, disable=not show_progress))
    indices = tqdm(range(len(dataset)), "Reading labels", leave=False, disable=not show_progress)  # type: ignore[arg-type]
    return (dataset[index] for index in indices)


def _in_blocks(dataset: datasets.Dataset) -> Iterator[Row]:
    """The rows, many read at once, which takes a tenth of the time."""
    for block in dataset.iter(batch_size=1000):
        for cells in zip(*block.values(), strict=True):
            yield dict(zip(block, cells, strict=True))


def _vector(cell: Any) -> list[Any] | None:
    """The numbers of a cell that holds one or more: a list, or an array or tensor of shape `(T,)` or `(1, T)`."""
    if isinstance(cell, np.ndarray | torch.Tensor):
        return cell.reshape(-1).tolist() if cell.ndim == 1 or (cell.ndim == 2 and len(cell) == 1) else None
    if isinstance(cell, list | tuple) and len(cell) == 1 and isinstance(cell[0], list | tuple | np.ndarray):
        return _vector(cell[0])
    return list(cell) if isinstance(cell, list | tuple) and not is_map(cell) else None


def label_error(cell: Any) -> str | None:
    """What keeps a label from being a finite number."""
    if type(cell) is float and math.isfinite(cell):  # nearly always
        return None
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "the label is missing"
    if is_map(cell):
        return "the label is a map, not one number"
    if isinstance(cell, np.ndarray | torch.Tensor) and cell.ndim > 2:
        return f"the label has the shape {tuple(cell.shape)}; a map has one number for every pixel, (height, width)"
    if vector := _vector(cell):
        return f"it holds a list of {len(vector)} numbers; make a column of each, or name it as the only label column"
    if isinstance(cell, bool | np.bool_ | np.datetime64 | np.timedelta64) or (isinstance(cell, str) and "_" in cell):
        return f"{truncate(cell)} is not a number"  # although Python makes one of it
    if isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell):
        return f"{truncate(cell)} is not a number; decimals are written with a point"
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return f"{truncate(cell)} is not a number"
    return None if math.isfinite(number) else f"the label is {number}"
