"""What a comparison found: means over seeds, differences to the baseline, and the files that hold them."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from conr_hf.cli.compare.grid import Comparison, Run
from conr_hf.utils.tables import format_table, markdown_table

SHOTS = ("all", "many", "median", "few")
SPLITS = ("validation", "test")
COLUMNS = ["recipe", "method", "seed", "split", "shot", "metric", "value"]


def interval(differences: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of their mean, by Student's t; NaN for a single one."""
    from scipy import stats

    if len(differences) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))


def read_metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """Every number of every finished run, a row each, as `runs.csv` has them."""
    rows = [
        (run.recipe, run.method, run.seed, split, shot, metric, value)
        for run in runs
        if (results := run.results())
        for split in SPLITS
        for shot, metrics in results.get(split, {}).items()
        for metric, value in metrics.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)  # object: counts stay whole numbers


def errors(metrics: pd.DataFrame, recipe: str, method: str, split: str, shot: str, metric: str) -> pd.Series:
    """A metric of the finished runs of a method, by seed; empty where there is none."""
    wanted = "recipe == @recipe and method == @method and split == @split and shot == @shot and metric == @metric"
    return metrics.query(wanted).set_index("seed")["value"].astype(float)


def differences(
    metrics: pd.DataFrame, baseline: str, recipe: str, method: str, split: str, shot: str, metric: str
) -> pd.Series:
    """A metric of a method less that of the baseline, one for each seed that both have finished."""
    ours, theirs = (errors(metrics, recipe, name, split, shot, metric) for name in (method, baseline))
    return (ours - theirs).dropna()


def rows_of(comparison: Comparison, runs: Sequence[Run], recipe: str, split: str) -> list[list[str]]:
    """
    The table of a recipe's split: a header, and a row for each method that has finished runs.

    Columns: method, seeds, MAE of each shot and balanced MAE as mean ± standard deviation over the seeds, the paired
    difference to the baseline and the ends of its 95 % interval over the seeds, of the MAE of all and of few shots and
    of the balanced MAE, minutes and memory of a run that nothing interrupted. For gaze it is the angle instead of the
    MAEs.
    """
    metrics, baseline = read_metrics(runs), comparison.baseline
    metric = metric_of(metrics, recipe)
    there = set(metrics.query("recipe == @recipe and split == @split and metric == @metric")["shot"])
    cells = {shot: (shot, metric) for shot in SHOTS if shot in there}
    if metric == "mae":
        cells["balanced"] = ("all", "bmae")
    paired = [name for name in ("all", "few", "balanced") if name in cells]
    table = [["method", "seeds", *cells, *(f"{name}, to {baseline}" for name in paired), "minutes", "GB"]]
    for method in comparison.methods:
        seeds = len(errors(metrics, recipe, method, split, "all", metric))
        if seeds:
            means = [_mean(errors(metrics, recipe, method, split, *cell)) for cell in cells.values()]
            less = [differences(metrics, baseline, recipe, method, split, *cells[name]) for name in paired]
            changes = [_change(found) if method != baseline else "" for found in less]
            table.append([method, str(seeds), *means, *changes, *_costs(runs, recipe, method)])
    return table


def show(comparison: Comparison, runs: Sequence[Run]) -> str:
    """The tables of all recipes, of the test split where there is one, ready to print: errors, then differences."""
    metrics = read_metrics(runs)
    parts = []
    for recipe in comparison.recipes:
        for split in splits_of(metrics, recipe)[-1:]:
            header, *rows = rows_of(comparison, runs, recipe, split)
            changes = [place for place, name in enumerate(header) if name.endswith(f", to {comparison.baseline}")]
            errors_only = [[row[i] for i in range(len(header)) if i not in changes] for row in (header, *rows)]
            others = [row for row in rows if row[0] != comparison.baseline]
            differences = [[row[0], *(row[i] for i in changes)] for row in (_with_delta(header, comparison), *others)]
            parts.append(f"{recipe}, {split}: {_measure(runs, metrics, recipe)}, mean ± standard deviation over seeds")
            parts[-1] += f"\n{format_table(errors_only)}"
            if others:
                parts.append(f"{recipe}, {split}: difference to {comparison.baseline}, paired by seed")
                parts[-1] += f"\n{format_table(differences)}"
    return "\n\n".join(parts)


