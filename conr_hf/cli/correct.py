"""`conr-hf correct`: re-fits the head of a finished run, as `refit_head` does at the end of training."""

from argparse import Namespace
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from conr_hf.cli.recipe_data import measured_splits
from conr_hf.cli.saved_data import load_data_of, run_options
from conr_hf.hub.model_card import read_run
from conr_hf.inference.evaluate import evaluate
from conr_hf.inference.run_results import write_run
from conr_hf.models.saved import load_saved
from conr_hf.training.config.validation import check_refit
from conr_hf.training.conr_state import load_state
from conr_hf.training.refit import refit_facts, refit_head
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import command_line
from conr_hf.utils.files import check_writable, writing
from conr_hf.utils.run_folder import FEATURE_INDEX, STATE, clear_exports, files_of_run

_KEPT = (STATE, TRAINING_ARGS_NAME, FEATURE_INDEX)  # files that do not follow from the head


def correct_saved(options: Namespace) -> None:
    """
    Fits a line to the predictions of a finished run and folds it into its head, prints the errors before and after,
    and writes the run again with all that follows from its model: into `--output_dir`, or into its own folder with
    `--in_place`. Nothing is written where cross-validation shows no gain.

    The line is fitted on a third of the validation split, which is left out of everything that is measured or
    calibrated here. In training that split chose the epoch, all of it, which is said.
    """
    run = Path(options.run)
    results, saved = dict(read_run(run).results), load_state(options.run)
    if saved is None:
        raise ValueError(f'"{run}" has no {STATE}, which holds the bins of its labels. Train it again.')
    if "refit_head" in results:
        raise ValueError(f'The head of "{run}" has been re-fitted already, with gain or without.')
    if options.in_place and options.output_dir is not None:
        raise ValueError("Both --in_place and --output_dir are given. Leave one of them out.")
    folder = run if options.in_place else Path(options.output_dir or f"{run}-corrected")
    if not options.in_place and (found := files_of_run(folder)):
        raise ValueError(f'"{folder}" holds a run already ({", ".join(found)}). Name another --output_dir.')
    own = run_options(options.run, options)
    loaded, processor = load_saved(options.run, maps=True)
    settings = {"output_dir": str(folder), "seed": results["seed"], "refit_head": "affine", "report_to": "none"}
    args, data, targets, unit = load_data_of(options.run, loaded, saved[0], options, own, settings)
    held_out, unlabelled = measured_splits(data, args)
    if "validation" not in held_out:
        raise ValueError(f'The data has no split "validation" to fit the head on; it has {", ".join(data)}.')
    check_writable(str(folder))
    trainer = ConRTrainer(loaded, args, eval_dataset=held_out["validation"], processing_class=processor)
    trainer.data.unit = unit
    check_refit(args, trainer.data, trainer.head)
    if (run / TRAINER_STATE_NAME).is_file():
        trainer.state = TrainerState.load_from_json(str(run / TRAINER_STATE_NAME))
    print(f"Before, without the {len(trainer.data.refit_rows()[0]):,} validation rows that the head is fitted on:")
    evaluate(trainer, held_out, targets, unit, {"unit": unit}, None)
    print()
    refit_head(trainer, trainer.data, trainer.head)
    refit = refit_facts(trainer.state)["refit_head"]
    if refit["bmae_after"] >= refit["bmae_before"]:
        print("Nothing is written.")
        if not any(folder.iterdir()):
            folder.rmdir()
        return
    if trainer.state.best_global_step:
        print("This validation split chose the epoch, so that its errors, before and after, are a little too small.")
    measured = {"bins", "baseline_median", "fit", *results.get("baseline_median", {})}
    facts = {name: value for name, value in results.items() if name not in measured}
    facts |= {"unit": unit, "refit_head": refit | {"command": command_line(options.given)}}
    facts["recipe"] = results["recipe"] | {"refit_head": "affine", "output_dir": str(folder)}
    kept = {name: (run / name).read_bytes() for name in _KEPT if (run / name).is_file()}
    if options.in_place:
        clear_exports(run)
    print("\nAfter:")
    with writing(folder, "correct the run again"):
        write_run(trainer, held_out, targets, facts, unlabelled)
        for name, content in kept.items():
            (folder / name).write_bytes(content)
