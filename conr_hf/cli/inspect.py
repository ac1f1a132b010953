"""`conr-hf inspect`: what [`~conr_hf.data.inspection.inspect`] found, as text, JSON and a figure."""

from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from conr_hf.cli.options import one_or_each
from conr_hf.data.inspection import OUTLIER_Z, inspect
from conr_hf.data.local import load_local
from conr_hf.imbalance import Bins
from conr_hf.metrics import shot_masks
from conr_hf.plots import label_histogram
from conr_hf.utils.files import check_writable, write_json
from conr_hf.utils.tables import format_bin, format_table

OF_VIEWS = ("augmentation", "augment_color", "horizontal_flip", "vertical_flip", "crop_area", "crop_padding")
SHOWN = 20  # of each kind of problem
LINES = 20  # of a histogram
MARKS = {"many": "#", "median": "+", "few": "."}
TITLES = {
    "unreadable_images": "images cannot be read",
    "bad_labels": "labels are missing or no numbers",
    "duplicates_across": "images are in several splits, pixel for pixel",
    "duplicates_within": "images are in a split more than once, pixel for pixel",
    "groups_across": "groups are in several splits; conr-hf split --group keeps each in one",
    "rows_without_group": "rows have no group",
    "unused_splits": "splits are neither train, validation nor test, and nothing is done with them",
    "outliers": f"labels lie far from the median (robust z over {OUTLIER_Z:g}): a long tail, or mistakes?",
}


def inspect_data(options: Namespace) -> None:
    """Inspects a data set, prints what was found and, with `--output`, writes `inspection.json` and `labels.png`."""
    if options.output is not None:
        check_writable(options.output)
    elif options.views is not None:
        raise ValueError(f"--views {options.views} draws a picture: name a folder for it with --output.")
    given = [word.partition("=")[0] for word in options.given]
    if options.views is None and (idle := [f"--{name}" for name in OF_VIEWS if f"--{name}" in given]):
        raise ValueError(f"{', '.join(idle)} would have no effect without --views 4, which draws views.")
    data = load_local(
        options.data,
        options.image_column,
        image_folder=options.image_folder,
        image_suffix=options.image_suffix,
        data_config=options.data_config,
    )
    found = inspect(
        data,
        label_columns=options.label_columns,
        image_column=options.image_column,
        group_column=options.group_column,
        bin_width=one_or_each(options.bin_width),
        map_scale=options.map_scale,
        map_invalid=options.map_invalid,
        image_range=options.image_range,
    )
    print("\n".join(as_text(found)))
    if options.output is None:
        return
    written = [Path(options.output, "inspection.json")]
    write_json(written[0], found)
    if find_spec("matplotlib") is None:
        print('\nThe figures need matplotlib; install it with: pip install "conr-hf[plots]"')
    elif "bins" in found:
        training = found["training_split"]
        if options.views is not None:
            from conr_hf.cli.inspect_views import draw_views  # loads transformers' models

            problems = found["problems"]["unreadable_images"] + found["problems"]["bad_labels"]
            bad_rows = {problem["row"] for problem in problems if problem["split"] == training}
            if len(bad_rows) < len(data[training]):
                written.append(draw_views(options, data[training], bad_rows))
            else:
                print(f'\nNo views are drawn: no row of "{training}" can be used.')
        written.append(Path(options.output, "labels.png"))
        label_histogram(
            Bins.from_dict(found["bins"]),
            written[-1],
            unit=options.unit,
            title=f"{Path(options.data).name}: labels of {training}",
            target=found["label_columns"],
            whole=[figures["whole"] for figures in found["splits"][training]["labels"].values()],
        )
    print(f"\nWritten: {', '.join(map(str, written))}")


def as_text(found: dict[str, Any]) -> Iterator[str]:
    """Lines for the terminal of what [`~conr_hf.data.inspection.inspect`] found."""
    yield from _splits(found)
    yield ""
    yield f"Image sizes: {_listed(found['images']['sizes'])}"
    yield f"Image modes: {_listed(found['images']['modes'])}"
    if found["images"]["notice"] is not None:
        yield f"Note: {found['images']['notice']}"
    if "maps" in found:
        maps = found["maps"]
        yield (
            f"Maps: {_listed(maps['sizes'])}; {maps['valid_share']:.1%} of a map's pixels have a label. Labels, bins "
            "and shots count pixels."
        )
        if maps["notice"] is not None:
            yield f"Note: {maps['notice']}"
    if "bins" in found:
        for dimension in range(len(found["label_columns"])):
            yield ""
            yield from _histogram(found, dimension)
        yield ""
        yield from _suggestions(found)
    yield ""
    yield from _problems(found["problems"])


