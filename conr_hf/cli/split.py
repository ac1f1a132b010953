"""`conr-hf split`: a data set of the user's own, split and written as Parquet files with a data card."""

import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import yaml
from datasets.table import embed_table_storage

from conr_hf.cli.options import one_or_each
from conr_hf.data.columns import check_column, label_names, read_labels, unreadable_rows
from conr_hf.data.local import load_local
from conr_hf.data.splits import SPLITS, BinCount, advised_cap, dir_split, is_balanced, key_cells, split_counts
from conr_hf.imbalance.bins import FloatArray
from conr_hf.utils.files import check_writable
from conr_hf.utils.tables import format_bin, format_table, markdown_table

CARD = """\
# {name}, split for imbalanced regression

{rows:,} rows of `{name}`. {about}

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


def write_split(options: Namespace) -> None:
    """
    Splits a data set (its own splits pooled), writes it with a data card that the Hub reads, and prints the result.

    The Parquet files hold the images themselves and no path but the name of each file. A column `split` is left out.
    """
    out, label = Path(options.output), options.label_columns
    existing = [name for name in (*(f"{split}.parquet" for split in SPLITS), "README.md") if (out / name).exists()]
    if existing and not options.overwrite:
        raise ValueError(
            f'"{out}" has {", ".join(existing)} already. Name another folder with --output, or replace them with '
            "--overwrite."
        )
    check_writable(options.output)
    files = {"image_folder": options.image_folder, "image_suffix": options.image_suffix}
    data = load_local(options.data, options.image_column, data_config=options.data_config, **files)
    named = {split: f'split "{split}"' if len(data) > 1 else f'"{options.data}"' for split in data}
    for split, rows in data.items():
        _check_columns(rows, named[split], options)
        _refuse(read_labels(rows, label, named[split])[1], named[split])
    quotas = {"cap": options.cap, "share": options.share, "bin_width": one_or_each(options.bin_width)}
    pooled = _pooled(data, label)
    splits = dir_split(
        pooled, label, group=options.group_column, id_column=options.id_column, seed=options.seed, **quotas
    )
    for split, rows in data.items():
        _refuse(unreadable_rows(rows, options.image_column, range(len(rows)), named[split]), named[split])
    sizes = {split: _write_parquet(part, out / f"{split}.parquet") for split, part in splits.items()}
    labels = {split: read_labels(rows, label, split)[0].reshape(len(rows), -1) for split, rows in splits.items()}
    names = label_names(label, next(iter(labels.values())).shape[1])
    bins = _named_bins(labels, names, split_counts(splits, label, **quotas))
    table = _split_table(splits, labels, names, options.group_column, bins)
    how = f"{_how(options, bins)} {_balance(options, bins)}"
    (out / "README.md").write_text(_card(splits, options, table, how, bins, sizes), encoding="utf-8")
    if len(data) > 1:
        print(f"The splits it came with are pooled: {', '.join(f'{name} {len(data[name]):,}' for name in data)}.\n")
    print(format_table(table))
    print(f"\n{how}")
    for warning in _warnings(options, bins):
        print(f"Warning: {warning}")
    print(f"Written to {out}: {', '.join(f'{split}.parquet' for split in splits)}, and README.md with every bin.")
    train = ["conr-hf", "train", "recipes/own-data.yaml", "--data", str(out), "--label_columns", *label]
    train += ["--image_column", options.image_column] if options.image_column != "image" else []
    print(f"Train on it with {shlex.join(train)}")


def _check_columns(rows: datasets.Dataset, name: str, options: Namespace) -> None:
    columns_of = {
        "--label_columns": options.label_columns,
        "--group_column": [options.group_column],
        "--id_column": [options.id_column],
    }
    for option, columns in columns_of.items():
        for column in columns:
            if column is not None:
                check_column(column, rows.column_names, name, option)
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
        for column in label:  # whole numbers in one split and not in another, or other classes
            if any(other.features[column] != rows.features[column] for other in data.values()):
                numbers, _ = read_labels(rows, [column], "data")
                rows = rows.remove_columns(column).add_column(column, numbers.tolist())
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


def _split_table(
    splits: datasets.DatasetDict,
    labels: dict[str, FloatArray],
    names: Sequence[str],
    group: str | None,
    bins: dict[str, BinCount],
) -> list[list[str]]:
    of_label = [f"{name} {figure}" for name in names for figure in ("min", "median", "max")]
    table = [["split", "rows", *(["groups"] if group is not None else []), *of_label, "bins"]]
    for split, rows in splits.items():
        groups = [f"{len(set(key_cells(rows, group, 'group'))):,}"] if group is not None else []
        figures = np.quantile(labels[split], (0, 0.5, 1), axis=0).T.ravel()
        held = sum(count.rows[split] > 0 for count in bins.values())
        table.append([split, f"{len(rows):,}", *groups, *(f"{figure:.6g}" for figure in figures), f"{held:,}"])
    return table


def _how(options: Namespace, bins: dict[str, BinCount]) -> str:
    widths = {count.dimension: f"{count.high - count.low:g}" for count in bins.values()}
    text = (
        f"In bins of width {' and '.join(widths.values())}, validation and test get a share of {options.share:.3g} of "
        f"a bin's rows each, rounded down and at most {options.cap} (the bin's quota); training gets the rest."
    )
    if options.group_column is None:
        return text
    misses = {
        (split, name): abs(count.rows[split] - count.quota)
        for name, count in bins.items()
        for split in ("validation", "test")
    }
    split, name = max(misses, key=misses.__getitem__)
    return (
        f'{text} No "{options.group_column}" is in two splits, so quotas are met as nearly as whole groups allow: on '
        f"average {np.mean(list(misses.values())):.2g} rows off, at most {misses[split, name]}: {split} has "
        f"{bins[name].rows[split]} rows of {name} where the quota is {bins[name].quota}."
    )


def _balance(options: Namespace, bins: dict[str, BinCount]) -> str:
    """Whether validation and test are balanced, and what of them is, in a sentence."""
    labels, capped = "`, `".join(options.label_columns), sum(count.quota == options.cap for count in bins.values())
    if is_balanced(list(bins.values()), options.cap):
        return (
            f"Validation and test are balanced over `{labels}`: {capped} of {len(bins)} bins give {options.cap} rows "
            "to each, and rarer ones what their share allows."
        )
    return (
        f"Validation and test are not balanced over `{labels}`, but about as long-tailed as the data: of {len(bins)} "
        f"bins {capped or 'none'} {'is' if capped == 1 else 'are'} large enough for the cap of {options.cap}."
    )


def _kept(bins: dict[str, BinCount]) -> float:
    """The share of the rows that training keeps."""
    return sum(count.rows["train"] for count in bins.values()) / sum(sum(c.rows.values()) for c in bins.values())


def _warnings(options: Namespace, bins: dict[str, BinCount]) -> list[str]:
    counts, problems = list(bins.values()), []
    if not is_balanced(counts, options.cap):
        problems.append(f"the cap of {options.cap} hardly acts, so that validation and test are not balanced")
    if _kept(bins) < 0.5:
        problems.append(f"training keeps {_kept(bins):.0%} of the rows, less than half")
    if not problems:
        return []
    cap = advised_cap(counts, options.share)
    mend = f"--cap {cap} mends that" if cap is not None else "there are too few rows to mend that with another --cap"
    return [f"{'; and '.join(problems)}; {mend}."]


def _command(options: Namespace) -> str:
    """The command line that repeats the split, with names of folders and files instead of their paths."""
    data = Path(options.data).name if Path(options.data).exists() else options.data
    words = ["conr-hf", "split", data, "--label_columns", *options.label_columns]
    for name in ("group_column", "id_column", "image_folder", "image_suffix", "data_config"):
        value = getattr(options, name)
        words += [f"--{name}", value] if value is not None else []
    fraction = Fraction(options.share).limit_denominator(1000)
    share = str(fraction) if float(fraction) == options.share else repr(options.share)
    words += ["--output", Path(options.output).name, "--cap", str(options.cap), "--share", share]
    if options.bin_width is not None:
        words += ["--bin_width", *(f"{width:g}" for width in options.bin_width)]
    return shlex.join([*words, "--seed", str(options.seed), "--image_column", options.image_column])


def _card(
    splits: datasets.DatasetDict,
    options: Namespace,
    table: Sequence[Sequence[str]],
    how: str,
    bins: dict[str, BinCount],
    sizes: dict[str, int],
) -> str:
    name = Path(options.data).name
    info = [{"name": split, "num_bytes": sizes[split], "num_examples": len(rows)} for split, rows in splits.items()]
    written = sum(Path(options.output, f"{split}.parquet").stat().st_size for split in splits)
    files = [{"split": split, "path": f"{split}.parquet"} for split in splits]
    facts: dict[str, Any] = {
        "pretty_name": f"{name}, split for imbalanced regression",
        "tags": ["image-regression", "imbalanced-regression"],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"splits": info, "download_size": written, "dataset_size": sum(sizes.values())},
    }
    header = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    of_bins = [[bin_, f"{of.quota}", *(f"{rows:,}" for rows in of.rows.values())] for bin_, of in bins.items()]
    text = CARD.format(
        name=name,
        rows=sum(len(rows) for rows in splits.values()),
        about=f"{_balance(options, bins)} Training keeps {_kept(bins):.0%} of the rows.",
        splits=markdown_table(table),
        how=how,
        command=_command(options),
        bins=markdown_table([["label", "quota", *splits], *of_bins]),
    )
    return f"---\n{header}---\n\n{text}"


def _named_bins(
    labels: dict[str, FloatArray], columns: Sequence[str], counts: Sequence[BinCount]
) -> dict[str, BinCount]:
    whole = (np.concatenate(list(labels.values())) % 1 == 0).all(axis=0)
    prefixes = [f"{column} " for column in columns] if len(columns) > 1 else [""]
    return {
        prefixes[count.dimension] + format_bin(count.low, count.high, bool(whole[count.dimension])): count
        for count in counts
    }
