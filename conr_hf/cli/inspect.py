"""`conr-hf inspect`: what [`~conr_hf.data.inspection.inspect`] found, as text, JSON and a figure."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from conr_hf.data.inspection import OUTLIER_Z, inspect
from conr_hf.data.local import load_local
from conr_hf.imbalance import Bins
from conr_hf.metrics import shot_masks
from conr_hf.plots import label_histogram
from conr_hf.utils.files import check_writable, write_json
from conr_hf.utils.tables import format_bin, format_table

SHOWN = 20  # of each kind of problem
LINES = 20  # of a histogram
MARKS = {"many": "#", "median": "+", "few": "."}


def inspect_data(
    data: str,
    *,
    label_columns: Sequence[str],
    image_column: str,
    group_column: str | None,
    bin_width: Sequence[float] | None,
    unit: str,
    output: str | None,
) -> dict[str, Any]:
    """
    Inspects a data set, prints what was found and, with `output`, writes it there.

    Args:
        data (`str`): As in [`~conr_hf.data.local.load_local`].
        label_columns, image_column, group_column: As in [`~conr_hf.data.inspection.inspect`].
        bin_width (`Sequence[float]`, *optional*): One width for every label dimension, or one each.
        unit (`str`): Unit of the labels, for the figure; `""` for none.
        output (`str`, *optional*): Folder for `inspection.json` and, where matplotlib is installed, `labels.png`.

    Returns:
        `dict`: what [`~conr_hf.data.inspection.inspect`] found.

    Raises:
        `ValueError`: for data that cannot be read. What is wrong within the data is part of the report.
    """
    if output is not None:
        check_writable(output)
    found = inspect(
        load_local(data, image_column),
        label_columns=label_columns,
        image_column=image_column,
        group_column=group_column,
        bin_width=bin_width[0] if bin_width is not None and len(bin_width) == 1 else bin_width,
    )
    print("\n".join(as_text(found)))
    if output is not None:
        written = [Path(output, "inspection.json")]
        write_json(written[0], found)
        if find_spec("matplotlib") is None:
            print('\nThe figure needs matplotlib; install it with: pip install "conr-hf[plots]"')
        elif "bins" in found:
            written.append(Path(output, "labels.png"))
            label_histogram(
                Bins.from_dict(found["bins"]),
                written[1],
                unit=unit,
                title=f"{Path(data).name}: labels of {found['training_split']}",
                target=found["label_columns"],
                whole=[figures["whole"] for figures in found["splits"][found["training_split"]]["labels"].values()],
            )
        print(f"\nWritten: {', '.join(map(str, written))}")
    return found


def as_text(found: dict[str, Any]) -> Iterator[str]:
    """Lines for the terminal of what [`~conr_hf.data.inspection.inspect`] found."""
    yield from _splits(found)
    yield ""
    yield f"Image sizes: {_listed(found['images']['sizes'])}"
    yield f"Image modes: {_listed(found['images']['modes'])}"
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
    by_shot = {shot: np.add.reduceat(train * mask, starts) for shot, mask in shot_masks(train).items()}
    of_others = [np.add.reduceat(found["bins"]["counts"][split][dimension], starts) for split in others]
    column = found["label_columns"][dimension]
    whole = found["splits"][found["training_split"]]["labels"][column]["whole"]
    table, bars = [[column, found["training_split"], *others]], []
    highs = edges[np.append(starts[1:], len(train))]
    for line, (low, high) in enumerate(zip(edges[starts], highs, strict=True)):
        table.append(
            [format_bin(low, high, whole), f"{total[line]:,}", *(f"{counts[line]:,}" for counts in of_others)]
        )
        # Whatever there is gets a mark.
        lengths = {shot: int(np.ceil(40 * counts[line] / total.max())) for shot, counts in by_shot.items()}
        bars.append("".join(MARKS[shot] * length for shot, length in lengths.items()))
    header, rule, *lines = format_table(table).splitlines()
    few, many = found["thresholds"]
    yield f"{header}  in bins of {edges[1] - edges[0]:g}: # many (over {many}), + median, . few (under {few})"
    yield rule
    for text, bar in zip(lines, bars, strict=True):
        yield f"{text}  {bar}".rstrip()
    yield (
        f"The fullest bin has {found['imbalance_ratio'][dimension]:,.0f} times as many training rows as the emptiest "
        f"of the {np.count_nonzero(train):,} that hold any."
    )


def _suggestions(found: dict[str, Any]) -> Iterator[str]:
    suggested = found["suggested"]
    columns, widths = found["label_columns"], [f"{width:g}" for width in suggested["bin_width"]]
    yield f"Few shots are {found['few_share']:.1%} of the training rows. For a recipe:"
    yield f"  label_columns: [{', '.join(columns)}]"
    if len(set(widths)) == 1:
        yield f"  bin_width: {widths[0]}"
    else:
        yield f"  # bin_width takes one for all; each by itself would suit {' and '.join(widths)}"
    window, push_scale, weights = suggested["conr_window"], suggested["conr_push_scale"], suggested["weights"]
    yield f"Then ConR takes conr_window {window:.4g} and conr_push_scale {push_scale:.4g}."
    yield f"Weights by sqrt_inverse are from {weights['min']:.3g} to {weights['max']:.3g}."


def _problems(problems: dict[str, list[Any]]) -> Iterator[str]:
    kinds: dict[str, tuple[str, Callable[[Any], str]]] = {
        "unreadable_images": ("images cannot be read", _reason),
        "bad_labels": ("labels are missing or no numbers", _reason),
        "duplicates_across": ("images are in several splits, pixel for pixel", _equal),
        "duplicates_within": ("images are in a split more than once, pixel for pixel", _equal),
        "groups_across": ("groups are in several splits; conr-hf split --group keeps each in one", _group),
        "rows_without_group": ("rows have no group", _place),
        "outliers": (
            f"labels lie far from the median (robust z over {OUTLIER_Z:g}): a long tail, or mistakes?",
            _outlier,
        ),
    }
    if not any(problems.values()):
        yield "Problems: none found."
        return
    yield "Problems, with rows counted from 0 in each split:"
    for kind, (title, as_line) in kinds.items():
        listed = problems[kind]
        if listed:
            yield f"- {len(listed):,} {title}"
            yield from (f"    {as_line(problem)}" for problem in listed[:SHOWN])
        if len(listed) > SHOWN:
            yield f"    ... and {len(listed) - SHOWN:,} more"


def _place(problem: dict[str, Any]) -> str:
    return f"{problem['split']} {problem['row']:,}"


def _reason(problem: dict[str, Any]) -> str:
    return f"{_place(problem)}: {problem['reason']}"


def _equal(places: list[dict[str, Any]]) -> str:
    more = f" = ... ({len(places)} in all)" if len(places) > 6 else ""
    return " = ".join(_place(place) for place in places[:6]) + more


def _group(problem: dict[str, Any]) -> str:
    return f"{problem['group']}: {_listed(problem['rows'])}"


def _outlier(problem: dict[str, Any]) -> str:
    return f"{_place(problem)}: {problem['column']} {problem['label']:g} (z {problem['robust_z']:+.1f})"


def _listed(counts: dict[str, int]) -> str:
    most = list(counts.items())[:6]
    more = f", and {len(counts) - 6:,} others" if len(counts) > 6 else ""
    return ", ".join(f"{name} ({count:,})" for name, count in most) + more
