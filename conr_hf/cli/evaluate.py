"""`conr-hf evaluate`: the errors of a saved model."""

from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conr_hf.cli.saved_data import load_data_of, run_options
from conr_hf.data.columns import has_labels, label_values
from conr_hf.inference.evaluate import evaluate
from conr_hf.models.saved import load_saved
from conr_hf.training.conr_state import load_state
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import command_line, hardware, versions
from conr_hf.utils.files import check_writable, writing
from conr_hf.utils.run_folder import file_times, results_of, written_since


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
    own = run_options(model, options)
    loaded, processor = load_saved(model, maps=True)
    saved = load_state(model)
    with TemporaryDirectory() as scratch:
        settings = {"output_dir": scratch, **_refit_settings(options)}
        args, sets, targets, unit = load_data_of(model, loaded, saved and saved[0], options, own, settings)
        if split not in sets:
            raise ValueError(f'The data has no split "{split}"; it has {", ".join(sets)}. Name one with --split.')
        if not has_labels(sets[split], args.label_columns, f'split "{split}"'):
            raise ValueError(
                f'Split "{split}" has no labels, so nothing can be measured. Name another with --split, or predict '
                "with conr-hf predict."
            )
        label_values(dict.fromkeys(sets[split].column_names), args.label_columns, f'split "{split}"')
        train = sets.get("train") if saved is None else None
        evaluation = sets[split] if args.refit_head != "none" else None
        trainer = ConRTrainer(loaded, args, train_dataset=train, eval_dataset=evaluation, processing_class=processor)
        facts = {"schema": 1, "command": command_line(options.given), "model": model}
        facts |= {"versions": versions(), "hardware": hardware(), "unit": unit}
        folder = Path(options.output) if options.output else None
        with writing(folder or Path(scratch)):
            before = file_times(folder) if folder else {}
            evaluate(trainer, {split: sets[split]}, targets, unit, facts, folder)
            if folder and trainer.is_world_process_zero():
                print(f"\nWritten to {folder}: {', '.join(written_since(folder, before))}")


def _refit_settings(options: Namespace) -> dict[str, Any]:
    """With these, the rows that the head of a run was fitted on are left out of its validation split."""
    results = results_of(options.model)
    if options.split != "validation" or options.data or options.benchmark or "refit_head" not in results:
        return {}
    return {"refit_head": "affine", "seed": results["seed"]}
