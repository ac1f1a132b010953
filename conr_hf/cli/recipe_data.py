"""The data of a recipe: its splits, its stream, its labels."""

from typing import Any

import numpy as np
from datasets import IterableDataset, concatenate_datasets

from conr_hf.cli.recipe import Recipe
from conr_hf.data.benchmarks.loading import load_benchmark
from conr_hf.data.benchmarks.registry import BENCHMARKS
from conr_hf.data.columns import check_column, column_names, count_labels, has_labels, label_names
from conr_hf.data.local import load_local
from conr_hf.data.map_statistics import has_maps
from conr_hf.data.splits import dir_split
from conr_hf.data.streaming import label_stream, load_stream, read_histogram
from conr_hf.data.validation import streamed_labels, valid_rows
from conr_hf.imbalance import Bins
from conr_hf.imbalance.bins import suggest_bin_width
from conr_hf.training.config.config import ConRConfig


def load_data(recipe: Recipe, args: ConRConfig) -> tuple[dict[str, Any], list[str], str]:
    """The splits of a recipe's data, the names of its targets, and their unit."""
    if recipe.benchmark is not None:
        data = load_benchmark(recipe.benchmark, recipe.benchmark_source, streaming=recipe.streaming)
        benchmark = BENCHMARKS[recipe.benchmark]
        own = args.label_columns == list(benchmark.label_columns)  # or the user trains on another column of it
        single = own and len(args.label_columns) == 1
        targets = recipe.target or ([benchmark.target] if single else list(args.label_columns))
        return with_validation(data, recipe, args), targets, recipe.unit or (benchmark.unit if own else "")
    if recipe.data is None:  # of a run of ConRTrainer, which cannot know where its rows are from
        raise ValueError('The recipe names neither data nor a benchmark. Add "data: ..." to it.')
    splits: dict[str, Any]
    if recipe.streaming:
        splits = load_stream(recipe.data, args.image_column, data_config=recipe.data_config)
    else:
        files = {"image_folder": recipe.image_folder, "image_suffix": recipe.image_suffix}
        splits = load_local(recipe.data, args.image_column, data_config=recipe.data_config, **files)
    targets = recipe.target or _targets(splits, args)
    return with_validation(splits, recipe, args), targets, recipe.unit or ""


def _targets(data: dict[str, Any], args: ConRConfig) -> list[str]:
    """The label columns; of one that holds several numbers, a name for each."""
    columns, (split, rows) = args.label_columns, next(iter(data.items()))
    return label_names(columns, count_labels(rows, columns, split))


def with_validation(data: dict[str, Any], recipe: Recipe, args: ConRConfig) -> dict[str, Any]:
    """The splits of a recipe's data, with a validation split out of the training rows where it asks for one."""
    if recipe.validation_share is None or "train" not in data:
        return data
    if "validation" in data:
        raise ValueError(
            f'validation_share is {recipe.validation_share}, but the data has a split "validation". Leave it out.'
        )
    rows = data["train"]
    if has_maps(rows, args.label_columns, "the training split"):
        raise ValueError("validation_share is set, but labels that are maps have no bin. Name a split of your own.")
    if recipe.group_column is not None:
        check_column(recipe.group_column, rows.column_names, "the training split", "group_column")
    # Now, as rows have other numbers once they are divided.
    shows = not args.disable_tqdm
    indices, labels = valid_rows(rows, "data", args, with_labels=True, with_images=True, show_progress=shows)
    assert labels is not None
    rows = rows.select(indices)
    widths = args.bin_width or [suggest_bin_width(column) for column in labels.reshape(len(labels), -1).T]
    share, group = recipe.validation_share, recipe.group_column
    parts = dir_split(rows, args.label_columns, group=group, share=share, bin_width=widths)
    train = concatenate_datasets([parts["train"], parts["test"]])
    return {**data, "train": train, "validation": parts["validation"]}


def measured_splits(data: dict[str, Any], args: ConRConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The validation and test splits of a run's data; apart from them a test split without labels."""
    held_out: dict[str, Any] = {split: data[split] for split in ("validation", "test") if split in data}
    unlabelled: dict[str, Any] = {}  # predicted at the end, without errors
    known = column_names(data["train"]) if "train" in data else ()
    if "test" in held_out and not has_labels(held_out["test"], args.label_columns, "test", known):
        rows = held_out.pop("test")
        columns = [column for column in args.label_columns if column in rows.column_names]
        unlabelled["test"] = rows.remove_columns(columns)
    return held_out, unlabelled


def shuffled(stream: IterableDataset, recipe: Recipe, args: ConRConfig) -> IterableDataset:
    """A recipe's stream, in another order each epoch."""
    seed = args.data_seed if args.data_seed is not None else args.seed
    return stream if recipe.shuffle_buffer == 1 else stream.shuffle(seed=seed, buffer_size=recipe.shuffle_buffer)


def labels_of_stream(recipe: Recipe, args: ConRConfig) -> np.ndarray | Bins | None:
    """The labels of a recipe's stream, or their bins, if they can be known without its images; else `None`."""
    if recipe.label_histogram is not None:
        return read_histogram(recipe.label_histogram)
    if recipe.data is None:
        return None
    labels = label_stream(recipe.data, args.label_columns, data_config=recipe.data_config)
    return streamed_labels(labels, "train_dataset", args)
