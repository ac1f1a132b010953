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
    """A finished run, and its predictions for one split."""

    name: str  # in pictures and tables
    folder: Path
    results: dict[str, Any]  # the content of `results.json`
    recipe: Recipe
    args: ConRConfig  # how the data was read; settings of `TrainingArguments` are not those of the run
    bins: Bins
    targets: list[str]
    split: str  # that of the predictions
    rows: npt.NDArray[np.int64]  # row ids of the predictions, (N,)
    labels: npt.NDArray[np.float64]  # in label units, (N, T)
    predictions: npt.NDArray[np.float64]  # in label units, (N, T)

    @property
    def unit(self) -> str:
        return str(self.results["unit"])


def read_run(folder: Path, split: str, name: str) -> FinishedRun:
    """Reads a folder that `conr-hf train` wrote, with the predictions of `split`; models of maps are refused."""
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
        path = folder / PREDICTIONS
        table = pd.read_csv(path, dtype={"split": str}, keep_default_na=False, float_precision="round_trip")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f'"{folder}" is not a run that can be read: {reason}. Train it again.') from error
    rows, there = table[table["split"] == split], table["split"].unique()
    if rows.empty:
        others = f"it has some for {', '.join(there)}; name one with --split"
        mend = others if len(there) else "its data had no other split"
        raise ValueError(f'The run "{folder}" has no predictions for split "{split}"; {mend}.')
    if split not in results:
        raise ValueError(
            f'The run "{folder}" predicted split "{split}" without labels, so there is no error to report. Name '
            "another with --split, as in --split validation."
        )
    labels, predictions = (rows.filter(regex=f"^{kind}") for kind in ("label", "prediction"))
    several = [name.removeprefix("label_") for name in labels if name != "label"]
    targets = several or list(args.label_columns)
    numbers = rows["row"].to_numpy(np.int64), labels.to_numpy(np.float64), predictions.to_numpy(np.float64)
    return FinishedRun(name, folder, results, recipe, args, bins, targets, split, *numbers)


def training_history(folder: Path) -> tuple[list[dict[str, Any]], float | None]:
    """The trainer's log, and the epoch of the best checkpoint if one was chosen."""
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
