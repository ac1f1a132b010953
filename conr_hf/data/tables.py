"""Tables as rows, every number and text as it is written: CSV, TSV, JSON, JSON lines, Parquet."""

import codecs
import csv
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_DELIMITERS = ",;\t|"
_LOOKED_AT = 100_000  # characters of a CSV file, for its delimiter
# What a reader of numbers changes in an id: zeros before it, and the digits of a long one.
_PADDED = r"^\s*[+-]?0[0-9]"
_LONG = r"^\s*[+-]?[0-9]{16,}\s*$"


def is_table(file: Path) -> bool:
    """Whether [`read_table`] reads files of this name."""
    return file.suffix.lower() in TABLES


def read_table(file: Path, kind: str | None = None) -> datasets.Dataset:
    """
    The rows of a table, as they are; `kind` (csv, json, parquet) where its name does not tell.

    Texts stay texts: in a JSON column of numbers and texts, and in a CSV column where a number begins with zeros or
    has more digits than a float holds. A CSV file is separated by `,`, `;`, tab or `|`, as its header tells, and lines
    before the header may begin with `#`. JSON is an array of objects, an object a line, or one object of columns.

    Raises:
        `ValueError`: if it has no rows, a header that says a column twice, or text that is not UTF-8 nor, of a CSV
            file, by its first bytes UTF-16; the reason alone is the message.
    """
    kind = kind or TABLES[file.suffix.lower()]
    if kind == "parquet":
        rows = datasets.load_dataset("parquet", data_files=str(file), split="train")
    else:
        rows = datasets.Dataset(_read_csv(_utf8(file, or_utf16=True)) if kind == "csv" else _read_json(_utf8(file)))
    if len(rows) == 0:
        raise ValueError("a split of it has no rows")
    return rows


# ---- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(text: str) -> pa.Table:
    skipped, delimiter = _layout(text)
    content = text.encode()

    def read(**convert: Any) -> pa.Table:
        return pa.csv.read_csv(
            pa.BufferReader(content),
            # In one block, so that a column has the type of all its rows: a text among numbers is found by its row
            # later. Threads do not report the row of an error.
            pa.csv.ReadOptions(block_size=len(content) + 1, use_threads=False, skip_rows=skipped),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(strings_can_be_null=True, **convert),
        )

    table = read()
    if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
        raise ValueError(f'column "{min(twice)}" stands in its header twice')
    numbers = [
        field.name for field in table.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    if not numbers:
        return table
    written = read(include_columns=numbers, column_types=dict.fromkeys(numbers, pa.string()))
    for name in numbers:
        changed = f"{_PADDED}|{_LONG}" if pa.types.is_floating(table.schema.field(name).type) else _PADDED
        if pc.any(pc.match_substring_regex(written[name], changed)).as_py():
            table = table.set_column(table.column_names.index(name), name, written[name])
    return table


def _layout(text: str) -> tuple[int, str]:
    """How many lines stand before the header of a CSV file, and what separates its cells."""
    lines = re.split("\r\n|\r|\n", text[:_LOOKED_AT])
    if marked := re.fullmatch("sep=(.)", lines[0]):  # as Excel writes it
        return 1, marked[1]
    comments = len(list(itertools.takewhile(lambda line: line.startswith("#") or not line.strip(), lines)))
    for skipped in (0, comments):  # a header may begin with "#" too
        found = {delimiter: _widths(lines[skipped:], delimiter) for delimiter in _DELIMITERS}
        fitting = [one for one, widths in found.items() if widths and widths[0] == widths[:2][-1] > 1]
        if fitting:
            return skipped, max(fitting, key=lambda one: found[one][0])
    for widths in found.values():
        first = next((number for number, width in enumerate(widths) if width > 1), len(widths))
        if widths[:1] == [1] and len(set(widths[first:])) == 1 < len(widths) - first:
            raise ValueError(
                f'its line {comments + 1} ("{lines[comments].strip()[:40]}") has one cell and later ones '
                f"{widths[first]}: are there lines before the header? Remove them, or begin each with #"
            )
    return comments, max(_DELIMITERS, key=lambda one: found[one][:1])


def _widths(lines: Sequence[str], delimiter: str) -> list[int]:
    """How many cells each of the first rows has."""
    rows = (row for row in csv.reader(lines, delimiter=delimiter) if row)
    return [len(row) for row in itertools.islice(rows, 20)]


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _read_json(text: str) -> pa.Table:
    # By Python's own parser: that of `datasets` reads the texts of a column that mixes them with numbers as numbers
    # ("-" as 0), and rounds numbers to ten decimals.
    rows = list(_json_values(text))
    if len(rows) == 1 and isinstance(rows[0], list):
        rows = rows[0]
    if len(rows) == 1 and isinstance(rows[0], Mapping) and (columns := _as_columns(rows[0])) is not None:
        return pa.table({name: _json_column(cells) for name, cells in columns.items()})
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f'row {index:,} is {json.dumps(row)[:40]}; each must be an object, {{"image": ..., ...}}')
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})


def _json_values(text: str) -> Iterator[Any]:
    """The values that stand in a file one after another, a line each or not."""
    decoder, position = json.JSONDecoder(), 0
    while (start := re.compile(r"\s*").match(text, position).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ValueError(f"its line {error.lineno:,} is no JSON ({error.msg[0].lower()}{error.msg[1:]})") from None
        yield value


def _as_columns(table: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """The columns of one object that has them, as lists or, as pandas writes them, by the names of the rows."""
    cells = list(table.values())
    if cells and all(isinstance(one, list) for one in cells) and len({len(one) for one in cells}) == 1:
        return dict(table)
    if cells and all(isinstance(one, Mapping) and one.keys() == cells[0].keys() for one in cells):
        return {name: list(one.values()) for name, one in table.items()}
    return None


def _json_column(cells: list[Any]) -> pa.Array:
    """A column of one type where its cells have one; else of texts, as they are written."""
    kinds = {type(cell) for cell in cells if cell is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        try:
            return pa.array(cells)
        except (pa.ArrowException, OverflowError):  # numbers too long, or several types within lists or objects
            pass
    return pa.array([cell if cell is None or isinstance(cell, str) else _written(cell) for cell in cells], pa.string())


def _written(cell: Any) -> str:
    return json.dumps(cell, ensure_ascii=False)


# ---- Text -----------------------------------------------------------------------------------------------------------


def _utf8(file: Path, or_utf16: bool = False) -> str:
    """The text of a file in UTF-8."""
    content = file.read_bytes()
    utf16 = or_utf16 and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f'line {line:,} of "{file.name}" is not UTF-8 (byte 0x{content[error.start]:02x}). Save it as UTF-8'
        ) from None
