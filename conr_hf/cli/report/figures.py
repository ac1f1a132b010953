"""The pictures of one finished run, and the numbers of its features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from conr_hf import plots
from conr_hf.cli.report.finished_run import FinishedRun, training_history
from conr_hf.data.columns import image_at
from conr_hf.data.validation import valid_rows
from conr_hf.imbalance import label_columns
from conr_hf.inference.features import embed
from conr_hf.metrics import constant_median, sample_shots
from conr_hf.metrics.features import (
    distance_pairs,
    knn_error,
    nearest,
    neighbour_bins,
    rank_correlation,
    rare_among_frequent,
)
from conr_hf.models.saved import load_saved
from conr_hf.plots.style import with_unit

MOST_TRAINING = 2_000
WORST = 24
SEED = 0
PLACES = ("latitude", "longitude")


@dataclass
class Section:
    """The part of a report about one run, or about all runs together."""

    name: str
    pictures: list[tuple[str, str]] = field(default_factory=list)  # path without suffix, and caption
    left_out: list[str] = field(default_factory=list)  # what could not be shown, and why
    numbers: dict[str, Any] = field(default_factory=dict)  # MAE by shot, and the results of `metrics.features`


def pictures_of(run: FinishedRun, data: datasets.DatasetDict | None, folder: Path) -> Section:
    """Draws one run into `folder`, PNG and SVG; without its data, pictures of images and features are left out."""
    section = Section(run.name, numbers={"mae": {shot: m["mae"] for shot, m in run.results[run.split].items()}})
    median = constant_median([run.results["conr"]["label_median"]], len(run.labels))
    shown = run.bins, run.labels, run.predictions
    what: dict[str, Any] = {"unit": run.unit, "target": run.targets}
    title = f"{run.name}: error on the {run.split} split"
    plots.density_with_error(*shown, folder / "density", title=title, baseline=median, **what)
    section.pictures.append(("density", f"Training labels per bin, and the error on the {run.split} split in each."))
    title = f"{run.name}: predictions on the {run.split} split"
    plots.predicted_against_true(*shown, folder / "scatter", title=title, **what)
    section.pictures.append(("scatter", f"Predicted against true labels of the {run.split} split, by shot."))
    draw_curves(section, [run], folder, title=f"{run.name}: training")
    if data is not None:
        _draw_worst(section, run, data[run.split], folder)
        columns = set(data["train"].column_names) & set(data[run.split].column_names)
        if run.labels.shape[1] == 1 and columns.issuperset(PLACES):
            _draw_world(section, run, data, folder)
        try:
            _draw_features(section, run, data, folder)
        except ValueError as error:
            section.left_out.append(f"Pictures and numbers of features are left out: {error}")
    return section


def draw_curves(section: Section, runs: Sequence[FinishedRun], folder: Path, title: str) -> None:
    """Draws the training curves of the runs that have a log into `folder`, and adds the picture to the section."""
    histories: dict[str, list[dict[str, Any]]] = {}
    best: dict[str, float] = {}
    for run in runs:
        try:
            histories[run.name], epoch = training_history(run.folder)
            if epoch is not None:
                best[run.name] = epoch
        except ValueError as error:
            section.left_out.append(f"Training curves are left out: {error}")
    if histories:
        plots.training_curves(histories, folder / "curves", unit=runs[0].unit, title=title, best=best)
        line = "Losses, share of rows that are anchors, and error on the validation split, by epoch."
        section.pictures.append(("curves", line))


def _draw_worst(section: Section, run: FinishedRun, rows: datasets.Dataset, folder: Path) -> None:
    error = np.abs(run.predictions - run.labels).mean(axis=1)
    masks = sample_shots(run.labels, run.bins)
    shots = np.select(list(masks.values()), list(masks), default="")
    images, shown = [], []
    for i in np.argsort(-error, kind="stable")[:WORST].tolist():
        try:
            images.append(image_at(rows, int(run.rows[i]), run.args.image_column, image_range=run.args.image_range))
            shown.append(i)
        except (OSError, ValueError, SyntaxError):
            section.left_out.append(f"The image of row {run.rows[i]}, one of the worst, cannot be read.")
    if not shown:
        return
    labels, predictions, names = run.labels[shown], run.predictions[shown], [f"row {run.rows[i]}" for i in shown]
    title = f"{run.name}: greatest errors on the {run.split} split, {with_unit(', '.join(run.targets), run.unit)}"
    span = float(np.ptp(run.labels))
    plots.contact_sheet(
        images, labels, predictions, shots[shown].tolist(), names, folder / "worst", span=span, title=title
    )
    section.pictures.append(("worst", f"The {len(shown)} images of the {run.split} split with the greatest errors."))


def _draw_world(section: Section, run: FinishedRun, data: datasets.DatasetDict, folder: Path) -> None:
    north, east = (np.asarray(data[run.split][column], np.float64)[run.rows] for column in PLACES)
    trained = tuple(np.asarray(data["train"][column], np.float64) for column in PLACES)
    what: dict[str, Any] = {"unit": run.unit, "target": run.targets[0], "training_places": trained}
    title = f"{run.name}: {run.targets[0]} of the {run.split} split on the map"
    plots.world_map(north, east, run.labels[:, 0], run.predictions[:, 0], folder / "map", title=title, **what)
    section.pictures.append(("map", "Truth, prediction and error where they lie; the training images in grey."))


def _draw_features(section: Section, run: FinishedRun, data: datasets.DatasetDict, folder: Path) -> None:
    model, processor = load_saved(str(run.folder))
    usable, found = valid_rows(data["train"], "train", run.args, with_labels=True, with_images=False)
    assert found is not None
    train_labels = label_columns(found)  # (M, T)
    random = np.random.default_rng(SEED)
    drawn = np.sort(random.permutation(len(usable))[:MOST_TRAINING])

    def features_of(split: str, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        column, head = run.args.image_column, run.args.head
        return embed(model, processor, data[split], rows, column, head=head, name=split)

    train_features, kept = features_of("train", usable[drawn].tolist())
    train_labels = train_labels[drawn[kept]]
    features, kept = features_of(run.split, run.rows.tolist())
    if len(kept) < 2:
        raise ValueError(f'split "{run.split}" has {len(kept)} image that can be read, and distances need two.')
    labels = run.labels[kept]
    pairs = distance_pairs(features, labels, seed=SEED)
    neighbours = nearest(features, train_features)
    samples = {"evaluated": len(features), "unreadable": len(run.rows) - len(features)}
    samples |= {"training": len(train_features), "training_of": int(run.bins.train_counts[0].sum())}
    section.numbers |= {
        "samples": samples,
        "rank_correlation": rank_correlation(*pairs),
        "knn_mae": {
            "training": knn_error(run.bins, labels, train_labels, neighbours),
            "leave_one_out": knn_error(run.bins, labels, labels, nearest(features)),
        },
        "rare_among_frequent": rare_among_frequent(run.bins, labels, train_labels, neighbours),
        "neighbour_bins": _rarest_first(
            neighbour_bins(run.bins, labels, train_labels, neighbours), run.results["conr"]["label_median"]
        ),
    }

    both = np.concatenate([train_features, features]), np.concatenate([train_labels, labels])
    evaluated = np.arange(len(both[0])) >= len(train_features)
    what: dict[str, Any] = {"unit": run.unit, "target": run.targets, "split": run.split, "seed": SEED}
    plots.feature_map(*both, evaluated, folder / "features", title=f"{run.name}: features at the head", **what)
    section.pictures.append(("features", "The features at the head as a map, coloured by label."))
    for t, target in enumerate(run.targets):
        name = "distances" if len(run.targets) == 1 else f"distances-{t + 1}"
        near, counts = train_labels[neighbours, t], run.bins.train_counts_of(labels)[:, t]
        title = f"{run.name}: are features ordered as labels are?"
        what = {"unit": run.unit, "title": title, "target": target}
        plots.label_and_feature_distances(*pairs, labels[:, t], near, counts, folder / name, **what)
        line = "Distances of labels against distances of features; and which labels each image lies among."
        section.pictures.append((name, line))


def _rarest_first(table: list[dict[str, Any]], medians: Sequence[float]) -> list[dict[str, Any]]:
    """The few-shot bins by their training labels; of equally rare ones the farthest from the median label first."""

    def key(entry: dict[str, Any]) -> tuple[int, float]:
        edges = entry["bin"]  # None outside all bins, which nothing is farther than
        middle = np.inf if edges is None else abs((edges[0] + edges[1]) / 2 - medians[entry["dimension"]])
        return entry["training_samples"], -middle

    return sorted(table, key=key)
