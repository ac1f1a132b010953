"""Errors of a model of maps on whole data sets, with one batch of maps in memory at a time; and its pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from conr_hf.data.columns import image_at, label_values
from conr_hf.data.label_maps import to_map
from conr_hf.imbalance import Bins
from conr_hf.inference.predict_dense import predicted_map
from conr_hf.inference.results import print_fit, table
from conr_hf.metrics import StreamedErrors
from conr_hf.plots import density_with_pixel_error, map_pictures
from conr_hf.training.description import describe_shots
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.files import write_json
from conr_hf.utils.run_folder import INTERVALS, MAPS, PICTURE, RESULTS

MOST_SHOWN = 6


@dataclass(frozen=True, eq=False)
class MapErrors:
    """Errors on the maps of a split."""

    model: StreamedErrors
    median: StreamedErrors  # of always predicting the median training label
    shown: list[int]  # rows to draw


def evaluate_maps(
    trainer: ConRTrainer,
    splits: dict[str, datasets.Dataset],
    target: str,
    unit: str,
    results: dict[str, Any],
    folder: Path | None,
) -> dict[str, Any]:
    """
    Predicts the maps of the splits, adds their errors to `results` and prints their tables; writes results and
    pictures if a folder is given.
    """
    errors: dict[str, MapErrors] = {}
    for split, rows in splits.items():
        errors[split] = map_errors(trainer, rows, split)
        results[split] = errors[split].model.compute()
        results["baseline_median"][split] = errors[split].median.compute()
        results["fit"][split] = errors[split].model.fit()
    if not trainer.is_world_process_zero():
        return results
    for split in splits:
        print("\n" + table(split, results[split], results["baseline_median"][split], unit, samples="pixels") + "\n")
        print_fit(split, results, [target])
    if (warning := describe_shots(trainer.bins, unit, "pixels")) is not None:
        print(f"\n{warning}")
    if folder is not None:
        for other in ("predictions.csv", INTERVALS):  # of another run
            Path(folder, other).unlink(missing_ok=True)
        if splits:
            split = list(splits)[-1]
            try:
                draw_maps(trainer, errors[split], splits[split], split, target, unit, folder)
            except ImportError as error:
                print(f"No pictures: {error}")
        print("\nMaps have no predictions.csv and no prediction intervals; conr-hf predict writes them as files.")
        write_json(folder / RESULTS, results)
    return results


def streamed_errors(trainer: ConRTrainer, dataset: datasets.Dataset, split: str) -> StreamedErrors:
    """Errors by bin on the maps of a data set, without keeping the predictions in memory, as `predict` does."""
    with trainer.ema.applied():
        trainer.evaluation_loop(trainer.get_test_dataloader(dataset), "Evaluation", metric_key_prefix=split)
    assert trainer.metrics.streamed is not None
    return trainer.metrics.streamed


def map_errors(trainer: ConRTrainer, dataset: datasets.Dataset, split: str) -> MapErrors:
    """Errors of the model and of the constant median on a split, and which of its rows to draw."""
    model = streamed_errors(trainer, dataset, split)
    median, rows, means, rarest = StreamedErrors(trainer.bins), [], [], []
    for row, labels in _label_maps(trainer, dataset, split):
        median.update(np.full(labels.shape, trainer.resolved.label_median[0]), labels)
        values = labels[~np.isnan(labels)]
        if len(values):
            rows.append(row)
            means.append(float(values.mean(dtype=np.float64)))
            rarest.append(_rarity(trainer.bins, values))
    return MapErrors(model, median, [rows[place] for place in chosen(means, rarest)])


def chosen(means: list[float], rarest: list[tuple[int, int]]) -> list[int]:
    """
    Which maps to draw: spread evenly over their mean labels, in ascending order, and including the one with the rarest
    pixels, whose entry in `rarest` is the smallest.
    """
    order = np.argsort(means, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(MOST_SHOWN, len(order))).round().astype(int))
    if len(order) > len(places):
        rare = min(range(len(order)), key=lambda place: rarest[order[place]])
        if rare not in places:
            places[np.abs(places - rare).argmin()] = rare
    return [int(index) for index in order[places]]


def draw_maps(
    trainer: ConRTrainer,
    errors: MapErrors,
    dataset: datasets.Dataset,
    split: str,
    target: str,
    unit: str,
    folder: Path,
) -> None:
    """Draws `density.png` and `maps.png` into `folder`."""
    texts: dict[str, Any] = {"unit": unit, "target": target}
    tested, means = errors.model.of_bins()
    outside, median = int(errors.model.compute()["all"]["n"] - tested.sum()), errors.median.of_bins()[1]
    title = f"{target}: error on the {split} split"
    density_with_pixel_error(
        trainer.bins, tested, means, folder / PICTURE, title=title, baseline=median, outside=outside, **texts
    )
    if trainer.is_sharded:
        return  # no process has the whole model
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    processor: Any = trainer.processing_class
    images, labels, predictions = [], [], []
    for row in errors.shown:
        images.append(image_at(dataset, row, trainer.args.image_column, **trainer.data.read_options()))
        labels.append(_label_map(trainer, dataset[row], split))
        predictions.append(trainer.resolved.clip(predicted_map(model, processor, images[-1], labels[-1].shape)))
    names, title = [f"row {row}" for row in errors.shown], f"{target}: maps of the {split} split"
    images = [image.convert("RGB") for image in images]
    map_pictures(images, labels, predictions, folder / MAPS, title=title, names=names, **texts)


def _label_maps(
    trainer: ConRTrainer, dataset: datasets.Dataset, split: str
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The usable rows and their maps; images are read only where the data set has a transform, which may need them."""
    indices = [int(row) for row in trainer.data.load_split(dataset, split)[0].indices]
    if dataset.format["type"] != "custom":
        dataset = dataset.select_columns(trainer.args.label_columns)
    for row in indices:
        yield row, _label_map(trainer, dataset[row], split)


def _label_map(trainer: ConRTrainer, row: Any, split: str) -> npt.NDArray[np.float32]:
    cell = label_values(row, trainer.args.label_columns, split)[0]
    return to_map(cell, trainer.args.map_scale, trainer.args.map_invalid)


def _rarity(bins: Bins, values: npt.NDArray[np.float32]) -> tuple[int, int]:
    """Number of training labels in the bin of the rarest values, and minus the number of such values."""
    counts = bins.train_count_of(values)
    return int(counts.min()), -int((counts == counts.min()).sum())
