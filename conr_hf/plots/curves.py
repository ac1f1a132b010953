"""How training went: losses, anchors and evaluation errors over the epochs."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from conr_hf.metrics import SHOTS
from conr_hf.plots.style import COLOURS, FAINT, INK, heading, new_figure, run_line, save, tidy, with_unit

_FIGURES = {  # in the log -> what its panel is called, and the factor
    "base_loss": ("base loss (standardised residuals)", 1.0),
    "conr_loss": ("ConR loss (unweighted)", 1.0),
    "conr_anchors": ("rows that are anchors (%)", 100.0),
    "conr_gradient": ("ConR's gradient at the features, in the base loss's", 1.0),
    "conr_cosine": ("cosine between ConR's gradient and the base loss's", 1.0),
    "rnc_gradient": ("Rank-N-Contrast's gradient, in the base loss's", 1.0),
    "rnc_cosine": ("cosine between Rank-N-Contrast's and the base loss's", 1.0),
}
_RING: dict[str, Any] = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.0}


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | PathLike[str],
    *,
    unit: str,
    title: str,
    best: Mapping[str, float] | None = None,
) -> None:
    """
    Base loss, ConR loss, share of anchors, the gradients of ConR and Rank-N-Contrast beside that of the base loss, and
    MAE on the evaluation set, by epoch; what was not logged has no panel.

    One run's MAE is drawn for all samples and each shot, several runs' for all samples. A ring is the kept checkpoint.

    Args:
        histories (`Mapping` of `str` to dictionaries): Each run's `log_history`, as `trainer_state.json` has it.
        path, unit, title: As in [`~conr_hf.plots.density_with_error`].
        best (`Mapping` of `str` to `float`, *optional*): Epoch of the checkpoint that each run kept as its best.

    Raises:
        `ValueError`: If nothing of this was logged.
    """
    logged = {name for history in histories.values() for entry in history for name in entry}
    shown = [name for name in (*_FIGURES, "eval_mae") if name in logged]
    if not shown:
        raise ValueError(f"The run logged none of {', '.join(_FIGURES)} and eval_mae.")
    single = len(histories) == 1
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = new_figure(4.4 * columns, 2.7 * rows + 0.7)
    from matplotlib.ticker import MaxNLocator  # after new_figure, which says how to install it

    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for panel, name in zip(panels, shown, strict=False):
        text, factor = _FIGURES.get(name, (with_unit("evaluation MAE", unit), 1.0))
        panel.set_title(text, loc="left", fontsize=9.5, color=INK)
        for i, (run, history) in enumerate(histories.items()):
            lines = {name: run_line(i)}
            if single and name == "eval_mae":
                lines |= {f"eval_{shot}_mae": {**run_line(i), "color": colour} for shot, colour in COLOURS.items()}
            for key, style in lines.items():
                points = sorted((entry["epoch"], factor * entry[key]) for entry in history if key in entry)
                epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
                panel.plot(epochs, values, **{**style, "marker": style["marker"] if len(points) <= 40 else ""})
                if name == "eval_mae" and best is not None and best.get(run) in epochs:
                    kept = epochs.index(best[run])
                    panel.plot(epochs[kept], values[kept], color=style["color"], **_RING)
        low, high = panel.get_ylim()
        bottom = min(low, 0) if name.endswith("_cosine") else 0
        panel.set_ylim(bottom, 104 if name == "conr_anchors" else max(high, 0))
        tidy(panel)
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("epoch", fontsize=8.5)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=run, **run_line(i)) for i, run in enumerate(histories)]
    if single:
        evaluated = {"all": run_line(0)["color"]} if "eval_mae" in shown else {}
        evaluated |= {shot: colour for shot, colour in COLOURS.items() if f"eval_{shot}_mae" in logged}
        handles = [Line2D([], [], color=colour, label=f"MAE, {SHOTS[shot]}") for shot, colour in evaluated.items()]
    if best and "eval_mae" in shown:
        handles.append(Line2D([], [], color=FAINT, linestyle="", label="kept checkpoint", **_RING))
    heading(figure, title, handles, columns=min(len(handles), 5))
    save(figure, path)
