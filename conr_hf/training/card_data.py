"""What the model card says of a run: from its files, or from a trainer's data, settings and log."""

import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerState

from conr_hf.hub.model_card import TrainingSummary, read_run
from conr_hf.hub.provenance import hub_ids
from conr_hf.metrics import SHOTS
from conr_hf.metrics.gaze import label_errors
from conr_hf.models.peft import has_adapter
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.conr_state import load_state
from conr_hf.training.data_module import DataModule
from conr_hf.training.refit import log_since_refit, refit_facts
from conr_hf.utils.environment import hardware, versions

# Of the machine or the moment, and no part of a recipe.
_OF_MACHINE = (
    *("use_cpu", "dataloader_pin_memory", "disable_tqdm", "local_rank", "logging_dir", "run_name"),
    *("overwrite_output_dir", "resume_from_checkpoint"),
)
_OPTIONS = (
    *("num_train_epochs", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "metric_for_best_model"),
)


def training_summary(
    folder: Path, model: PreTrainedModel, args: ConRConfig, state: TrainerState, data: DataModule, own_loss: bool
) -> TrainingSummary:
    """
    What a card is written from: the files that `conr-hf train` wrote of this training into `folder`, or else what the
    trainer knows. `model` is unwrapped; `own_loss`: it was trained with a loss of the user's own.
    """
    results = training_facts(model, args, state, data, own_loss)
    facts = {"conr": results.get("conr"), "steps": state.global_step, "seed": args.seed}
    if "conr" in results and (run := _written(folder, facts)):
        return run
    if "conr" in results:
        results |= {"bins": data.bins.to_dict(), **_errors(args, state, data)}
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    return TrainingSummary(folder, results, config, asdict(state), {}, has_adapter(model))


def training_facts(
    model: PreTrainedModel, args: ConRConfig, state: TrainerState, data: DataModule, own_loss: bool
) -> dict[str, Any]:
    """What a trainer knows of its run, under the keys of `results.json`; the arguments are [`training_summary`]'s."""
    source, benchmark = model.config._name_or_path, data.benchmark()
    recipe: dict[str, Any] = {"model": source} if source else {}
    recipe |= {"benchmark": benchmark.name} if benchmark is not None else {}
    recipe |= _options(args)
    ids = hub_ids(model=source, pretrained=True, weights=None, data=None)
    results: dict[str, Any] = {"recipe": recipe, "hub_ids": ids}
    if data.train_dataset is not None or load_state(source) is not None:
        results["conr"] = asdict(data.resolved) | ({"base_loss": "own"} if own_loss else {})
    results |= {"seed": args.seed, "versions": versions(), "unit": data.label_unit()}
    results |= {} if data.transform is None else {"own_transform": True}
    if state.global_step:
        seconds = next((log["train_runtime"] for log in reversed(state.log_history) if "train_runtime" in log), None)
        results |= {"steps": state.global_step, "hardware": hardware(), "train_seconds": seconds, **refit_facts(state)}
    return results


def _options(args: ConRConfig) -> dict[str, Any]:
    """The options of a recipe that repeats a run: ours, the usual ones, and those that are not at their defaults."""
    options = args.to_dict()
    defaults = {field.name: None if field.default is MISSING else field.default for field in fields(args)}
    names = [*args.own_fields(), *_OPTIONS, "seed", "output_dir"]
    names += [name for name, value in options.items() if value != defaults.get(name) and (value or defaults.get(name))]
    kept = {name: options[name] for name in dict.fromkeys(names) if name in options and name not in _OF_MACHINE}
    plain = (bool, int, float, str, list)
    return {name: value for name, value in kept.items() if isinstance(value, plain) and not name.endswith("_token")}


def _written(folder: Path, of_run: dict[str, Any]) -> TrainingSummary | None:
    """What `conr-hf train` wrote of this training, and not of another into the same folder."""
    try:
        run = read_run(folder)
    except ValueError:
        return None
    return run if {**run.results, **json.loads(json.dumps(of_run))} == run.results else None


def _errors(args: ConRConfig, state: TrainerState, data: DataModule) -> dict[str, Any]:
    """Errors of the evaluation sets as `results.json` has them, from the log."""
    sets = data.eval_dataset if isinstance(data.eval_dataset, dict) else {"": data.eval_dataset}
    errors: dict[str, Any] = {"baseline_median": {}}
    for name, rows in sets.items():
        prefix = f"eval_{name}_" if name else "eval_"
        logged = [entry for entry in state.log_history if f"{prefix}mae" in entry]
        if args.load_best_model_at_end and state.best_global_step is not None:
            logged = [entry for entry in logged if entry["step"] == state.best_global_step] or logged
        after_refit = [entry for entry in log_since_refit(state) if f"{prefix}mae" in entry]
        logged = after_refit[:1] or logged
        if not logged:
            continue
        split = name or "validation"
        prefixes = {shot: prefix if shot == "all" else f"{prefix}{shot}_" for shot in SHOTS}
        errors[split] = {
            shot: {key.removeprefix(start): value for key, value in logged[-1].items() if key.startswith(start)}
            for shot, start in prefixes.items()
            if f"{start}bmae" in logged[-1]
        }
        labels = None if rows is None else data.load_split(rows, split)[1]
        if labels is not None:
            median = np.broadcast_to(data.resolved.label_median, labels.shape)
            baseline = label_errors(median, labels, data.bins, args.label_columns)
        errors["baseline_median"][split] = {} if labels is None else baseline
    return errors
