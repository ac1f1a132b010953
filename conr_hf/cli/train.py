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

from conr_hf.cli.progress import describe_method, use_brief_logging
from conr_hf.cli.recipe import Recipe, flags_of, read_recipe
from conr_hf.cli.recipe_data import labels_of_stream, load_data, shuffled
from conr_hf.cli.trackers import log_pictures, name_run
from conr_hf.cli.yaml_loader import parse_yaml
from conr_hf.data.columns import column_names, label_values
from conr_hf.data.map_statistics import has_maps
from conr_hf.hub.provenance import hub_ids
from conr_hf.imbalance import Bins
from conr_hf.inference.evaluate import _evaluated, evaluate
from conr_hf.inference.feature_index import write_index
from conr_hf.models.factory import load_regressor
from conr_hf.training.checkpoints import last_complete_checkpoint
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.environment import hardware, peak_memory, versions
from conr_hf.utils.files import check_writable, writing


def train(recipe: Recipe, args: ConRConfig, options: dict[str, Any], command: str) -> dict[str, Any]:
    """
    Trains as the recipe says and writes into `args.output_dir`: the model and its processor, `recipe.yaml` with every
    option, `results.json`, `predictions.csv` (of maps `maps.png` in its place), `density.png` and the model card
    `README.md`. With `args.push_to_hub` it goes to the Hub at the end.

    Args:
        recipe ([`~conr_hf.cli.recipe.Recipe`]): What is trained on what.
        args ([`ConRConfig`]): How.
        options (`dict[str, Any]`): What the user gave, for the record.
        command (`str`): The command line, for the record.

    Returns:
        `dict`: what `results.json` holds.

    Raises:
        `ValueError`: for anything that cannot be trained with or pushed, before training starts; or for what the Hub
            refuses at the end, when all is written.
        `ConnectionError`: if the Hub cannot be reached, likewise.
        `OSError`: if the disk is full.
    """
    check_writable(args.output_dir)
    source = recipe.data or recipe.benchmark_source
    ids = hub_ids(model=recipe.model, pretrained=recipe.pretrained, weights=recipe.weights, data=source)
    resume = args.resume_from_checkpoint if args.resume_from_checkpoint not in ("false", "False") else None
    if recipe.stage_one is not None:
        recipe = after_stage_one(recipe, args, options, command)
        if resume in ("true", "True") and not last_complete_checkpoint(str(args.output_dir)):
            resume = None  # it ended in its first stage
    data, targets, unit = load_data(recipe, args)
    if "train" not in data:
        raise ValueError(f'The data has no split "train"; it has {", ".join(data)}.')
    for split in ("train", *_evaluated(data)):
        label_values(dict.fromkeys(column_names(data[split])), args.label_columns, f'split "{split}"')
    train_labels: np.ndarray | Bins | None = None
    if recipe.streaming:
        data["train"] = shuffled(data["train"], recipe, args)
        train_labels = labels_of_stream(recipe, args)
    of_maps = has_maps(data["train"], args.label_columns, "the training split")
    if of_maps and recipe.feature_index:
        raise ValueError("feature_index is true, but there are no features of whole images beside maps. Leave it out.")
    name_run(args)
    set_seed(args.seed)  # a model without pretrained weights starts where the recipe says
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
    use_brief_logging(trainer)
    trainer.check_data()
    if trainer.is_world_process_zero():
        print(describe_method(trainer.resolved))
    for split in _evaluated(data):  # the test split's rows too are read before training, not after it
        trainer.usable(data[split], f"{split} data", before_training=True)
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
    }
    saved = last_complete_checkpoint(str(args.output_dir))
    go_on = "go on with --resume_from_checkpoint true: the checkpoints are whole" if saved else "train again"
    with writing(Path(str(args.output_dir)), go_on):
        results = write_run(trainer, data, targets, results, with_index=recipe.feature_index)
    if args.push_to_hub:
        logging.disable_progress_bar()  # which training turns on where it pushes
        commit = trainer.push_to_hub()
        if isinstance(commit, CommitInfo):
            print(f"Pushed to {commit.repo_url}")
    return results


def write_run(
    trainer: ConRTrainer, data: dict[str, Any], targets: list[str], results: dict[str, Any], *, with_index: bool
) -> dict[str, Any]:
    """Writes the folder of a run that is done, with its results on the splits it was not trained on, which it adds."""
    folder = Path(str(trainer.args.output_dir))
    trainer.save_model(_internal_call=True)  # not pushed, as it is not all yet
    trainer.save_state()  # how training went, when its checkpoints are gone
    if trainer.is_world_process_zero():
        text = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
        Path(folder, "recipe.yaml").write_text(f"# {results['command']}\n{text}", encoding="utf-8")
        if with_index:
            processor = trainer.processing_class
            assert processor is not None
            rows = np.asarray(trainer.usable(data["train"], "train_dataset")[0].indices)
            try:
                write_index(trainer.args, processor, data["train"], rows, trainer.training_labels())
            except ValueError as error:
                print(f"No feature index: {error}")
    splits = {split: data[split] for split in _evaluated(data)}
    results = evaluate(trainer, splits, targets, results["unit"], results, folder)
    log_pictures(trainer, sorted(folder.glob("*.png")))
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(f"The model card: {folder / 'README.md'}")
    return results


def after_stage_one(recipe: Recipe, args: ConRConfig, options: dict[str, Any], command: str) -> Recipe:
    """Trains a recipe's first stage, but for what a resumed run has of it; the recipe with its result as model."""
    folder = f"{args.output_dir}/stage-one"
    resumes = args.resume_from_checkpoint not in (None, "false", "False")
    first = stage_one_options(recipe, options) | {"output_dir": folder}
    if resumes and last_complete_checkpoint(folder):
        first["resume_from_checkpoint"] = True
    first_recipe, first_args, first_options = read_recipe(flags_of(first))
    if not (resumes and Path(folder, "results.json").is_file()):
        print("Stage one")
        train(first_recipe, first_args, first_options, f"{command}, stage one")
        PartialState().wait_for_everyone()
        print("\nStage two")
    return replace(recipe, model=folder, pretrained=True, weights=None, stage_one=None)


def stage_one_options(recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """
    The options of a recipe's first stage.

    Raises:
        `ValueError`: if `stage_one` does not hold options by name.
    """
    try:
        changed = parse_yaml(recipe.stage_one or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        changed = None
    if not isinstance(changed, dict):
        raise ValueError(f'stage_one is "{recipe.stage_one}"; it must name options, as in {{reweight: none}}.')
    of_the_second = {"stage_one", "retrain_head", "freeze_backbone", "feature_index"}
    left_out = of_the_second | {"output_dir", "resume_from_checkpoint", "push_to_hub"}
    return {name: value for name, value in options.items() if name not in left_out} | changed
