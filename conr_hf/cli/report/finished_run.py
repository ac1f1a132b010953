"""A finished run, read back from its folder."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from transformers import TrainingArguments

from conr_hf.cli.recipe import Recipe
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.imbalance import Bins
from conr_hf.models.saved import predicts_maps
from conr_hf.training.config.config import ConRConfig
from conr_hf.utils.run_folder import PREDICTIONS, RECIPE, RESULTS, read_json


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """
    A finished run, and its predictions for one split.

    Args:
        name (`str`): Its name in pictures and tables.
        folder (`pathlib.Path`): Its folder.
        results (`dict[str, Any]`): The content of `results.json`.
        recipe ([`~conr_hf.cli.recipe.Recipe`]): Its model and data.
        args ([`ConRConfig`]): How the data was read; settings of `TrainingArguments` are not those of the run.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        targets (`list[str]`): Names of the T labels.
        split (`str`): The split of the predictions.
        rows (`np.ndarray` of shape `(N,)`): Row ids of the predictions.
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
    Reads a folder that `conr-hf train` wrote.

    Raises:
        `ValueError`: if it is no such folder, a file of it cannot be read, it has no predictions for `split`, or its
            model predicts maps.
    """
    if predicts_maps(str(folder)):
        raise ValueError(
            f'The run "{folder}" predicts maps, for which there is no report. See its maps.png, density.png and '
            "README.md."
        )
    for file_name in (RESULTS, PREDICTIONS, RECIPE):
        if not (folder / file_name).is_file():
            missing = f"it has no {file_name}" if folder.is_dir() else "there is no such folder"
            raise ValueError(f'"{folder}" is not a run: {missing}. Give a folder that conr-hf train wrote.')
    try:
        results = read_json(folder / RESULTS)
        lacking = {"unit", "conr", "bins"} - set(results)
        if lacking:
            raise ValueError(f"{RESULTS} lacks {', '.join(sorted(lacking))}")
        options = read_yaml(folder / RECIPE)
        recipe = Recipe(**_chosen(options, {field.name for field in fields(Recipe)}))
        bins = Bins.from_dict(results["bins"])
        ours = set(ConRConfig.own_fields()) - {field.name for field in fields(TrainingArguments)}
        args = ConRConfig(str(folder), report_to="none", **_chosen(options, ours))
        table = pd.read_csv(
            folder / PREDICTIONS, dtype={"split": str}, keep_default_na=False, float_precision="round_trip"
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f'"{folder}" is not a run that can be read: {reason}. Train it again.') from error
    rows, there = table[table["split"] == split], table["split"].unique()
    if rows.empty:
        has = (
            f"it has some for {', '.join(there)}; name one with --split"
            if len(there)
            else "its data had no other split"
        )
        raise ValueError(f'The run "{folder}" has no predictions for split "{split}"; {has}.')
    labels, predictions = (rows.filter(regex=f"^{kind}") for kind in ("label", "prediction"))
    several = [name.removeprefix("label_") for name in labels if name != "label"]
    return FinishedRun(
        name,
        folder,
        results,
        recipe,
        args,
        bins,
        several or list(args.label_columns),
        split,
        rows["row"].to_numpy(np.int64),
        labels.to_numpy(np.float64),
        predictions.to_numpy(np.float64),
    )


def training_history(folder: Path) -> tuple[list[dict[str, Any]], float | None]:
    """
    The trainer's log, and the epoch of the best checkpoint if one was chosen.

    Raises:
        `ValueError`: if the folder has no `trainer_state.json`.
    """
    path = folder / "trainer_state.json"
    if not path.is_file():
        raise ValueError(f'"{folder}" has no trainer_state.json, which holds the log of the training.')
    state = read_json(path)
    history: list[dict[str, Any]] = state["log_history"]
    best = state.get("best_global_step")
    epochs = [entry["epoch"] for entry in history if best is not None and entry.get("step") == best]
    return history, epochs[0] if epochs else None


def _chosen(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
