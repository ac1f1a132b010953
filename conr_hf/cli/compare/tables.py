"""What a comparison found: means over seeds, differences to the baseline, and the files that hold them."""

import csv
import math
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path

from conr_hf.cli.compare.grid import Comparison, Run
from conr_hf.utils.tables import format_table

SHOTS = ("all", "many", "median", "few")

# 97.5 % quantiles of Student's t by degrees of freedom; beyond, the normal one with its first corrections.
_T = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def interval(differences: Sequence[float]) -> float:
    """
    Half the width of the 95 % confidence interval of a mean, by Student's t.

    Args:
        differences (`Sequence[float]`): At least one a seed.

    Returns:
        `float`: in their unit; nan for a single one.

    Example:
        >>> round(interval([1.0, 2.0, 3.0]), 3)
        2.484
    """
    freedom = len(differences) - 1
    if freedom < 1:
        return math.nan
    z = 1.959964
    far = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    quantile = _T[freedom - 1] if freedom <= len(_T) else far
    return quantile * statistics.stdev(differences) / math.sqrt(len(differences))


def errors(runs: Sequence[Run], recipe: str, method: str, split: str, shot: str, metric: str) -> dict[int, float]:
    """A metric of the finished runs of a method, by seed; empty where it is not there."""
    found = {}
    for run in runs:
        if (run.recipe, run.method) == (recipe, method):
            value = (run.results() or {}).get(split, {}).get(shot, {}).get(metric)
            if value is not None:
                found[run.seed] = value
    return found


def differences(
    comparison: Comparison, runs: Sequence[Run], recipe: str, method: str, split: str, shot: str, metric: str
) -> list[float]:
    """A metric of a method less that of the baseline, one for each seed that both have finished."""
    ours, theirs = (errors(runs, recipe, m, split, shot, metric) for m in (method, comparison.baseline))
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def rows_of(comparison: Comparison, runs: Sequence[Run], recipe: str, split: str) -> list[list[str]]:
    """
    The table of a recipe's split: a header, and a row for each method that has finished runs.

    Columns: method, seeds, MAE of each shot and balanced MAE as mean ± standard deviation over the seeds, the paired
    difference to the baseline with its 95 % interval over the seeds, of the MAE of all and of few shots and of the
    balanced MAE, minutes and memory of a run that nothing interrupted. Of gaze it is the angle instead of the MAEs.
    """
    metric = metric_of(runs, recipe)
    shots = [shot for shot in SHOTS if any(errors(runs, recipe, m, split, shot, metric) for m in comparison.methods)]
    cells, names = [(shot, metric) for shot in shots], [*shots]
    if metric == "mae":
        cells, names = [*cells, ("all", "bmae")], [*names, "balanced"]
    paired = [(name, cell) for name, cell in zip(names, cells, strict=True) if name in ("all", "few", "balanced")]
    header = ["method", "seeds", *names, *(f"{name}, to {comparison.baseline}" for name, _ in paired)]
    table = [[*header, "minutes", "GB"]]
    for method in comparison.methods:
        seeds = errors(runs, recipe, method, split, "all", metric)
        if not seeds:
            continue
        row = [method, str(len(seeds))]
        row += [_mean(errors(runs, recipe, method, split, *cell).values()) for cell in cells]
        row += [_paired(comparison, runs, recipe, method, split, *cell) for _, cell in paired]
        table.append([*row, *_costs(runs, recipe, method)])
    return table


def show(comparison: Comparison, runs: Sequence[Run]) -> str:
    """The tables of all recipes, of the test split where there is one, ready to print."""
    parts = []
    for recipe in comparison.recipes:
        split = splits_of(runs, recipe)[-1:]
        words = "MAE" if metric_of(runs, recipe) == "mae" else "angle [deg]"
        parts += [
            f"{recipe}, {name}: {words}\n" + format_table(rows_of(comparison, runs, recipe, name)) for name in split
        ]
    return "\n\n".join(parts)