def _splits(found: dict[str, Any]) -> Iterator[str]:
    bad = [problem["split"] for problem in found["problems"]["bad_labels"]]
    unreadable = [problem["split"] for problem in found["problems"]["unreadable_images"]]
    table = [["split", "rows", "bad images", "bad labels", "many", "median", "few"]]
    for split, of_split in found["splits"].items():
        shots = of_split.get("shots", dict.fromkeys(MARKS, 0)).values()
        numbers = (of_split["rows"], unreadable.count(split), bad.count(split), *shots)
        table.append([split, *(f"{number:,}" for number in numbers)])
    yield from format_table(table).splitlines()
    yield ""
    table = [["label", "split", "min", "median", "max", "mean", "std", "numbers"]]
    for split, of_split in found["splits"].items():
        for column, figures in of_split["labels"].items():
            values = [f"{figures[name]:.6g}" for name in ("min", "median", "max", "mean", "std")]
            table.append([column, split, *values, "whole" if figures["whole"] else "real"])
    yield from format_table(table).splitlines()


def _histogram(found: dict[str, Any], dimension: int) -> Iterator[str]:
    edges = np.array(found["bins"]["edges"][dimension])
    train = np.array(found["bins"]["train_counts"][dimension])
    others = [split for split in found["splits"] if split != found["training_split"]]
    step = -(-len(train) // LINES)
    starts = np.arange(0, len(train), step)
    total = np.add.reduceat(train, starts)
    masks = shot_masks(train, found["thresholds"])
    by_shot = {shot: np.add.reduceat(train * mask, starts) for shot, mask in masks.items()}
    of_others = [np.add.reduceat(found["bins"]["counts"][split][dimension], starts) for split in others]
    column = found["label_columns"][dimension]
    whole = found["splits"][found["training_split"]]["labels"][column]["whole"]
    table, bars = [[column, found["training_split"], *others]], []
    highs = edges[np.append(starts[1:], len(train))]
    for line, (low, high) in enumerate(zip(edges[starts], highs, strict=True)):
        table.append([format_bin(low, high, whole), *(f"{counts[line]:,}" for counts in (total, *of_others))])
        # Whatever there is gets a mark.
        lengths = {shot: int(np.ceil(40 * counts[line] / total.max())) for shot, counts in by_shot.items()}
        bars.append("".join(MARKS[shot] * length for shot, length in lengths.items()))
    header, rule, *lines = format_table(table).splitlines()
    few, many = found["thresholds"]
    shots = f"# many (over {many:,.0f}), + median, . few (under {few:,.0f})"
    yield f"{header}  in bins of {edges[1] - edges[0]:g}: {shots}"
    yield rule
    for text, bar in zip(lines, bars, strict=True):
        yield f"{text}  {bar}".rstrip()
    yield (
        f"The fullest bin has {found['imbalance_ratio'][dimension]:,.0f} times as many training {_counted(found)} as "
        f"the emptiest of the {np.count_nonzero(train):,} that hold any."
    )


def _counted(found: dict[str, Any]) -> str:
    return "pixels" if "maps" in found else "rows"


def _suggestions(found: dict[str, Any]) -> Iterator[str]:
    suggested = found["suggested"]
    widths = [f"{width:g}" for width in suggested["bin_width"]]
    yield f"Few shots are {found['few_share']:.1%} of the training {_counted(found)}. For a recipe:"
    yield f"  label_columns: [{', '.join(found['label_columns'])}]"
    if len(set(widths)) == 1:
        yield f"  bin_width: {widths[0]}"
    else:
        yield f"  # bin_width takes one for all; each by itself would suit {' and '.join(widths)}"
    window, push_scale, weights = suggested["conr_window"], suggested["conr_push_scale"], suggested["weights"]
    yield f"Then ConR takes conr_window {window:.4g} and conr_push_scale {push_scale:.4g}."
    yield f"Weights by sqrt_inverse are from {weights['min']:.3g} to {weights['max']:.3g}."


def _problems(problems: dict[str, list[Any]]) -> Iterator[str]:
    if not any(problems.values()):
        yield "Problems: none found."
        return
    yield "Problems, with rows counted from 0 in each split:"
    for kind, title in TITLES.items():
        listed = problems[kind]
        if listed:
            yield f"- {len(listed):,} {title}"
            yield from (f"    {_problem(problem)}" for problem in listed[:SHOWN])
        if len(listed) > SHOWN:
            yield f"    ... and {len(listed) - SHOWN:,} more"


def _problem(problem: Any) -> str:
    if isinstance(problem, list):  # the places of equal images
        more = f" = ... ({len(problem)} in all)" if len(problem) > 6 else ""
        return " = ".join(_problem(place) for place in problem[:6]) + more
    if "group" in problem:
        return f"{problem['group']}: {_listed(problem['rows'])}"
    if "rows" in problem:
        return f"{problem['split']}: {problem['rows']:,} row{'s' * (problem['rows'] != 1)}"
    place = f"{problem['split']} {problem['row']:,}"
    if "robust_z" in problem:
        return f"{place}: {problem['column']} {problem['label']:g} (z {problem['robust_z']:+.1f})"
    return f"{place}: {problem['reason']}" if "reason" in problem else place


def _listed(counts: dict[str, int]) -> str:
    most = list(counts.items())[:6]
    more = f", and {len(counts) - 6:,} others" if len(counts) > 6 else ""
    return ", ".join(f"{name} ({count:,})" for name, count in most) + more
