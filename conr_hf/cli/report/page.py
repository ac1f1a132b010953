"""The text of a report: its tables of numbers and its page in Markdown."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from conr_hf.cli.report.figures import Section
from conr_hf.metrics.features import K
from conr_hf.plots.style import with_unit
from conr_hf.utils.tables import markdown_table

MOST_BINS = 15


def number_rows(numbers: Mapping[str, Mapping[str, Any]], split: str, unit: str) -> list[list[str]]:
    """The numbers of all runs, by their names, as rows of cells, a column for each run, with a header."""
    share, of_knn = "rare_among_frequent", f"MAE of the mean label of the {K} nearest"
    lines: list[tuple[str, tuple[str, ...], float]] = [
        (with_unit("MAE", unit), ("mae", "all"), 1),
        ("  few shot", ("mae", "few"), 1),
        (with_unit(f"{of_knn} training images", unit), ("knn_mae", "training", "all"), 1),
        ("  few shot", ("knn_mae", "training", "few"), 1),
        (with_unit(f"{of_knn} others", unit), ("knn_mae", "leave_one_out", "all"), 1),
        ("  few shot", ("knn_mae", "leave_one_out", "few"), 1),
        ("rank correlation of label and feature distances", ("rank_correlation",), 1),
        ("few-shot images that lie among many-shot ones (%)", (share, "share"), 100),
        ("  share of many shot in the training images (%)", (share, "training_share"), 100),
        (f"features of {split} images", ("samples", "evaluated"), 1),
        ("features of training images, drawn at random", ("samples", "training"), 1),
    ]
    rows = [[split, *numbers]]
    for text, keys, factor in lines:
        cells = [_cell(values, keys, factor) for values in numbers.values()]
        if any(cells):
            rows.append([text, *cells])
    return rows


def neighbour_rows(table: Sequence[Mapping[str, Any]], targets: Sequence[str], unit: str) -> list[list[str]]:
    """The first 15 bins of `neighbour_bins`, rarest first, as rows of cells."""
    counts = ["training images", "images", "neighbours in many shot"]
    rows = [[with_unit("rare labels", unit), *counts, "commonest bins of the neighbours"]]
    for entry in table[:MOST_BINS]:
        name = f"{targets[entry['dimension']]} " if len(targets) > 1 else ""
        found = ", ".join(f"{_bin(near['bin'])} ({100 * near['share']:.0f} %)" for near in entry["neighbours"])
        counts = [f"{entry[key]:,}" for key in ("training_samples", "samples")]
        rows.append([name + _bin(entry["bin"]), *counts, f"{100 * entry['many_share']:.0f} %", found])
    return rows


def neighbour_title(table: Sequence[Mapping[str, Any]]) -> str:
    """What [`neighbour_rows`] shows."""
    shown = f"{MOST_BINS} of {len(table):,}" if len(table) > MOST_BINS else f"all {len(table)}"
    return f"Where rare labels lie: {shown} few-shot bins that hold images, rarest first"


def page(
    together: Section | None,
    sections: Sequence[tuple[Section, str]],
    rows: Sequence[Sequence[str]],
    targets: Sequence[str],
    split: str,
    unit: str,
) -> str:
    """
    The report in Markdown: the `rows` of [`number_rows`], then every picture with a line about it, of all runs
    `together` and of each run, whose pictures are in the folder beside its section, relative to the page.
    """
    names = ", ".join(section.name for section, _ in sections)
    parts = [f"# {_plain(names)}: {_plain(', '.join(targets))} of the {_plain(split)} split", _markdown(rows)]
    samples = next((s.numbers["samples"] for s, _ in sections if "samples" in s.numbers), None)
    if samples is not None:
        parts.append(
            f"Features are taken at the head, of {samples['evaluated']:,} {split} images and of "
            f"{samples['training']:,} of {samples['training_of']:,} training images, drawn with a fixed seed. Their "
            f"distance is 1 - cosine; an image lies among many-shot ones if most of its {K} nearest training images "
            "are many shot. Every picture is also written as SVG."
        )
    if together is not None:
        parts += ["## All runs", *_shown(together, "")]
    for section, folder in sections:
        parts += [f"## {_plain(section.name)}"] if together is not None else []
        parts += _shown(section, folder)
        if section.numbers.get("neighbour_bins"):
            rare = neighbour_rows(section.numbers["neighbour_bins"], targets, unit)
            parts += [f"{neighbour_title(section.numbers['neighbour_bins'])}:", _markdown(rare)]
    return "\n\n".join(parts) + "\n"


def _shown(section: Section, folder: str) -> list[str]:
    lines = [(quote(f"{folder}{path}.png"), _plain(line)) for path, line in section.pictures]
    return [*(f"![{line}]({path})\n\n{line}" for path, line in lines), *map(_plain, section.left_out)]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([[_plain(cell) for cell in row] for row in rows])


def _plain(text: str) -> str:
    """Markdown that shows the text as it is: no HTML, link, picture or cell of its own."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _cell(values: Mapping[str, Any], keys: Sequence[str], factor: float) -> str:
    value: Any = values
    for key in keys:
        value = (value or {}).get(key)
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{factor * value:.4g}"


def _bin(edges: Sequence[float] | None) -> str:
    return "outside all bins" if edges is None else f"{edges[0]:.6g} to {edges[1]:.6g}"
