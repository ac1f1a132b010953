"""The data of a recipe: its splits, its stream, its labels."""

from typing import Any

import numpy as np
from datasets import IterableDataset

from conr_hf.cli.recipe import Recipe
from conr_hf.data.benchmarks.loading import load_benchmark
from conr_hf.data.benchmarks.registry import BENCHMARKS
from conr_hf.data.columns import count_labels, label_names
from conr_hf.data.local import load_local
from conr_hf.data.streaming import label_stream, load_stream, read_histogram
from conr_hf.data.validation import streamed_labels
from conr_hf.imbalance import Bins
from conr_hf.training.config.config import ConRConfig


def load_data(recipe: Recipe, args: ConRConfig) -> tuple[dict[str, Any], list[str], str]:
    """The splits of a recipe's data, the names of its targets, and their unit."""
    if recipe.benchmark is not None:
        data = load_benchmark(recipe.benchmark, recipe.benchmark_source, streaming=recipe.streaming)
        benchmark = BENCHMARKS[recipe.benchmark]
        own = args.label_columns == list(benchmark.label_columns)  # or the user trains on another column of it
        single = own and len(args.label_columns) == 1
        targets = recipe.target or ([benchmark.target] if single else list(args.label_columns))
        return data, targets, recipe.unit or (benchmark.unit if own else "")
    assert recipe.data is not None
    splits: dict[str, Any]
    if recipe.streaming:
        splits = load_stream(recipe.data, args.image_column, data_config=recipe.data_config)
    else:
        files = {"image_folder": recipe.image_folder, "image_suffix": recipe.image_suffix}
        splits = load_local(recipe.data, args.image_column, data_config=recipe.data_config, **files)
    return splits, recipe.target or _targets(splits, args), recipe.unit or ""


def _targets(data: dict[str, Any], args: ConRConfig) -> list[str]:
    """The label columns; of one that holds several numbers, a name for each."""
    columns, (split, rows) = args.label_columns, next(iter(data.items()))
    return label_names(columns, count_labels(rows, columns, split))


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
