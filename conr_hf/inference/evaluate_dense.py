"""How good a model of maps is on whole data sets, of which no two maps need be in memory at once; and its pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from conr_hf.data.columns import label_values
from conr_hf.data.images import to_image
from conr_hf.data.label_maps import to_map
from conr_hf.imbalance import Bins
from conr_hf.inference.predict_dense import predicted_map
from conr_hf.inference.results import table, write_results
from conr_hf.metrics import StreamedErrors
from conr_hf.plots import density_with_pixel_error, map_pictures
from conr_hf.training.trainer import ConRTrainer
from conr_hf.utils.run_folder import INTERVALS, MAPS, PICTURE

MOST_SHOWN = 6


@dataclass(frozen=True, eq=False)
class MapErrors:
    """
    Errors on the maps of a split.

    Args:
        model ([`~conr_hf.metrics.StreamedErrors`]): The model's.
        median ([`~conr_hf.metrics.StreamedErrors`]): Those of always answering the median training label.
        shown (`list[int]`): Rows that stand for the split in pictures.
    """

    model: StreamedErrors
    median: StreamedErrors
    shown: list[int]


def evaluate_maps(
    trainer: ConRTrainer,
    splits: dict[str, datasets.Dataset],
    target: str,
    unit: str,
    results: dict[str, Any],
    folder: Path | None,
) -> dict[str, Any]:
    """
    Predicts the splits and prints their tables; writes results and pictures if a folder is given.

    Args:
        trainer ([`ConRTrainer`]): Its model predicts maps.
        splits (`dict[str, datasets.Dataset]`): Rows with an image and a map, by the split's name.
        target (`str`): What is predicted.
        unit (`str`): Unit of the labels, or `""`.
        results (`dict`): What `results.json` is to hold beside the errors; `baseline_median` is there, and empty.
        folder (`pathlib.Path`, *optional*): Where to write.

    Returns:
        `dict`: `results` with the errors.
    """
    errors: dict[str, MapErrors] = {}
    for split, rows in splits.items():
        errors[split] = map_errors(trainer, rows, split)
        results[split] = errors[split].model.compute()
        results["baseline_median"][split] = errors[split].median.compute()
    if not trainer.is_world_process_zero():
        return results
    for split in splits:
        print("\n" + table(split, results[split], results["baseline_median"][split], unit, samples="pixels"))
    if folder is not None:
        for other in ("predictions.csv", INTERVALS):  # of another run
            Path(folder, other).unlink(missing_ok=True)
        if splits:
            split = list(splits)[-1]
            try:
                draw_maps(trainer, errors[split], splits[split], split, target, unit, folder)
            except ImportError as error:
                print(f"No pictures: {error}")
        print("\nOf maps there are no predictions.csv and no prediction intervals; conr-hf predict writes the maps.")
        write_results(folder, results)
    return results


def streamed_errors(trainer: ConRTrainer, dataset: datasets.Dataset, split: str) -> StreamedErrors:
    """
    Errors by bin on the maps of a data set, of which no two batches are in memory at once. (`predict` returns all
    predictions.)

    Args:
        trainer ([`ConRTrainer`]): Has the model.
        dataset (`datasets.Dataset`): Rows with an image and a map.
        split (`str`): What it is called.
    """
    with trainer.ema.applied():
        trainer.evaluation_loop(trainer.get_test_dataloader(dataset), "Evaluation", metric_key_prefix=split)
    assert trainer.metrics.streamed is not None
    return trainer.metrics.streamed


def map_errors(trainer: ConRTrainer, dataset: datasets.Dataset, split: str) -> MapErrors:
    """
    Predicts a split, and gathers its errors and those of the constant median.

    Args:
        trainer ([`ConRTrainer`]): Its model predicts maps.
        dataset (`datasets.Dataset`): Rows with an image and a map.
        split (`str`): What it is called.
    """
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
    Which maps to show: evenly over their mean labels, in this order, the one with the rarest pixels among them.

    Args:
        means (`list[float]`): Mean label of each map.
        rarest (`list[tuple[int, int]]`): What is less, the rarer the rarest pixels of each map are.

    Example:
        >>> chosen([3.0, 1.0, 2.0, 9.0, 4.0, 5.0, 8.0, 7.0], [(9, 0)] * 7 + [(1, 0)])
        [1, 2, 4, 7, 6, 3]
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
    """
    Draws `density.png` and `maps.png` into `folder`.

    Raises:
        `ImportError`: Without matplotlib.
    """
    tested, means = errors.model.of_bins()
    density_with_pixel_error(
        trainer.bins,
        tested,
        means,
        folder / PICTURE,
        unit=unit,
        title=f"{target}: error on the {split} split",
        baseline=errors.median.of_bins()[1],
        outside=int(errors.model.compute()["all"]["n"]) - int(tested.sum()),
        target=target,
    )
    if trainer.is_sharded:
        return  # one process has not all of the model
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    processor: Any = trainer.processing_class
    images, labels, predictions = [], [], []
    for row in errors.shown:
        images.append(to_image(dataset[row][trainer.args.image_column]))
        labels.append(_label_map(trainer, dataset[row], split))
        predictions.append(predicted_map(model, processor, images[-1], labels[-1].shape))
    map_pictures(
        images,
        labels,
        predictions,
        folder / MAPS,
        unit=unit,
        title=f"{target}: maps of the {split} split",
        target=target,
        names=[f"row {row}" for row in errors.shown],
    )


def _label_maps(
    trainer: ConRTrainer, dataset: datasets.Dataset, split: str
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The usable rows and their maps; no image is read, but by a transform, which needs its columns."""
    indices = [int(row) for row in trainer.data.load_split(dataset, split)[0].indices]
    if dataset.format["type"] != "custom":
        dataset = dataset.select_columns(trainer.args.label_columns)
    for row in indices:
        yield row, _label_map(trainer, dataset[row], split)


def _label_map(trainer: ConRTrainer, row: Any, split: str) -> npt.NDArray[np.float32]:
    cell = label_values(row, trainer.args.label_columns, split)[0]
    return to_map(cell, trainer.args.map_scale, trainer.args.map_invalid)


def _rarity(bins: Bins, values: npt.NDArray[np.float32]) -> tuple[int, int]:
    """How many training labels share the bin of the rarest values, and, negative, how many such values there are."""
    counts = bins.train_count_of(values)
    return int(counts.min()), -int((counts == counts.min()).sum())
