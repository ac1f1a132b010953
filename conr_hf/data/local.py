"""A data set of the user's own: a folder of images, a table, or a data set on the Hub."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from conr_hf.data.image_paths import with_images
from conr_hf.data.tables import TABLES, is_table, read_table

logger = logging.getLogger(__name__)

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {  # how a split may be called -> what it is called here
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "validate", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
NO_SPLIT = "none"  # of rows whose column `split` is empty
_LIKE_SPLIT = ("set", "subset", "partition", "fold", "phase", "usage", "dataset")

FindImages = Callable[..., datasets.Dataset]  # with_images with the user's options


def load_local(
    path: str,
    image_column: str = "image",
    revision: str | None = None,
    *,
    image_folder: str | None = None,
    image_suffix: str | None = None,
    data_config: str | None = None,
) -> datasets.DatasetDict:
    """
    Loads a data set with its splits.

    Args:
        path (`str`): One of

            - a folder of images with a `metadata.csv` (or `.jsonl`, `.parquet`, or one table of another name) that has
              a column `file_name`, or whatever `image_column` names, in folders `train`, `validation` and `test` or in
              one, and for labels that are maps a column `label_file_name` of grey images or .npy files, which becomes
              `label`;
            - a folder of tables for each split, such as `train.csv` and `test.csv`, or of Parquet files;
            - a folder that `save_to_disk` of `datasets` wrote, or a copy of a repository on the Hub;
            - a CSV, TSV, JSON, JSON lines or Parquet file, see [`~conr_hf.data.tables.read_table`];
            - an id on the Hub.

            A table may hold paths of images, relative to the table, or to the folder beside it that has its name;
            none may lead out of the table's folder.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the image.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        image_folder (`str`, *optional*): Folder that a table's paths are relative to.
        image_suffix (`str`, *optional*): Ending of the images, as in `.png`, where a table has their names without.
        data_config (`str`, *optional*): Which of a data set's configurations, where its data card names several.

    Returns:
        `datasets.DatasetDict`: the splits; a table is one split, `train`, or, where it has a column `split`, as many
        as that names (`val`, `valid` and `dev` are read as `validation`). Splits of other names keep these.

    Raises:
        `ValueError`: if there is no such data, or it cannot be read.
    """
    location = Path(path)
    if location.is_file() and not is_table(location):
        raise ValueError(f'"{path}" is no table this reads; it must end in {", ".join(TABLES)}.')
    check_path(path)
    find = partial(with_images, image_column=image_column, image_folder=image_folder, image_suffix=image_suffix)
    with load_errors(path):
        if location.is_dir():
            return _folder(location, find, image_column, data_config)
        if location.is_file():
            return split_by_column(_with_files(read_table(location), location, find, image_column))
        return _configuration(path, revision, data_config)


def check_path(path: str) -> None:
    """Raises a `ValueError` if `path` is nothing that data could be read from."""
    location = Path(path)
    is_file = path.startswith((".", "/")) or is_table(location)
    if not location.exists() and (is_file or len(location.parts) != 2):
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
        if configs := re.search(r"available configs: \[(.*)\]", str(error)):
            reason = f"it has the configurations {configs[1]}. Name one with data_config"
        raise ValueError(f'data "{path}" cannot be read: {reason}.') from error


# ---- Splits ---------------------------------------------------------------------------------------------------------


def split_by_column(rows: datasets.Dataset) -> datasets.DatasetDict:
    """The rows by their column `split`; without one all are `train`."""
    columns = [name for name in rows.column_names if name.strip().lower() == "split"]
    if not columns:
        _warn_of_splits(rows)
        return datasets.DatasetDict({"train": rows})
    column = "split" if "split" in columns else columns[0]
    splits: dict[str, list[int]] = {}
    feature, cells = rows.features[column], rows[column]
    if isinstance(feature, datasets.ClassLabel):
        cells = [None if cell is None else feature.names[cell] for cell in cells]
    for index, cell in enumerate(cells):
        name = NO_SPLIT if cell is None else str(cell).strip().lower() or NO_SPLIT
        splits.setdefault(SPLITS.get(name, name), []).append(index)
    order = sorted(splits, key=[*SPLITS.values(), *splits].index)
    return datasets.DatasetDict({name: rows.select(splits[name]) for name in order})


def name_splits(splits: Mapping[Any, Any]) -> dict[str, Any]:
    """The splits by the names that they have here; `dev` beside `validation` stays what it is."""
    named: dict[str, Any] = {}
    names = {str(theirs): rows for theirs, rows in splits.items()}
    for theirs, rows in names.items():
        ours = SPLITS.get(theirs.lower(), theirs)
        ours = theirs if ours in names else ours
        if ours in named:
            raise ValueError(f"several of its splits, {', '.join(names)}, are read as {ours}. Rename one")
        named[ours] = rows
    return named


def unused_splits(data: Mapping[str, Any]) -> dict[str, int]:
    """How many rows the splits have that nothing is done with, where there is one to train on."""
    known = SPLITS.values()
    return {name: len(rows) for name, rows in data.items() if name not in known} if "train" in data else {}


def _warn_of_splits(rows: datasets.Dataset) -> None:
    """Tells of a column of another name that holds nothing but names of splits."""
    for column in rows.column_names:
        if column.strip().lower() in _LIKE_SPLIT:
            cells = {str(cell).strip().lower() for cell in rows[column] if cell is not None}
            if len(cells) > 1 and cells <= SPLITS.keys():
                logger.warning(
                    f'All {len(rows):,} rows are taken as training data, although column "{column}" holds '
                    f"{', '.join(sorted(cells))}. Call it split to have these splits."
                )


# ---- Folders --------------------------------------------------------------------------------------------------------


def _folder(location: Path, find: FindImages, image_column: str, data_config: str | None) -> datasets.DatasetDict:
    if (location / "dataset_dict.json").is_file() or (location / "state.json").is_file():
        saved = datasets.load_from_disk(str(location))
        return _with_images_of(saved if isinstance(saved, dict) else {"train": saved}, find, location)
    if (config := choose_configuration(location, data_config)) is not None:
        return _configuration(str(location), None, config, find)
    parts = name_splits({part.name: part for part in sorted(location.iterdir()) if part.name.lower() in SPLITS})
    parts = {split: part for split, part in parts.items() if part.is_dir()}
    if parts and all((part / "state.json").is_file() for part in parts.values()):
        return _with_images_of(
            {split: datasets.load_from_disk(str(part)) for split, part in parts.items()}, find, location
        )
    described = {split: _metadata(part) for split, part in parts.items()}
    if any(described.values()):
        for split, file in described.items():
            if file is None:
                raise ValueError(f'the folder "{parts[split].name}" has none of {", ".join(METADATA)}')
        tables = {split: file for split, file in described.items() if file is not None}
        return _in_order({split: _described(file, find, image_column) for split, file in tables.items()})
    if metadata := next((location / name for name in METADATA if (location / name).is_file()), None):
        return split_by_column(_described(metadata, find, image_column))
    if any(location.rglob("*.parquet")):
        return _with_images_of(datasets.load_dataset("parquet", data_dir=str(location)), find, location)
    files = _tables(location)
    of_split = name_splits({file.stem: file for file in files if file.stem.lower() in SPLITS})
    if of_split:
        return _in_order({split: _described(file, find, image_column) for split, file in of_split.items()})
    if len(files) == 1:
        return split_by_column(_described(files[0], find, image_column))
    if files:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"it has several tables: {names}. Name one as data, or call them train, validation and test")
    for ending, mend in {
        ".tar": "an archive. Unpack it, and write the labels into a metadata.csv",
        ".arrow": "without the state.json that save_to_disk writes beside it. Save the data again, or as Parquet",
    }.items():
        if file := next(location.rglob(f"*{ending}"), None):
            raise ValueError(f'it holds "{file.relative_to(location)}", {mend}')
    # Without drop_labels the names of folders would become labels.
    return datasets.load_dataset("imagefolder", data_dir=str(location), drop_labels=True)


def _tables(folder: Path) -> list[Path]:
    """The tables that lie in a folder, but for Parquet files."""
    return [file for file in sorted(folder.iterdir()) if TABLES.get(file.suffix.lower()) in ("csv", "json")]


def _metadata(folder: Path) -> Path | None:
    """The table that describes the images of a folder, if it has one."""
    tables = _tables(folder)
    named = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    return named or (tables[0] if len(tables) == 1 else None)


def _described(table: Path, find: FindImages, image_column: str) -> datasets.Dataset:
    rows = read_table(table)
    if "file_name" not in rows.column_names and image_column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise ValueError(
            f'"{table.name}" has no column "file_name"; its columns are {columns}. Name that of the images with '
            "image_column"
        )
    return _with_files(rows, table, find, image_column)


def _with_files(rows: datasets.Dataset, table: Path, find: FindImages, image_column: str) -> datasets.Dataset:
    """
    Images and what a table says of them: `file_name` names the image, unless `image_column` names another column, and
    `x_file_name` that of column `x`, unless it holds something else.
    """
    names, folder = rows.column_names, table.parent
    if "file_name" in names and image_column not in {*names} - {"image"}:
        rows = rows.remove_columns(["image"] if "image" in names else []).rename_column("file_name", "image")
        rows = find(rows, image_column="image", folder=folder, table=table.stem)
    else:
        rows = find(rows, folder=folder, table=table.stem)
    for column in names:
        name = column.removesuffix("_file_name")
        if name != column and name not in rows.column_names:
            cells = (cell for cell in rows[column] if cell is not None)
            if name == "label" or (folder / str(next(cells, ""))).is_file():
                rows = with_images(rows.rename_column(column, name), name, folder)
    return rows


def _in_order(splits: Mapping[str, datasets.Dataset]) -> datasets.DatasetDict:
    order = sorted(splits, key=[*SPLITS.values(), *splits].index)
    return datasets.DatasetDict({split: splits[split] for split in order})


def _with_images_of(splits: Mapping[Any, datasets.Dataset], find: FindImages, folder: Path) -> datasets.DatasetDict:
    """The splits of a folder, or those that its one split names in a column."""
    found = {split: find(rows, folder=folder) for split, rows in name_splits(splits).items()}
    return split_by_column(found["train"]) if list(found) == ["train"] else datasets.DatasetDict(found)


# ---- Configurations, and the Hub ------------------------------------------------------------------------------------


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations that the data card of a repository names."""
    card = folder / "README.md"
    header = re.match(r"---\s*\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL) if card.is_file() else None
    try:
        facts = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        facts = None
    configs = facts.get("configs") if isinstance(facts, dict) else None
    return {str(one["config_name"]): one for one in configs or [] if isinstance(one, dict) and "config_name" in one}


def choose_configuration(folder: Path, name: str | None) -> str | None:
    """Which configuration of a copy of a repository is to be read: `name` or its default; `None` if it has but one."""
    configs = _configs(folder)
    if name in configs or (name is None and len(configs) < 2):
        return name
    default = [config for config, facts in configs.items() if facts.get("default") or config == "default"]
    if name is None and default:
        return default[0]
    if not configs:
        raise ValueError("its README.md names no configurations. Leave data_config out")
    wrong = "" if name is None else f', and none called "{name}"'
    raise ValueError(f"it has the configurations {', '.join(configs)}{wrong}. Name one with data_config")


def _configuration(
    path: str, revision: str | None, name: str | None, find: FindImages | None = None
) -> datasets.DatasetDict:
    """A configuration of a data set on the Hub; with `find`, of a copy of one in a folder."""
    builder = datasets.load_dataset_builder(path, name, revision=revision)
    kind = "json" if isinstance(builder, Json) else "csv" if isinstance(builder, Csv) else None
    if kind is None:
        splits = name_splits(datasets.load_dataset(path, name, revision=revision))
        return datasets.DatasetDict(splits) if find is None else _with_images_of(splits, find, Path(path))
    # `datasets` itself would read some texts as numbers, and round numbers.
    manager = datasets.DownloadManager()
    files = manager.download_and_extract(builder.config.data_files)
    tables = {
        split: [read_table(Path(file), kind).data.table for file in manager.iter_files(of_split)]
        for split, of_split in files.items()
    }
    joined = {split: datasets.Dataset(_joined(parts)) for split, parts in name_splits(tables).items()}
    if find is not None:
        folders = name_splits({split: Path(of_split[0]).parent for split, of_split in files.items()})
        joined = {split: find(rows, folder=folders[split]) for split, rows in joined.items()}
    return split_by_column(joined["train"]) if list(joined) == ["train"] else datasets.DatasetDict(joined)


def _joined(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts, promote_options="permissive")
