"""The data that a saved model is measured on: its own run's, or others."""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from conr_hf.cli.recipe import Recipe
from conr_hf.cli.recipe_data import load_data
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.models.saved import saved_unit, target_names
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.utils.run_folder import RECIPE

_SOURCE = ("benchmark", "benchmark_source", "data", "data_config", "image_folder", "image_suffix", "streaming")


def load_data_of(
    name: str,
    model: PreTrainedModel,
    saved: ResolvedConfig | None,
    options: Namespace,
    own: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[ConRConfig, dict[str, Any], list[str], str]:
    """
    The data of the saved `model` of this name, by its `own` [`run_options`] unless the `options` of the command line
    name others: the settings that they are read with, to which the given ones are added, their splits, the names of
    the targets, and the unit. Labels and maps are read as in training, by the settings `saved` with the model, unless
    the options say otherwise.
    """
    reading: dict[str, Any] = {"label_columns": ["label"], "map_scale": 1.0, "map_invalid": None}
    if saved is not None:
        reading = {option: getattr(saved, option) for option in reading}
    reading |= {option: value for option in reading if (value := getattr(options, option)) is not None}
    args = ConRConfig(
        image_column=options.image_column or own.get("image_column", "image"),
        bin_width=own.get("bin_width"),
        per_device_eval_batch_size=options.batch_size,
        skip_bad_rows=options.skip_bad_rows or own.get("skip_bad_rows", False),
        **{**reading, "label_columns": list(reading["label_columns"])},
        **settings,
    )
    source = {field.name: own[field.name] for field in fields(Recipe) if field.name in own}
    source |= {option: value for option in _SOURCE if (value := getattr(options, option))}
    try:
        data, targets, unit = load_data(Recipe(**{**source, "target": target_names(model)}), args)
    except ValueError as error:
        mend = f" So says {Path(name).name}'s {RECIPE}; name the data with --data." if own else ""
        raise ValueError(f"{error}{mend}") from error
    return args, data, targets, unit or saved_unit(name)


def run_options(model: str, options: Namespace) -> dict[str, Any]:
    """
    The options of the run that a saved model, or a checkpoint, is of, by the `recipe.yaml` in its folder; empty where
    the command line names other data.
    """
    if options.benchmark is not None or options.data is not None:
        return {}
    files = [folder / RECIPE for folder in (Path(model), Path(model).parent) if (folder / RECIPE).is_file()]
    own = read_yaml(files[0]) if files else {}
    if not isinstance(own, dict) or not (own.get("data") or own.get("benchmark")):
        raise ValueError(
            f'Name what to evaluate on, with --data or --benchmark: no {RECIPE} beside "{model}" says it.'
        )
    return own