def write_tables(comparison: Comparison, runs: Sequence[Run], command: str) -> list[Path]:
    """Writes `runs.csv`, with every number of every run, and the tables as `table.md` and `table.tex`."""
    folder = Path(comparison.output_dir)
    files = [folder / name for name in ("runs.csv", "table.md", "table.tex")]
    with files[0].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "method", "seed", "split", "shot", "metric", "value"])
        for run in runs:
            for split, shots in _evaluations(run).items():
                for shot, metrics in shots.items():
                    for metric, value in metrics.items():
                        writer.writerow([run.recipe, run.method, run.seed, split, shot, metric, value])
    about = "MAE, or of gaze the angle: mean ± standard deviation over seeds; differences are paired by seed."
    markdown, tex = [f"Made by `{command}`. {about}"], list[str]()
    for recipe in comparison.recipes:
        for split in splits_of(runs, recipe):
            table = rows_of(comparison, runs, recipe, split)
            angles = metric_of(runs, recipe) == "angular_error"
            title = f"{recipe}, {split}{', angle [deg]' if angles else unit_of(runs, recipe)}"
            markdown += [f"\n## {title}\n", *_markdown(table)]
            tex += [f"% {title}", *_latex(table), ""]
    files[1].write_text("\n".join(markdown) + "\n", encoding="utf-8")
    files[2].write_text("\n".join(tex), encoding="utf-8")
    return files


def _evaluations(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    results = run.results() or {}
    return {split: results[split] for split in ("validation", "test") if split in results}


def splits_of(runs: Sequence[Run], recipe: str) -> list[str]:
    """The splits that finished runs of a recipe were evaluated on."""
    found = {split for run in runs if run.recipe == recipe for split in _evaluations(run)}
    return [split for split in ("validation", "test") if split in found]


def metric_of(runs: Sequence[Run], recipe: str) -> str:
    """What methods are compared by: the angle of gaze, or the MAE."""
    found = [results for run in runs if run.recipe == recipe and (results := run.results())]
    angles = any("angular_error" in results[split]["all"] for results in found for split in splits_of(runs, recipe))
    return "angular_error" if angles else "mae"


def unit_of(runs: Sequence[Run], recipe: str) -> str:
    """The unit of a recipe's labels, as ` [m]`, or nothing."""
    units = [results["unit"] for run in runs if run.recipe == recipe and (results := run.results())]
    return f" [{units[0]}]" if units and units[0] else ""


def _mean(values: Collection[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{spread}"


def _paired(
    comparison: Comparison, runs: Sequence[Run], recipe: str, method: str, split: str, shot: str, metric: str
) -> str:
    found = differences(comparison, runs, recipe, method, split, shot, metric)
    if method == comparison.baseline or not found:
        return ""
    half = interval(found)
    return f"{statistics.fmean(found):+.3g}" + ("" if math.isnan(half) else f" ± {half:.3g}")


def _costs(runs: Sequence[Run], recipe: str, method: str) -> list[str]:
    of_method = [run.results() for run in runs if (run.recipe, run.method) == (recipe, method)]
    whole = [results for results in of_method if results is not None and not results["resumed"]]
    if not whole:
        return ["", ""]
    minutes = statistics.fmean(results["train_seconds"] for results in whole) / 60
    return [f"{minutes:.1f}", f"{max(results['peak_memory'] for results in whole) / 2**30:.1f}"]


def _markdown(table: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return [lines[0], "|" + "---|" * len(table[0]), *lines[1:]]


def _latex(table: list[list[str]]) -> list[str]:
    def escaped(cell: str) -> str:
        for mark in "&%_#":
            cell = cell.replace(mark, f"\\{mark}")
        return cell.replace("±", "$\\pm$")

    rows = [" & ".join(escaped(cell) for cell in row) + r" \\" for row in table]
    columns = "l" + "r" * (len(table[0]) - 1)
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", rows[0], r"\hline"]
    return [*head, *rows[1:], r"\hline", r"\end{tabular}"]
