"""Results of an evaluation: the table in the terminal, `results.json` and `predictions.csv`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from conr_hf.imbalance import Bins
from conr_hf.metrics import SHOTS, sample_shots
from conr_hf.metrics.fit import describe_fit
from conr_hf.utils.tables import format_table

Metrics = Mapping[str, Mapping[str, float]]


def table(split: str, metrics: Metrics, baseline: Metrics, unit: str, samples: str = "samples") -> str:
    """
    Errors per shot, as `shot_metrics` returns them, beside the `baseline` of the constant median, ready to print; for
    gaze and depth the usual figures too. `samples` is what `n` counts, `"pixels"` for maps.
    """
    suffix = f" [{unit}]" if unit else ""
    figures = [f"MAE{suffix}", "constant median", "change", f"GM{suffix}", f"bMAE{suffix}", "Pearson"]
    of_maps = {"rmse": f"RMSE{suffix}", "abs_rel": "AbsRel", "delta1": "delta1"}
    of_maps = {name: title for name, title in of_maps.items() if name in metrics["all"] and samples == "pixels"}
    of_gaze = ["angle [deg]", "constant median"] if "angular_error" in metrics["all"] else []
    rows = [[split, samples, *figures, *of_maps.values(), *of_gaze]]
    for shot, values in metrics.items():
        ours, theirs = values["mae"], baseline[shot]["mae"]
        change = f"{100 * (ours / theirs - 1):+.0f} %" if theirs > 0 else ""
        pearson = f"{values['pearson']:.3f}" if "pearson" in values else ""
        errors = [f"{value:.4g}" for value in (ours, theirs, values["gm"], values["bmae"])]
        more = [f"{values[name]:.4g}" if name == "rmse" else f"{values[name]:.3f}" for name in of_maps]
        angles = [f"{some['angular_error']:.4g}" for some in (values, baseline[shot])] if of_gaze else []
        rows.append([SHOTS[shot], f"{values['n']:.0f}", *errors[:2], change, *errors[2:], pearson, *more, *angles])
    return format_table(rows)


def write_predictions(
    path: Path,
    targets: Sequence[str],
    bins: Bins,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    unlabelled: Mapping[str, tuple[np.ndarray, np.ndarray]] = MappingProxyType({}),
) -> None:
    """
    Writes `predictions.csv`: split, row id, label, prediction (one column for each target), shot and bin. Each split
    has its row ids, `(N,)`, labels and predictions, both `(N,)` or `(N, T)`; `unlabelled` ones have no labels, and
    empty cells instead.
    """
    endings = [f"_{target}" for target in targets] if len(targets) > 1 else [""]
    numbers = [f"{kind}{ending}" for kind in ("label", "prediction") for ending in endings]
    tables = []
    for split, (ids, labels, predictions) in splits.items():
        table = pd.DataFrame(np.column_stack([labels, predictions]), columns=numbers)
        table.insert(0, "row", ids)
        table.insert(0, "split", split)
        shots = sample_shots(labels, bins)
        table["shot"] = np.select(list(shots.values()), list(shots), default="")
        table["bin"] = ["/".join(map(str, index)) for index in bins.index(labels)]
        tables.append(table)
    for split, (ids, predictions) in unlabelled.items():
        table = pd.DataFrame(predictions.reshape(len(ids), -1), columns=numbers[len(targets) :])
        tables.append(table.assign(split=split, row=ids))
    columns = ["split", "row", *numbers, "shot", "bin"]
    whole = pd.concat(tables) if tables else pd.DataFrame(columns=columns)
    whole.reindex(columns=columns).to_csv(path, index=False, float_format="%.7g")


def print_fit(split: str, results: Mapping[str, Any], targets: list[str]) -> None:
    """Prints how far predictions follow the labels, and a warning where they do not."""
    text, problem = describe_fit(results["fit"][split], results[split]["all"]["mae"], targets, results["unit"])
    print(text)
    if problem is not None:
        print(f"Warning: on {split}, {problem}.")
