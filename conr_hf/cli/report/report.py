"""`conr-hf report`: pictures of finished runs, and numbers on their features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from conr_hf import plots
from conr_hf.cli.recipe_data import load_data, shuffled
from conr_hf.cli.report.figures import MOST_TRAINING, Section, draw_curves, pictures_of
from conr_hf.cli.report.finished_run import FinishedRun, read_run
from conr_hf.cli.report.page import neighbour_rows, neighbour_title, number_rows, page
from conr_hf.data.columns import read_labels
from conr_hf.data.streaming import materialize
from conr_hf.imbalance import label_columns
from conr_hf.plots.style import new_figure
from conr_hf.utils.files import check_writable, write_json
from conr_hf.utils.tables import format_table


def report(folders: Sequence[str], split: str, output: str | None) -> None:
    """
    Writes pictures (PNG and SVG), `report.json` and `index.md` of finished runs, and prints the numbers.

    The pictures of a single run are written to the report's folder; of several runs, each has a folder of its name,
    and pictures of all of them together are beside these. Features are those of all images of the split and of at most
    2,000 training images, drawn with a fixed seed. The report's folder is `output` or `report` in the first run.
    """
    try:
        new_figure(1, 1)
    except ImportError as error:
        raise ValueError(str(error)) from error
    runs = [read_run(Path(folder), split, name) for name, folder in _named(folders).items()]
    _check_comparable(runs)
    place = Path(output) if output is not None else Path(folders[0], "report")
    parts = [""] if len(runs) == 1 else [f"{run.name}/" for run in runs]
    for part in parts:
        check_writable(str(place / part))

    sections = []
    for i, part in enumerate(parts):
        runs[i], data, reason = _with_data(runs[i])
        sections.append(pictures_of(runs[i], data, place / part))
        sections[-1].left_out += [reason] if reason else []
    together = _together(runs, place) if len(runs) > 1 else None
    all_sections = [*sections, together] if together else sections
    numbers = {section.name: section.numbers for section in sections}
    unit, targets = runs[0].unit, runs[0].targets
    rows = number_rows(numbers, split, unit)
    of_runs = {
        run.name: {"folder": str(run.folder), **section.numbers, "left_out": section.left_out}
        for run, section in zip(runs, sections, strict=True)
    }
    write_json(place / "report.json", {"schema": 1, "split": split, "unit": unit, "targets": targets, "runs": of_runs})
    text = page(together, list(zip(sections, parts, strict=True)), rows, targets, split, unit)
    (place / "index.md").write_text(text, encoding="utf-8")

    print("\n" + format_table(rows))
    for section in sections:
        if section.numbers.get("neighbour_bins"):
            table = section.numbers["neighbour_bins"]
            print(f"\n{section.name}. {neighbour_title(table)}")
            print(format_table(neighbour_rows(table, targets, unit)))
    for section in all_sections:
        for sentence in section.left_out:
            print(f"\n{section.name}: {sentence}")
    count = sum(len(section.pictures) for section in all_sections)
    print(f"\n{count} pictures written to {place}, as PNG and SVG; {place / 'index.md'} shows them.")


def _named(folders: Sequence[str]) -> dict[str, str]:
    """The runs by the shortest ends of their paths that tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    twice = [folder for i, folder in enumerate(folders) if parts[i] in parts[:i]]
    if twice:
        raise ValueError(f'The run "{twice[0]}" is given twice.')
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return {"-".join(part[-depth:]): folder for part, folder in zip(parts, folders, strict=True)}


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        same = np.array_equal(run.rows, first.rows) and np.array_equal(run.labels, first.labels)
        if not same or run.unit != first.unit:
            raise ValueError(
                f'"{run.folder}" was evaluated on other labels of split "{run.split}" than "{first.folder}". Report '
                "runs on different data one by one."
            )


def _with_data(run: FinishedRun) -> tuple[FinishedRun, DatasetDict | None, str]:
    """The run with its target names, its data, and a sentence if the data are missing or have changed."""
    try:
        data, targets, _ = load_data(run.recipe, run.args)
        if run.split not in data or "train" not in data:
            raise ValueError(f'The data has no split "{run.split if "train" in data else "train"}" any more.')
        if run.recipe.streaming:  # as many rows as are drawn from other data
            data["train"] = materialize(shuffled(data["train"], run.recipe, run.args).take(MOST_TRAINING))
        _check_same_labels(run, data)
    except ValueError as error:
        return run, None, f"Pictures and numbers that need the run's data are left out: {error}"
    return replace(run, targets=targets), data, ""


def _check_same_labels(run: FinishedRun, data: DatasetDict) -> None:
    rows = data[run.split]
    if run.rows.max() >= len(rows):
        raise ValueError(f'Split "{run.split}" has {len(rows):,} rows and the run predicted row {run.rows.max():,}.')
    labels, wrong = read_labels(rows.select(run.rows), run.args.label_columns, run.split)
    found, tolerance = label_columns(np.nan_to_num(labels)), 1e-6 * np.abs(run.labels).max()
    close = np.isclose(found, run.labels, rtol=1e-5, atol=tolerance)
    changed = [i for i in range(len(run.rows)) if i in wrong or not close[i].all()]
    if changed:
        raise ValueError(f'The label of row {run.rows[changed[0]]} of split "{run.split}" has changed since the run.')


def _together(runs: Sequence[FinishedRun], place: Path) -> Section:
    """The runs against each other, over the bins of the first."""
    section, first = Section("all runs"), runs[0]
    predictions, title = {run.name: run.predictions for run in runs}, f"Error on the {first.split} split"
    what: dict[str, Any] = {"unit": first.unit, "target": first.targets}
    plots.errors_of_runs(first.bins, first.labels, predictions, place / "density", title=title, **what)
    line = f"Training labels per bin of {first.name}, and the error of each run in each."
    section.pictures.append(("density", line))
    draw_curves(section, runs, place, title="Training")
    return section
