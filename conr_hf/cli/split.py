"""`conr-hf split`: a data set of the user's own, split and written as Parquet files with a data card."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import yaml
from datasets.table import embed_table_storage

from conr_hf.data.columns import read_labels, unreadable_rows
from conr_hf.data.local import load_local
from conr_hf.data.splits import SPLITS, BinCount, dir_split, key_cells, split_counts
from conr_hf.utils.files import check_writable
from conr_hf.utils.tables import format_bin, format_table, markdown_table

CARD = """\
# {name}, split for imbalanced regression

{rows:,} rows of `{name}`; validation and test are balanced over `{labels}`, training keeps its long tail.

{splits}

## How it was split

{how}

```bash
{command}
```

made these files with conr_hf. Images and labels keep the licence of their source, which belongs above.

## Rows in every bin

{bins}
"""


@dataclass(frozen=True)
class SplitOptions:
    """
    The options of `conr-hf split`.

    Args:
        data (`str`): As in [`~conr_hf.data.local.load_local`]; the splits it has are pooled.
        out (`str`): Folder for `train.parquet`, `validation.parquet`, `test.parquet` and `README.md`.
        label (`Sequence[str]`): T label columns.
        group, id, cap, share, bin_width, seed: As in [`~conr_hf.data.splits.dir_split`].
        image_column (`str`): Column of the image.
        overwrite (`bool`): Replace these files where they exist.
    """

    data: str
    out: str
    label: Sequence[str]
    group: str | None
    id: str | None
    cap: int
    share: float
    bin_width: Sequence[float] | None
    seed: int
    image_column: str
    overwrite: bool

    @property
    def width(self) -> float | Sequence[float] | None:
        """`bin_width` as `make_bins` takes it."""
        return self.bin_width[0] if self.bin_width is not None and len(self.bin_width) == 1 else self.bin_width

    def command(self) -> str:
        """The command line that repeats the split, with names of folders and files instead of their paths."""
        data = Path(self.data).name if Path(self.data).exists() else self.data
        words = ["conr-hf", "split", data, "--label", *self.label]
        for name, value in (("group", self.group), ("id", self.id)):
            words += [f"--{name}", value] if value is not None else []
        fraction = Fraction(self.share).limit_denominator(1000)
        share = str(fraction) if float(fraction) == self.share else repr(self.share)
        words += ["--out", Path(self.out).name, "--cap", str(self.cap), "--share", share]
        if self.bin_width is not None:
            words += ["--bin_width", *(f"{width:g}" for width in self.bin_width)]
        return shlex.join([*words, "--seed", str(self.seed), "--image_column", self.image_column])


def write_split(options: SplitOptions) -> datasets.DatasetDict:
    """
    Splits a data set, writes it with a data card that the Hub reads, and prints the result.

    The Parquet files hold the images themselves and no path but the name of each file. A column `split` is left out.

    Returns:
        `datasets.DatasetDict`: what was written.

    Raises:
        `ValueError`: For data that cannot be read or split, for the first row whose label or image cannot be read,
            and, without `overwrite`, for files that exist.
    """
    out = Path(options.out)
    existing = [name for name in (*(f"{split}.parquet" for split in SPLITS), "README.md") if (out / name).exists()]
    if existing and not options.overwrite:
        raise ValueError(
            f'"{out}" has {", ".join(existing)} already. Name another folder with --out, or replace them with '
            "--overwrite."
        )
    check_writable(options.out)
    data = load_local(options.data, options.image_column)
    named = {split: f'split "{split}"' if len(data) > 1 else f'"{options.data}"' for split in data}
    for split, rows in data.items():
        _check_columns(rows, named[split], options)
        _refuse(read_labels(rows, options.label, named[split])[1], named[split])
    splits = dir_split(
        _pooled(data, options.label),
        options.label,
        group=options.group,
        id_column=options.id,
        cap=options.cap,
        share=options.share,
        bin_width=options.width,
        seed=options.seed,
    )
    for split, rows in data.items():
        _refuse(unreadable_rows(rows, options.image_column, range(len(rows)), named[split]), named[split])
    sizes = {split: _write_parquet(part, out / f"{split}.parquet") for split, part in splits.items()}
    counts = split_counts(splits, options.label, cap=options.cap, share=options.share, bin_width=options.width)
    bins = dict(zip(_bin_names(splits, options.label, counts), counts, strict=True))
    table = _split_table(splits, options, counts)
    how = _how(options, bins)
    (out / "README.md").write_text(_card(splits, options, table, how, bins, sizes), encoding="utf-8")
    if len(data) > 1:
        print(f"The splits it came with are pooled: {', '.join(f'{name} {len(data[name]):,}' for name in data)}.\n")
    print(format_table(table))
    print(f"\n{how}")
    print(f"Written to {out}: {', '.join(f'{split}.parquet' for split in splits)}, and README.md with every bin.")
    return splits


def _check_columns(rows: datasets.Dataset, name: str, options: SplitOptions) -> None:
    for option, columns in (("label", options.label), ("group", [options.group]), ("id", [options.id])):
        for column in columns:
            if column is not None and column not in rows.column_names:
                raise ValueError(
                    f'{name} has no column "{column}"; its columns are {", ".join(rows.column_names)}. '
                    f"Name one of them with --{option}."
                )
    if not isinstance(rows.features.get(options.image_column), datasets.Image):
        raise ValueError(
            f'{name} has no images in column "{options.image_column}"; its columns are '
            f"{', '.join(rows.column_names)}. Name the column of the image with --image_column."
        )


def _refuse(wrong: dict[int, str], name: str) -> None:
    if wrong:
        row = min(wrong)
        more = f" {len(wrong) - 1:,} more rows cannot be used." if len(wrong) > 1 else ""
        raise ValueError(
            f"{name}, row {row:,}, {wrong[row]}.{more} Correct the data, or leave such rows out; conr-hf inspect "
            "lists them."
        )


def _pooled(data: datasets.DatasetDict, label: Sequence[str]) -> datasets.Dataset:
    parts = []
    for rows in data.values():
        rows = rows.remove_columns("split") if "split" in rows.column_names else rows
        for column in label:  # whole numbers in one split and not in another
            if any(other.features[column] != rows.features[column] for other in data.values()):
                rows = rows.cast_column(column, datasets.Value("float64"))
        parts.append(rows)
    return datasets.concatenate_datasets(parts)


def _write_parquet(rows: datasets.Dataset, path: Path) -> int:
    """Writes a file that gets its name when it is complete; returns the size of its rows in memory, in bytes."""
    unfinished = path.with_suffix(".tmp")
    size = 0
    with pq.ParquetWriter(unfinished, rows.features.arrow_schema) as writer:
        for batch in rows.with_format("arrow").iter(100):
            embedded = embed_table_storage(batch)
            writer.write_table(embedded)
            size += embedded.nbytes
    os.replace(unfinished, path)
    return size


def _split_table(splits: datasets.DatasetDict, options: SplitOptions, counts: Sequence[BinCount]) -> list[list[str]]:
    of_label = [f"{column} {figure}" for column in options.label for figure in ("min", "median", "max")]
    table = [["split", "rows", *(["groups"] if options.group is not None else []), *of_label, "bins"]]
    for split, rows in splits.items():
        labels = read_labels(rows, options.label, split)[0].reshape(len(rows), -1)  # (N, T)
        groups = [f"{len(set(key_cells(rows, options.group, 'group'))):,}"] if options.group is not None else []
        figures = np.stack([labels.min(0), np.median(labels, 0), labels.max(0)], axis=1).ravel()
        bins = sum(count.rows[split] > 0 for count in counts)
        table.append([split, f"{len(rows):,}", *groups, *(f"{figure:.6g}" for figure in figures), f"{bins:,}"])
    return table


def _how(options: SplitOptions, bins: dict[str, BinCount]) -> str:
    widths = {count.dimension: f"{count.high - count.low:g}" for count in bins.values()}
    text = (
        f"In bins of width {' and '.join(widths.values())}, validation and test get a share of {options.share:.3g} of "
        f"a bin's rows each, rounded down and at most {options.cap} (the bin's quota); training gets the rest."
    )
    if options.group is None:
        return text
    misses = {
        (split, name): abs(count.rows[split] - count.quota)
        for name, count in bins.items()
        for split in ("validation", "test")
    }
    split, name = max(misses, key=misses.__getitem__)
    return (
        f'{text} No "{options.group}" is in two splits, so quotas are met as nearly as whole groups allow: on average '
        f"{np.mean(list(misses.values())):.2g} rows off, at most {misses[split, name]}: {split} has "
        f"{bins[name].rows[split]} rows of {name} where the quota is {bins[name].quota}."
    )


def _card(
    splits: datasets.DatasetDict,
    options: SplitOptions,
    table: Sequence[Sequence[str]],
    how: str,
    bins: dict[str, BinCount],
    sizes: dict[str, int],
) -> str:
    name = Path(options.data).name
    info = [{"name": split, "num_bytes": sizes[split], "num_examples": len(rows)} for split, rows in splits.items()]
    written = sum(Path(options.out, f"{split}.parquet").stat().st_size for split in splits)
    files = [{"split": split, "path": f"{split}.parquet"} for split in splits]
    facts: dict[str, Any] = {
        "pretty_name": f"{name}, split for imbalanced regression",
        "tags": ["image-regression", "imbalanced-regression"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"splits": info, "download_size": written, "dataset_size": sum(sizes.values())},
    }
    header = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    of_bins = [
        [bin_, f"{count.quota}", *(f"{rows:,}" for rows in count.rows.values())] for bin_, count in bins.items()
    ]
    text = CARD.format(
        name=name,
        rows=sum(len(rows) for rows in splits.values()),
        labels="`, `".join(options.label),
        splits=markdown_table(table),
        how=how,
        command=options.command(),
        bins=markdown_table([["label", "quota", *splits], *of_bins]),
    )
    return f"---\n{header}---\n\n{text}"


def _bin_names(splits: datasets.DatasetDict, label: Sequence[str], counts: Sequence[BinCount]) -> list[str]:
    labels = [read_labels(rows, label, split)[0].reshape(len(rows), -1) for split, rows in splits.items()]
    whole = (np.concatenate(labels) % 1 == 0).all(axis=0)
    holds = [format_bin(count.low, count.high, bool(whole[count.dimension])) for count in counts]
    if len(label) == 1:
        return holds
    return [f"{label[count.dimension]} {held}" for count, held in zip(counts, holds, strict=True)]
