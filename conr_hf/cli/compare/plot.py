"""Plots of a comparison: the error of every run by method and shot, and differences to the baseline by recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from conr_hf.cli.compare.grid import Comparison, Run
from conr_hf.cli.compare.tables import SHOTS, differences, errors, interval, read_metrics, splits_of, unit_of
from conr_hf.plots.style import COLOURS, FAINT, INK, heading, new_figure, run_line, save, tidy

if TYPE_CHECKING:
    from matplotlib.artist import Artist


def draw_comparison(comparison: Comparison, runs: Sequence[Run]) -> list[Path]:
    """
    Writes `RECIPE.png` for each recipe: a panel for each shot, with a dot for each seed of each method, their mean as
    a bar and the baseline's mean as a line, on the test split if there is one. For several recipes also `recipes.png`.
    Returns the files.
    """
    files, metrics = [], read_metrics(runs)
    for recipe in comparison.recipes:
        if not (splits := splits_of(metrics, recipe)):
            continue
        found = {
            shot: {method: errors(metrics, recipe, method, splits[-1], shot, "mae") for method in comparison.methods}
            for shot in SHOTS
        }
        shots = [shot for shot, of_method in found.items() if any(map(len, of_method.values()))]
        methods = [method for method in comparison.methods if len(found["all"][method])]
        figure = new_figure(1.6 + 2.3 * len(shots), 1.3 + 0.3 * len(methods))
        panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
        for shot, panel in zip(shots, panels, strict=True):
            colour = COLOURS.get(shot, INK)
            for place, method in enumerate(methods):
                values = found[shot][method]
                panel.scatter(values, [place] * len(values), s=16, color=colour, alpha=0.5, linewidths=0, zorder=3)
                if len(values):
                    panel.scatter(values.mean(), place, s=120, color=colour, marker="|", zorder=4)
            if len(plain := found[shot][comparison.baseline]):
                panel.axvline(plain.mean(), color=FAINT, linewidth=0.8, zorder=1)
            panel.set_title({"all": "all samples"}.get(shot, f"{shot}-shot"), fontsize=9.5, color=INK)
            panel.set_xlabel(f"MAE{unit_of(runs, recipe)}", fontsize=8.5)
            tidy(panel)
        panels[0].set_yticks(range(len(methods)), methods)
        panels[0].invert_yaxis()
        heading(figure, f"{recipe}: error on the {splits[-1]} split", _marks(comparison.baseline))
        files.append(Path(comparison.output_dir, f"{recipe}.png"))
        save(figure, files[-1])
    if len(files) > 1:
        files.append(_draw_differences(comparison, metrics))
    return files


def _marks(baseline: str) -> "list[Artist]":
    """Legend entries of what is drawn for each method."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"linestyle": "", "color": INK}
    return [
        Line2D([], [], marker="o", markersize=4, alpha=0.5, markeredgewidth=0, label="one seed", **look),
        Line2D([], [], marker="|", markersize=11, label="mean of the seeds", **look),
        Line2D([], [], color=FAINT, linewidth=0.8, label=f"mean of {baseline}"),
    ]


def _draw_differences(comparison: Comparison, metrics: pd.DataFrame) -> Path:
    """Paired differences to the baseline with their 95 % interval, in per cent of its error, recipe by recipe."""
    methods = [method for method in comparison.methods if method != comparison.baseline]
    figure = new_figure(9.0, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    shown = [("few-shot MAE", "few", "mae"), ("balanced MAE", "all", "bmae")]
    for panel, (name, shot, metric) in zip(panels, shown, strict=True):
        for index, method in enumerate(methods):
            places, means, halves = [], [], []
            for place, recipe in enumerate(comparison.recipes):
                split = (splits_of(metrics, recipe) or ["none"])[-1]
                found = differences(metrics, comparison.baseline, recipe, method, split, shot, metric)
                if len(found):
                    percent = 100 / errors(metrics, recipe, comparison.baseline, split, shot, metric).mean()
                    places.append(place + 0.08 * (index - (len(methods) - 1) / 2))
                    means.append(percent * found.mean())
                    halves.append(percent * interval(found) if len(found) > 1 else 0.0)
            panel.errorbar(places, means, halves, label=method, **run_line(index))
        panel.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        panel.set_xticks(range(len(comparison.recipes)), comparison.recipes)
        panel.set_title(name, fontsize=9.5, color=INK)
        tidy(panel)
    panels[0].set_ylabel(f"difference to {comparison.baseline} (%)", fontsize=8.5)
    legend = panels[0].get_legend_handles_labels()[0]
    heading(figure, "What each method changes, with its 95 % interval over seeds", legend)
    path = Path(comparison.output_dir, "recipes.png")
    save(figure, path)
    return path
