"""What all pictures share: colours, the look of a panel, the block of title and legend, and how they are saved."""

import math
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from conr_hf.metrics import SHOTS, shot_masks

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From Okabe and Ito's palette, told apart with any colour vision.
COLOURS = {"many": "#0072B2", "median": "#E69F00", "few": "#D55E00"}
_RUN_COLOURS = ("#000000", "#009E73", "#CC79A7", "#56B4E9")  # the same palette, none that a shot has
_MARKERS, _DASHES = ("o", "s", "^", "D", "v"), ("-", "--", ":")
INK, FAINT = "#333333", "#8a8a8a"
LABEL_MAP, ERROR_MAP = "viridis", "RdBu_r"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` x `height` inches, without a display or any global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib. Install it with: pip install "conr-hf[plots]"') from error

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | PathLike[str]) -> None:
    """Writes PNG or SVG by the ending of `path`, without either both; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.axis import Tick
    from matplotlib.text import Text

    ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    for text in set(figure.findobj(Text)) - ticks:  # titles, units and names are the user's: a dollar is a dollar
        text.set_parse_math(False)
    name = fspath(path)
    paths = [name] if name.endswith((".png", ".svg")) else [f"{name}.png", f"{name}.svg"]
    with rc_context({"svg.hashsalt": "conr_hf", "svg.fonttype": "none"}):
        for each in paths:
            figure.savefig(each, metadata={"Date": None} if each.endswith(".svg") else None)


def heading(figure: "Figure", title: str, handles: "Sequence[Artist]" = (), columns: int | None = None) -> None:
    """One block of title and legend above the panels; the handles carry their labels."""
    bold = {"fontsize": 12, "fontweight": "bold", "color": INK}
    if not handles:
        figure.suptitle(title, x=0.01, ha="left", **bold)
        return
    columns = columns or len(handles)
    # Constrained layout would lay a suptitle over an outside legend, which fills its columns one after the other.
    ordered = [handle for column in range(columns) for handle in handles[column::columns]]
    look: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "handlelength": 1.4, "alignment": "left"}
    legend = figure.legend(handles=ordered, loc="outside upper left", ncols=columns, title=title, **look)
    legend.get_title().set(**bold)


def run_line(index: int, marked: bool = True) -> dict[str, Any]:
    """How the line of a run is drawn: 60 runs look different."""
    colour, dash = _RUN_COLOURS[index % len(_RUN_COLOURS)], _DASHES[index // len(_RUN_COLOURS) % len(_DASHES)]
    marker = _MARKERS[index % len(_MARKERS)] if marked else ""
    return {"color": colour, "linestyle": dash, "linewidth": 1.3, "marker": marker, "markersize": 4}


def tidy(panel: "Axes", grid: str = "y") -> None:
    """Faint axes without a box, and a grid along `grid` ("x", "y" or "both")."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)
    panel.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=8.5)
    panel.grid(axis=grid, which="major", color="#ececec", linewidth=0.8)  # type: ignore[arg-type]
    panel.set_axisbelow(True)


def count_axis(panel: "Axes", counts: npt.NDArray[np.int64], thresholds: tuple[float, float]) -> None:
    """A logarithmic axis for the training labels in each bin, with a dotted line at both thresholds."""
    panel.set_yscale("log")
    panel.set_ylim(0.6, max(int(counts.max()), thresholds[1]) * 1.6)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for threshold in thresholds:
        panel.axhline(threshold, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    tidy(panel)


def shot_patches(thresholds: tuple[float, float], counts: npt.NDArray[np.int64]) -> "list[Artist]":
    """Legend entries of the shots that there are; `counts` are the training labels in the bin of each thing drawn."""
    from matplotlib.patches import Patch

    low, high = map(count, thresholds)
    limits = {"many": f"> {high}", "median": f"{low} to {high}", "few": f"< {low}"}
    texts = {shot: f"{SHOTS[shot]} ({limit})" for shot, limit in limits.items()}
    drawn = shot_masks(counts, thresholds)
    return [Patch(color=COLOURS[shot], label=text) for shot, text in texts.items() if drawn[shot].any()]


def axis_names(target: str | Sequence[str], unit: str, dimensions: int) -> list[str]:
    """The names of the label dimensions on axes, with their unit; one name alone is numbered."""
    if isinstance(target, str):
        target = [target] if dimensions == 1 else [f"{target} {t + 1}" for t in range(dimensions)]
    if len(target) != dimensions:
        raise ValueError(
            f"target names {len(target)} label dimensions and there are {dimensions}. Pass one name each."
        )
    return [with_unit(name, unit) for name in target]


def with_unit(name: str, unit: str) -> str:
    """`name (unit)`, or the name alone."""
    return f"{name} ({unit})" if unit else name


def count(threshold: float) -> str:
    """A threshold of counts as people read it: 20, 2.5 or, without decimals from 1,000 on, 19,246."""
    return f"{threshold:,.0f}" if threshold >= 1000 else f"{threshold:.10g}"


def number(value: float, span: float) -> str:
    """A label, to at least a hundredth of the `span` of the labels; whole numbers have no decimals."""
    decimals = max(0, 2 - math.floor(math.log10(span))) if span > 0 else 2
    return f"{value:,.{0 if value == round(value) else min(decimals, 9)}f}"
