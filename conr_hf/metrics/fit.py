"""Whether predictions follow the labels at all: how far they vary, and whether a constant does as well."""

from typing import Any

import numpy as np
import numpy.typing as npt

from conr_hf.imbalance import label_columns

HARDLY = (
    0.1  # predictions that vary less than this share of the labels' standard deviation have learnt next to nothing
)


def fit(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """
    How predictions of shape `(N,)` or `(N, T)` follow labels of the same shape, both in label units.

    Returns:
        `dict`: For each of the T label dimensions, in lists, `prediction_std` and `label_std`, standard deviations in
        label units; `r2`, 1 less the share of the labels' variance that is left in the errors, `None` for constant
        labels; and `best_constant`, the median of these labels, the constant with the least error. And its MAE, the
        mean over the dimensions, as `best_constant_mae`.

    Example:
        >>> fit([1.0, 2.0, 3.0], [1.0, 2.0, 9.0])["best_constant"], fit([1.0, 2.0, 3.0], [1.0, 2.0, 9.0])["r2"]
        ([2.0], [0.05263157894736836])
    """
    y = label_columns(labels)
    p = label_columns(predictions, "predictions").reshape(y.shape)
    mse, variance, constant = ((p - y) ** 2).mean(0), y.var(0), np.median(y, axis=0)
    return {
        "prediction_std": p.std(0).tolist(),
        "label_std": y.std(0).tolist(),
        "r2": [1 - error / of if of > 0 else None for error, of in zip(mse.tolist(), variance.tolist(), strict=True)],
        "best_constant": constant.tolist(),
        "best_constant_mae": float(np.abs(y - constant).mean()),
    }


def describe_fit(found: dict[str, Any], mae: float, targets: list[str], unit: str) -> tuple[str, str | None]:
    """
    What [`fit`] found, in sentences to print: how far predictions vary; and what is wrong with them, if they hardly
    vary or are no better than the constant with the least error. `mae` is that of the model, in label units.
    """
    of_unit = f" {unit}" if unit else ""
    several = len(found["label_std"]) > 1
    said, still = [], []
    for t, (of_predictions, of_labels) in enumerate(zip(found["prediction_std"], found["label_std"], strict=True)):
        name = f" of {targets[t]}" if several else ""
        r2 = "" if found["r2"][t] is None else f", R2 {found['r2'][t]:.3f}"
        said.append(
            f"predictions{name} vary by {of_predictions:.4g}{of_unit} where labels vary by {of_labels:.4g}{r2}"
        )
        if of_predictions < HARDLY * of_labels:
            still.append(f"{of_predictions:.4g} beside {of_labels:.4g}{of_unit}{name}")
    text = f"By their standard deviation, {'; '.join(said)}."
    constant, best = found["best_constant"], found["best_constant_mae"]
    if best is not None:
        answer = " and ".join(f"{value:.4g}" for value in constant)
        text += f" The best constant here, {answer}{of_unit}, has an MAE of {best:.4g}{of_unit}."
    if still:
        return text, f"the model has not learnt: its predictions hardly vary (standard deviation {', '.join(still)})"
    if best is not None and mae >= best > 0:
        return text, f"the model is no better than a constant (MAE {mae:.4g}{of_unit}, the best constant's {best:.4g})"
    return text, None
