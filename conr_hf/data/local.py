"""A data set of the user's own: a folder of images, a table, or a data set on the Hub."""

from pathlib import Path

import datasets

TABLES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_local(path: str, image_column: str = "image") -> datasets.DatasetDict:
    """
    Loads a data set with its splits.

    Args:
        path (`str`): A folder of images with a `metadata.csv` (or `.jsonl`, `.parquet`) that has a column `file_name`,
            in folders `train`, `validation` and `test` or in one; a CSV, JSON lines or Parquet file; or an id on the
            Hub. In a table, the image column may hold paths relative to the table.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the image.

    Returns:
        `datasets.DatasetDict`: the splits; a table is one split, `train`, or, where it has a column `split`, as many
        as that names (`val` is read as `validation`).

    Raises:
        `ValueError`: if there is no such data, or it cannot be read.
    """
    location = Path(path)
    if location.is_file() and location.suffix not in TABLES:
        raise ValueError(f'"{path}" is no table this reads; it must end in {", ".join(TABLES)}.')
    if not location.exists() and (path.startswith((".", "/")) or len(location.parts) != 2):
        raise ValueError(f'data "{path}" is neither a folder, a file nor an id on the Hub (owner/name).')
    try:
        if location.is_dir():
            return _folder(path)
        if location.is_file():
            rows = datasets.load_dataset(TABLES[location.suffix], data_files=path, split="train")
            return _split(_with_images(rows, image_column, location.parent))
        return datasets.load_dataset(path)
    except (
        OSError,
        ValueError,
        IndexError,  # what datasets makes of a metadata file with nothing below its header
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DatasetNotFoundError,
    ) as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")
        if isinstance(error, IndexError) or "corresponds to no data" in reason:
            reason = "a split of it has no rows"
        raise ValueError(f'data "{path}" cannot be read: {reason}.') from error


def _folder(path: str) -> datasets.DatasetDict:
    # One split at a time, so that a label that is text in one of them is found by its row; without drop_labels the
    # names of folders would become labels.
    splits = datasets.data_files.get_data_patterns(path)
    return datasets.DatasetDict(
        {
            str(split): datasets.load_dataset(
                "imagefolder", data_dir=path, data_files={split: files}, split=split, drop_labels=True
            )
            for split, files in splits.items()
        }
    )


def _with_images(rows: datasets.Dataset, image_column: str, folder: Path) -> datasets.Dataset:
    if image_column not in rows.column_names:
        return rows  # what is missing is said where the columns are used
    feature = rows.features[image_column]
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    if kind not in ("string", "large_string", "binary", "large_binary", "dict"):
        return rows  # images already, or what is none: that is said where they are read
    if kind in ("string", "large_string"):
        paths = [None if name is None else str(folder / name) for name in rows[image_column]]
        rows = rows.remove_columns(image_column).add_column(image_column, paths)
    return rows.cast_column(image_column, datasets.Image())


def _split(rows: datasets.Dataset) -> datasets.DatasetDict:
    if "split" not in rows.column_names:
        return datasets.DatasetDict({"train": rows})
    names = rows["split"]
    splits: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        name = str(name).lower()
        splits.setdefault("validation" if name in ("val", "valid") else name, []).append(index)
    return datasets.DatasetDict({name: rows.select(indices) for name, indices in splits.items()})
