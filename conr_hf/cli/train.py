"""Runs a recipe: loads, trains, evaluates, and writes the run folder."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import PartialState
from huggingface_hub import CommitInfo
from transformers import set_seed
from transformers.utils import logging

from conr_hf.cli.recipe import Recipe, flags_of, read_recipe
from conr_hf.cli.recipe_data import labels_of_stream, load_data, measured_splits, shuffled
from conr_hf.cli.trackers import log_pictures, name_run
from conr_hf.cli.yaml_loader import parse_yaml
from conr_hf.data.columns import column_names, label_values
from conr_hf.data.local import unused_splits
from conr_hf.data.map_statistics import has_maps
from conr_hf.hub.provenance import hub_ids
from conr_hf.imbalance import Bins
from conr_hf.inference.feature_index import write_index
from conr_hf.inference.run_results import write_run
from conr_hf.models.factory import load_regressor
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.refit import refit_facts
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import hardware, peak_memory, versions
from conr_hf.utils.files import check_writable, writing
from conr_hf.utils.run_folder import FEATURE_INDEX, files_of_run


def train(recipe: Recipe, args: ConRConfig, options: dict[str, Any], command: str) -> None:
    """
    Trains a recipe and writes into `args.output_dir`: the model and its processor, `recipe.yaml` with every option,
    `results.json`, `predictions.csv` (`maps.png` for maps), `density.png` and the model card `README.md`. With
    `args.push_to_hub` it is pushed at the end. `options` and `command` are the user's, for the record.

    Anything that cannot be trained with, or pushed, raises before training.
    """
    resume = args.resume_from_checkpoint if args.resume_from_checkpoint not in ("false", "False") else None
    if resume is None and not args.overwrite_output_dir:
        check_holds_no_run(str(args.output_dir))
    check_writable(args.output_dir)
    source = recipe.data or recipe.benchmark_source
    ids = hub_ids(model=recipe.model, pretrained=recipe.pretrained, weights=recipe.weights, data=source)
    if recipe.stage_one is not None:
        recipe = after_stage_one(recipe, args, options, command)
        if resume in ("true", "True") and not last_complete_checkpoint(str(args.output_dir)):
            resume = None  # it was interrupted in its first stage
    data, targets, unit = load_data(recipe, args)
    if "train" not in data:
        raise ValueError(f'The data has no split "train"; it has {", ".join(data)}.')
    for split, count in unused_splits(data).items():
        if PartialState().is_main_process:
            print(f'Split "{split}" ({count:,} rows) is left out; splits are train, validation and test.')
    held_out, unlabelled = measured_splits(data, args)
    for split in ("train", *held_out):
        label_values(dict.fromkeys(column_names(data[split])), args.label_columns, f'split "{split}"')
    train_labels: np.ndarray | Bins | None = None
    if recipe.streaming:
        data["train"] = shuffled(data["train"], recipe, args)
        train_labels = labels_of_stream(recipe, args)
    of_maps = has_maps(data["train"], args.label_columns, "the training split")
    if of_maps and recipe.feature_index:
        raise ValueError("feature_index is true, but there are no features of whole images beside maps. Leave it out.")
    name_run(args)
    set_seed(args.seed)  # a model without pretrained weights starts from the recipe's seed
    model, processor = load_regressor(
        recipe.model,
        targets,
        task="depth" if of_maps else "image",
        pretrained=recipe.pretrained,
        weights=recipe.weights,
        image_size=recipe.image_size,
        head=args.head,
    )
    trainer = ConRTrainer(
        model,
        args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=processor,
        train_labels=train_labels,
    )
    trainer.data.unit = unit
    trainer.data.check()
    for split, rows in held_out.items():  # bad rows of the test split end a run before training, not after it
        trainer.data.load_split(rows, f"{split} data", before_training=True)
    for split, rows in unlabelled.items():
        trainer.data.load_split(rows, f"{split} data", before_training=True, with_labels=False)
    options = options | _settled_methods(args, trainer.resolved)
    outcome = trainer.train(resume_from_checkpoint=resume)
    results: dict[str, Any] = {
        "schema": 1,
        "command": command,
        "recipe": options,
        "hub_ids": ids,
        "conr": asdict(trainer.resolved),
        "seed": args.seed,
        "versions": versions(),
        "hardware": hardware(),
        "train_seconds": round(outcome.metrics["train_runtime"], 1),
        "steps": outcome.global_step,
        "resumed": resume is not None,
        "peak_memory": peak_memory(),
        "unit": unit,
        **refit_facts(trainer.state),
    }
    saved = last_complete_checkpoint(str(args.output_dir))
    advice = "resume with --resume_from_checkpoint true: the checkpoints are complete" if saved else "train again"
    with writing(Path(str(args.output_dir)), advice):
        write_run(trainer, held_out, targets, results, unlabelled)
        log_pictures(trainer, sorted(Path(str(args.output_dir)).glob("*.png")))
        if recipe.feature_index and trainer.is_world_process_zero():
            write_feature_index(trainer, data["train"])
    if args.push_to_hub:
        logging.disable_progress_bar()  # training turned it on
        commit = trainer.push_to_hub()
        if isinstance(commit, CommitInfo):
            print(f"Pushed to {commit.repo_url}")


def _settled_methods(args: ConRConfig, resolved: ResolvedConfig) -> dict[str, Any]:
    """What the options come to that say which methods are on, and are mostly left unset."""
    if args.only_head_trains:
        return {}
    found: dict[str, Any] = {"resample": resolved.resample}
    found |= {} if args.rnc_gradient_share is not None else {"rnc_weight": resolved.rnc_weight}
    found |= {} if args.conr_gradient_share is not None else {"conr_weight": resolved.weight}
    return found


def check_holds_no_run(folder: str) -> None:
    """Refuses an output folder that holds another run, which training would write over in part."""
    if found := files_of_run(folder):
        resume = "go on with it by --resume_from_checkpoint true, " if last_complete_checkpoint(folder) else ""
        raise ValueError(
            f'"{folder}" holds a run already ({", ".join(found)}). Name another --output_dir, {resume}or replace it '
            "with --overwrite_output_dir true."
        )


def write_feature_index(trainer: ConRTrainer, dataset: Any) -> None:
    """Writes features of training images beside the model, or prints why there are none."""
    processor = trainer.processing_class
    assert processor is not None
    rows = np.asarray(trainer.data.load_split(dataset, "train_dataset")[0].indices)
    try:
        write_index(trainer.args, processor, dataset, rows, trainer.data.training_labels())
        print(f"The feature index: {Path(str(trainer.args.output_dir), FEATURE_INDEX)}")
    except ValueError as error:
        print(f"No feature index: {error}")


def after_stage_one(recipe: Recipe, args: ConRConfig, options: dict[str, Any], command: str) -> Recipe:
    """Trains a recipe's first stage, unless a resumed run has done so; returns the recipe of the second stage."""
    folder = f"{args.output_dir}/stage-one"
    resumes = args.resume_from_checkpoint not in (None, "false", "False")
    first = stage_one_options(recipe, options) | {"output_dir": folder}
    if resumes and last_complete_checkpoint(folder):
        first["resume_from_checkpoint"] = True
    if args.overwrite_output_dir or resumes:  # of this run's own first stage, too
        first["overwrite_output_dir"] = True
    first_recipe, first_args, first_options = read_recipe(flags_of(first))
    if not (resumes and Path(folder, "results.json").is_file()):
        print("Stage one")
        train(first_recipe, first_args, first_options, f"{command}, stage one")
        PartialState().wait_for_everyone()
        print("\nStage two")
    return replace(recipe, model=folder, pretrained=True, weights=None, stage_one=None)


def stage_one_options(recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe's first stage."""
    try:
        changed = parse_yaml(recipe.stage_one or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        changed = None
    if not isinstance(changed, dict):
        raise ValueError(f'stage_one is "{recipe.stage_one}"; it must name options, as in {{reweight: none}}.')
    second_only = {"stage_one", "retrain_head", "freeze_backbone", "feature_index", "refit_head"}
    second_only |= {"output_dir", "resume_from_checkpoint", "overwrite_output_dir", "push_to_hub"}
    for term in ("conr", "rnc", "ranksim"):  # a weight takes the place of a share, and the other way round
        of_term = {f"{term}_weight", f"{term}_gradient_share"}
        second_only |= of_term if of_term & changed.keys() else set()
    return {name: value for name, value in options.items() if name not in second_only} | changed