def write_tables(comparison: Comparison, runs: Sequence[Run], command: str) -> list[Path]:
    """Writes `runs.csv`, with every number of every run, and the tables as `table.md` and `table.tex`."""
    csv, markdown, latex = (Path(comparison.output_dir, name) for name in ("runs.csv", "table.md", "table.tex"))
    metrics = read_metrics(runs)
    metrics.to_csv(csv, index=False)
    meaning = "mean ± standard deviation over seeds; differences are paired by seed, with their 95 % interval"
    parts, tex = [f"Made by `{command}`. MAE, or of gaze the angle: {meaning}."], [r"% \usepackage{booktabs}"]
    for recipe in comparison.recipes:
        angles = metric_of(metrics, recipe) == "angular_error"
        for split in splits_of(metrics, recipe):
            title = f"{recipe}, {split}{', angle [deg]' if angles else unit_of(runs, recipe)}"
            header, *rows = rows_of(comparison, runs, recipe, split)
            parts += [f"## {title}", markdown_table([header, *rows])]
            frame = pd.DataFrame(rows, columns=_with_delta(header, comparison))
            caption = (
                f"{recipe}, {split}: {_measure(runs, metrics, recipe)}, mean ± standard deviation over seeds. "
                f"Δ: difference to {comparison.baseline}, paired by seed, with its 95 % confidence interval (CI)."
            )
            layout = "l" + "r" * (len(header) - 1)
            table = frame.to_latex(index=False, escape=True, column_format=layout, caption=_as_latex(caption))
            tex.append(f"% {title}\n{table}".replace("±", r"$\pm$").replace("Δ", r"$\Delta$"))
    markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    latex.write_text("\n".join(tex), encoding="utf-8")
    return [csv, markdown, latex]


def _with_delta(header: Sequence[str], comparison: Comparison) -> list[str]:
    """A header of [`rows_of`] for those who read the baseline's name beside the table."""
    ending = f", to {comparison.baseline}"
    return [f"Δ {name.removesuffix(ending)} (95 % CI)" if name.endswith(ending) else name for name in header]


def _measure(runs: Sequence[Run], metrics: pd.DataFrame, recipe: str) -> str:
    return "angle [deg]" if metric_of(metrics, recipe) == "angular_error" else f"MAE{unit_of(runs, recipe)}"


def _as_latex(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)


def splits_of(metrics: pd.DataFrame, recipe: str) -> list[str]:
    """The splits that finished runs of a recipe were evaluated on."""
    found = set(metrics.query("recipe == @recipe")["split"])
    return [split for split in SPLITS if split in found]


def metric_of(metrics: pd.DataFrame, recipe: str) -> str:
    """What methods are compared by: the angle of gaze, or the MAE."""
    return "angular_error" if "angular_error" in set(metrics.query("recipe == @recipe")["metric"]) else "mae"


def unit_of(runs: Sequence[Run], recipe: str) -> str:
    """The unit of a recipe's labels, as ` [m]`, or nothing."""
    units = [results["unit"] for run in runs if run.recipe == recipe and (results := run.results())]
    return f" [{units[0]}]" if units and units[0] else ""


def _mean(values: pd.Series) -> str:
    spread = f" ± {values.std():.3g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{spread}" if len(values) else ""


def _change(differences: pd.Series) -> str:
    if differences.empty:
        return ""
    middle, half = float(differences.mean()), interval(differences)
    ends = "" if math.isnan(half) else f" [{middle - half:+.3g}, {middle + half:+.3g}]"
    return f"{middle:+.3g}{ends}"


def _costs(runs: Sequence[Run], recipe: str, method: str) -> list[str]:
    """Mean minutes and most GB of the runs that nothing interrupted."""
    found = [results for run in runs if (run.recipe, run.method) == (recipe, method) and (results := run.results())]
    costs = pd.DataFrame([r for r in found if not r["resumed"]], columns=["train_seconds", "peak_memory"])
    if costs.empty:
        return ["", ""]
    return [f"{costs.train_seconds.mean() / 60:.1f}", f"{costs.peak_memory.max() / 2**30:.1f}"]
