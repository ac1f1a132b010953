"""A finished run, read back from its folder."""

import csv
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainingArguments

from conr_hf.cli.recipe import Recipe
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.imbalance import Bins
from conr_hf.models.saved import predicts_maps
from conr_hf.training.config.config import ConRConfig

FILES = ("results.json", "predictions.csv", "recipe.yaml")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """
    What a run left behind, and its predictions for one split.

    Args:
        name (`str`): What it is called in pictures and tables.
        folder (`pathlib.Path`): Its folder.
        results (`dict[str, Any]`): What `results.json` holds.
        recipe ([`~conr_hf.cli.recipe.Recipe`]): What was trained on what.
        args ([`ConRConfig`]): How the data was read; settings of `TrainingArguments` are not those of the run.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        targets (`list[str]`): What the T labels are called.
        split (`str`): The split whose predictions these are.
        rows (`np.ndarray` of shape `(N,)`): Rows of it that were predicted.
        labels, predictions (`np.ndarray` of shape `(N, T)`): In label units.
    """

    name: str
    folder: Path
    results: dict[str, Any]
    recipe: Recipe
    args: ConRConfig
    bins: Bins
    targets: list[str]
    split: str
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.float64]

    @property
    def unit(self) -> str:
        """Unit of the labels, or `""`."""
        return str(self.results["unit"])


def read_run(folder: Path, split: str, name: str) -> FinishedRun:
    """
    Reads what `conr-hf train` wrote into `folder`.

    Raises:
        `ValueError`: if it is no such folder, a file of it cannot be read, it has no predictions for `split`, or it
            predicts maps.
    """
    if predicts_maps(str(folder)):
        raise ValueError(
            f'The run "{folder}" predicts maps, of which there is no report: its maps.png, density.png and README.md '
            "show it."
        )
    for file_name in FILES:
        if not (folder / file_name).is_file():
            missing = f"it has no {file_name}" if folder.is_dir() else "there is no such folder"
            raise ValueError(f'"{folder}" is not a run: {missing}. Give a folder that conr-hf train wrote.')
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        lacking = {"unit", "conr", "bins"} - set(results)
        if lacking:
            raise ValueError(f"results.json lacks {', '.join(sorted(lacking))}")
        options = read_yaml(folder / "recipe.yaml")
        recipe = Recipe(**_chosen(options, {field.name for field in fields(Recipe)}))
        bins = Bins.from_dict(results["bins"])
        ours = set(ConRConfig.own_fields()) - {field.name for field in fields(TrainingArguments)}
        args = ConRConfig(str(folder), report_to="none", **_chosen(options, ours))
        with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f'"{folder}" is not a run that can be read: {reason}. Train it again.') from error
    there = list(dict.fromkeys(line["split"] for line in lines))
    lines = [line for line in lines if line["split"] == split]
    if not lines:
        has = f"it has some for {', '.join(there)}; name one with --split" if there else "its data had no other split"
        raise ValueError(f'The run "{folder}" has no predictions for split "{split}"; {has}.')
    columns = {part: [name for name in lines[0] if name.startswith(part)] for part in ("label", "prediction")}
    several = [name.removeprefix("label_") for name in columns["label"] if name != "label"]
    labels, predictions = (
        np.array([[float(line[name]) for name in names] for line in lines]) for names in columns.values()
    )
    return FinishedRun(
        name,
        folder,
        results,
        recipe,
        args,
        bins,
        several or list(args.label_columns),
        split,
        np.array([int(line["row"]) for line in lines]),
        labels,
        predictions,
    )


def training_history(folder: Path) -> tuple[list[dict[str, Any]], float | None]:
    """
    What the trainer logged, and the epoch of the best checkpoint if one was chosen.

    Raises:
        `ValueError`: if the folder has no `trainer_state.json`.
    """
    path = folder / "trainer_state.json"
    if not path.is_file():
        raise ValueError(f'"{folder}" has no trainer_state.json, which tells how training went.')
    state = json.loads(path.read_text(encoding="utf-8"))
    history: list[dict[str, Any]] = state["log_history"]
    best = state.get("best_global_step")
    epochs = [entry["epoch"] for entry in history if best is not None and entry.get("step") == best]
    return history, epochs[0] if epochs else None


def _chosen(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
