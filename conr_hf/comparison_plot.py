"""A comparison in one picture: the error of every run, by method and shot."""

from collections.abc import Sequence
from pathlib import Path

from conr_hf.comparison import Comparison, Run
from conr_hf.comparison_table import SHOTS, errors, splits_of, unit_of
from conr_hf.plots.style import COLOURS, FAINT, INK, heading, new_figure, save, tidy


def draw_comparison(comparison: Comparison, runs: Sequence[Run]) -> list[Path]:
    """
    Writes `RECIPE.png` for each recipe: a panel a shot, in it a dot for each seed of each method, their mean as a bar,
    and the baseline's mean as a line, on the test split where there is one.

    Returns:
        `list[pathlib.Path]`: the files.

    Raises:
        `ImportError`: Without matplotlib.
    """
    files = []
    for recipe in comparison.recipes:
        if not (splits := splits_of(runs, recipe)):
            continue
        found = {
            shot: {method: errors(runs, recipe, method, splits[-1], shot, "mae") for method in comparison.methods}
            for shot in SHOTS
        }
        shots = [shot for shot, of_method in found.items() if any(of_method.values())]
        methods = [method for method in comparison.methods if found["all"][method]]
        figure = new_figure(1.6 + 2.3 * len(shots), 1.3 + 0.3 * len(methods))
        panels = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
        for shot, panel in zip(shots, panels, strict=True):
            colour = COLOURS.get(shot, INK)
            for place, method in enumerate(methods):
                values = list(found[shot][method].values())
                panel.scatter(values, [place] * len(values), s=16, color=colour, alpha=0.5, linewidths=0, zorder=3)
                if values:
                    panel.scatter(sum(values) / len(values), place, s=120, color=colour, marker="|", zorder=4)
            if plain := list(found[shot][comparison.baseline].values()):
                panel.axvline(sum(plain) / len(plain), color=FAINT, linewidth=0.8, zorder=1)
            panel.set_title({"all": "all samples"}.get(shot, f"{shot}-shot"), fontsize=9.5, color=INK)
            panel.set_xlabel(f"MAE{unit_of(runs, recipe)}", fontsize=8.5)
            tidy(panel)
        panels[0].set_yticks(range(len(methods)), methods)
        panels[0].invert_yaxis()
        title = f"{recipe}, {splits[-1]}: a dot a seed, a bar their mean, the line {comparison.baseline}"
        heading(figure, title)
        files.append(Path(comparison.output_dir, f"{recipe}.png"))
        save(figure, files[-1])
    return files
