"""What a run leaves behind and shows: the table in the terminal, `results.json`, `predictions.csv`, the plot."""

import csv
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conr_hf.imbalance import Bins
from conr_hf.metrics import shot_masks

PACKAGES = ("conr-hf", "torch", "torchvision", "transformers", "accelerate", "datasets", "timm", "huggingface_hub")
Metrics = Mapping[str, Mapping[str, float]]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a run stands on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def as_typed(arguments: Sequence[str]) -> str:
    """The command line as one would type it again; tokens are not told."""
    pairs = zip(["", *arguments], arguments, strict=False)
    told = ["..." if re.fullmatch(r"--[\w-]+[_-]token", before) else word for before, word in pairs]
    return shlex.join(["conr-hf", *(re.sub(r"(--[\w-]+[_-]token=).*", r"\1...", word) for word in told)])


def hardware() -> str:
    """The machine in words: its accelerators, or its processor cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def peak_memory() -> int:
    """The most memory that this process has held, in bytes: of the GPU if there is one, else of the machine."""
    if sys.platform == "win32":  # which does not tell
        return 0
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first a header, as columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def bin_name(low: float, high: float, whole: bool) -> str:
    """
    What a bin from `low` up to `high` holds; of whole labels, its first and its last.

    Example:
        >>> bin_name(0, 2.5, whole=False), bin_name(20, 25, whole=True), bin_name(20, 21, whole=True)
        ('0 to 2.5', '20 to 24', '20')
    """
    if whole and low == round(low) and high == round(high):
        return f"{low:g}" if high == low + 1 else f"{low:g} to {high - 1:g}"
    return f"{low:g} to {high:g}"


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


def finish(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes `results.json`, with which a run is finished, and prints what is in its folder."""
    write_json(folder / "results.json", results)
    print(f"\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, at once; a number that JSON does not know is an error."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _short(number: float) -> str:
    return f"{number:.7g}"
