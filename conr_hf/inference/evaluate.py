"""Errors of a trained model on each split, with tables, predictions and pictures."""

from pathlib import Path
from typing import Any

import numpy as np

from conr_hf.data.columns import count_labels, label_names
from conr_hf.data.map_statistics import has_maps
from conr_hf.inference.conformal import SMALLEST, coverage_table, make_intervals, write_intervals
from conr_hf.inference.evaluate_dense import evaluate_maps
from conr_hf.inference.results import print_fit, table, write_predictions
from conr_hf.metrics import constant_median, fit
from conr_hf.metrics.gaze import label_errors
from conr_hf.plots import density_with_error
from conr_hf.training.config.validation import check_label_kind
from conr_hf.training.description import describe_shots
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.files import write_json
from conr_hf.utils.run_folder import INTERVALS, MAPS, RESULTS


def evaluate(
    trainer: ConRTrainer,
    splits: dict[str, Any],
    targets: list[str],
    unit: str,
    results: dict[str, Any],
    folder: Path | None,
    unlabelled: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Predicts the splits and prints their tables; writes results, predictions and plot if a folder is given. Rows of
    `unlabelled` splits have predictions and no errors.
    """
    columns = trainer.args.label_columns
    for split, rows in splits.items():
        check_label_kind(type(trainer.model).__name__, trainer.head, has_maps(rows, columns, split), columns)
    bins, recorded = trainer.bins, trainer.bins.to_dict()
    parts = ("edges", "train_counts", "thresholds")
    results = {**results, "bins": {part: recorded[part] for part in parts}, "baseline_median": {}, "fit": {}}
    if trainer.is_map:
        for split in (unlabelled or {}) if trainer.is_world_process_zero() else ():
            print(f"\nSplit {split} has no labels and is left out; conr-hf predict writes its maps.")
        return evaluate_maps(trainer, splits, targets[0], unit, results, folder)
    without_labels: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, rows in (unlabelled or {}).items():
        values = np.asarray(trainer.predict(rows, metric_key_prefix=split).predictions)
        without_labels[split] = np.asarray(trainer.data.load_split(rows, split)[0].indices), values
    predictions: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    medians: dict[str, np.ndarray] = {}
    outputs = trainer.head.weight.shape[0]
    for split, rows in splits.items():
        if (width := count_labels(rows, columns, split)) != outputs:
            raise ValueError(
                f'The model predicts {outputs} values, but a label of split "{split}" is {width} '
                f"({', '.join(label_names(columns, width))}). Name the labels with label_columns."
            )
        output = trainer.predict(rows, metric_key_prefix=split)
        labels = np.asarray(output.label_ids)
        indices = np.asarray(trainer.data.load_split(rows, split)[0].indices)
        predictions[split] = indices, labels, trainer.resolved.clip(np.asarray(output.predictions))
        medians[split] = constant_median([trainer.resolved.label_median], len(labels)).reshape(labels.shape)
        results[split] = label_errors(predictions[split][2], labels, bins, columns)
        results["baseline_median"][split] = label_errors(medians[split], labels, bins, columns)
        results["fit"][split] = fit(predictions[split][2], labels)
    if not trainer.is_world_process_zero():
        return results
    for split in splits:
        print("\n" + table(split, results[split], results["baseline_median"][split], unit) + "\n")
        print_fit(split, results, targets)
    for split, (indices, _) in without_labels.items():
        print(f"\nSplit {split} has no labels: its {len(indices):,} rows are predicted, without errors.")
    if (warning := describe_shots(bins, unit)) is not None:
        print(f"\n{warning}")
    if folder is not None:
        write_predictions(folder / "predictions.csv", targets, bins, predictions, without_labels)
        for other in (INTERVALS, MAPS):  # of another run
            Path(folder, other).unlink(missing_ok=True)
        if "validation" in splits and len(predictions["validation"][0]) >= SMALLEST:
            bounds = trainer.resolved.label_min, trainer.resolved.label_max
            ordered = {"validation": predictions["validation"], **predictions}
            intervals = make_intervals(bins, ordered, targets, unit, bounds=bounds)
            write_intervals(folder, intervals)
            print("\n" + coverage_table(intervals))
        elif "validation" in splits:
            print(f"\nNo prediction intervals: they need {SMALLEST} validation images or more.")
        if splits:
            split = list(splits)[-1]
            title = f"{', '.join(targets)}: error on the {split} split"
            texts: dict[str, Any] = {"unit": unit, "title": title, "target": targets}
            try:
                density_with_error(
                    bins, *predictions[split][1:], folder / "density.png", baseline=medians[split], **texts
                )
            except ImportError as error:
                print(f"No plot: {error}")
        write_json(folder / RESULTS, results)
    return results
