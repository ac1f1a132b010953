"""`conr-hf evaluate`: the errors of a saved model."""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conr_hf.cli.recipe import Recipe
from conr_hf.cli.recipe_data import load_data
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.data.columns import has_labels, label_values
from conr_hf.inference.evaluate import evaluate
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.conr_state import load_state
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import command_line, hardware, versions
from conr_hf.utils.files import check_writable, writing
from conr_hf.utils.run_folder import RECIPE, file_times, written_since


def evaluate_saved(options: Namespace) -> None:
    """
    Prints the errors of a saved model on a split, per shot, and writes them into `--output` if it is given.

    The data are the run's own, by its `recipe.yaml`, unless `--data` or `--benchmark` is given. Bins and shots are
    those saved beside the model, or, without any, those of the data's training split. Labels and maps are read as in
    training, unless `--label_columns`, `--map_scale` or `--map_invalid` is given.
    """
    model, split = options.model, options.split
    if options.output is not None:
        check_writable(options.output)
    own = run_options(model) if options.benchmark is None and options.data is None else {}
    loaded, processor = load_saved(model, maps=True)
    saved = load_state(model)
    reading: dict[str, Any] = {"label_columns": ["label"], "map_scale": 1.0, "map_invalid": None}
    if saved is not None:
        reading = {name: getattr(saved[0], name) for name in reading}
    reading |= {name: value for name in reading if (value := getattr(options, name)) is not None}
    with TemporaryDirectory() as scratch:
        args = ConRConfig(
            scratch,
            image_column=options.image_column or own.get("image_column", "image"),
            bin_width=own.get("bin_width"),
            per_device_eval_batch_size=options.batch_size,
            skip_bad_rows=options.skip_bad_rows or own.get("skip_bad_rows", False),
            **{**reading, "label_columns": list(reading["label_columns"])},
        )
        names = ("benchmark", "benchmark_source", "data", "data_config", "image_folder", "image_suffix", "streaming")
        given = {name: getattr(options, name) for name in names}
        source = {field.name: own[field.name] for field in fields(Recipe) if field.name in own}
        source |= {name: value for name, value in given.items() if value}
        try:
            sets, targets, unit = load_data(Recipe(**{**source, "target": target_names(loaded)}), args)
        except ValueError as error:
            mend = f" So says {Path(model).name}'s {RECIPE}; name the data with --data." if own else ""
            raise ValueError(f"{error}{mend}") from error
        unit = unit or saved_unit(model)
        if split not in sets:
            raise ValueError(f'The data has no split "{split}"; it has {", ".join(sets)}. Name one with --split.')
        if not has_labels(sets[split], args.label_columns, f'split "{split}"'):
            raise ValueError(
                f'Split "{split}" has no labels, so nothing can be measured. Name another with --split, or predict '
                "with conr-hf predict."
            )
        label_values(dict.fromkeys(sets[split].column_names), args.label_columns, f'split "{split}"')
        train = sets.get("train") if saved is None else None
        trainer = ConRTrainer(loaded, args, train_dataset=train, processing_class=processor)
        facts = {"schema": 1, "command": command_line(options.given), "model": model}
        facts |= {"versions": versions(), "hardware": hardware(), "unit": unit}
        folder = Path(options.output) if options.output else None
        with writing(folder or Path(scratch)):
            before = file_times(folder) if folder else {}
            evaluate(trainer, {split: sets[split]}, targets, unit, facts, folder)
            if folder and trainer.is_world_process_zero():
                print(f"\nWritten to {folder}: {', '.join(written_since(folder, before))}")


def run_options(model: str) -> dict[str, Any]:
    """The options of the run that a saved model, or a checkpoint, is of, by the `recipe.yaml` in its folder."""
    files = [folder / RECIPE for folder in (Path(model), Path(model).parent) if (folder / RECIPE).is_file()]
    options = read_yaml(files[0]) if files else {}
    if not isinstance(options, dict) or not (options.get("data") or options.get("benchmark")):
        raise ValueError(
            f'Name what to evaluate on, with --data or --benchmark: no {RECIPE} beside "{model}" says it.'
        )
    return options
