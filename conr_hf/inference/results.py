"""What a run leaves behind and shows: the table in the terminal, `results.json`, `predictions.csv`, the plot."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conr_hf.imbalance import Bins
from conr_hf.metrics import shot_masks
from conr_hf.utils.files import write_json
from conr_hf.utils.tables import format_table

Metrics = Mapping[str, Mapping[str, float]]


def table(split: str, metrics: Metrics, baseline: Metrics, unit: str, samples: str = "samples") -> str:
    """
    Errors per shot beside those of the constant median, ready to print; of gaze and depth the usual figures too.

    Args:
        split (`str`): Name of the data.
        metrics (`Mapping`): What `shot_metrics` returned.
        baseline (`Mapping`): The same for always answering the median training label.
        unit (`str`): Unit of the labels, or `""`.
        samples (`str`, *optional*, defaults to `"samples"`): What was counted, `"pixels"` for maps.
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
        rows.append([shot, f"{values['n']:.0f}", *errors[:2], change, *errors[2:], pearson, *more, *angles])
    return format_table(rows)


def write_predictions(
    path: Path,
    targets: Sequence[str],
    bins: Bins,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    """
    Writes `predictions.csv`: split, row id, label, prediction (one column for each target), shot and bin.

    Args:
        path (`pathlib.Path`): The file.
        targets (`Sequence[str]`): Names of the T targets.
        bins ([`~conr_hf.imbalance.Bins`]): Bins of the training labels.
        splits (`Mapping`): For each split its row ids `(N,)`, labels and predictions, both `(N,)` or `(N, T)`.
    """
    labels_of = [f"label_{target}" for target in targets] if len(targets) > 1 else ["label"]
    predictions_of = [f"prediction_{target}" for target in targets] if len(targets) > 1 else ["prediction"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "row", *labels_of, *predictions_of, "shot", "bin"])
        for split, (ids, labels, predictions) in splits.items():
            shots = shot_masks(bins.train_count_of(labels), bins.thresholds)
            columns = zip(ids, labels.reshape(len(ids), -1), predictions.reshape(len(ids), -1), strict=True)
            for index, ((row, label, prediction), bin_index) in enumerate(
                zip(columns, bins.index(labels), strict=True)
            ):
                shot = next(name for name, mask in shots.items() if mask[index])
                where = "/".join(str(part) for part in bin_index)
                writer.writerow([split, row, *map(_short, label), *map(_short, prediction), shot, where])


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes `results.json`, with which a run is finished, and prints what is in its folder."""
    write_json(folder / "results.json", results)
    print(f"\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))}")


def _short(number: float) -> str:
    return f"{number:.7g}"
