"""Checks of what [`conr_loss`] is given."""

import math
from typing import NamedTuple

from torch import Tensor

from conr_hf.losses.pairs import Distance, check_distance, may_look

CHOICES = {
    "push": ("exponential", "linear"),
    "formulation": ("exact", "reference"),
    "reduction": ("mean", "anchors"),
    "algorithm": ("auto", "dense", "windowed"),
}


class Settings(NamedTuple):
    """The settings of [`conr_loss`], under its names."""

    window: float
    push_scale: float
    temperature: float
    push: str
    formulation: str
    reduction: str
    distance: Distance
    algorithm: str


def bounds(anchors: slice | None, rows: int) -> tuple[int, int]:
    """First and last row of a slice of anchors, of `rows` rows; an error for anything but consecutive rows."""
    if anchors is None:
        return 0, rows
    if not isinstance(anchors, slice) or anchors.step not in (None, 1):
        raise ValueError(f"anchors is {anchors!r}; it must be a slice of consecutive rows, such as slice(0, 32).")
    first, last, _ = anchors.indices(rows)
    return first, max(first, last)


def check_settings(settings: Settings) -> None:
    """Raises a `ValueError` for a setting that [`conr_loss`] cannot use; the sentence says what it may be."""
    check_range("window", settings.window, ", in label units (0: equal labels)", or_zero=True)
    check_range("push_scale", settings.push_scale, ", per label unit (0: equal push)", or_zero=True)
    check_range("temperature", settings.temperature, " (0.07 is the paper's value)")
    given = settings._asdict()
    for name, allowed in CHOICES.items():
        if given[name] not in allowed:
            raise ValueError(f"{name} is {given[name]!r}; it must be one of {', '.join(allowed)}.")
    check_distance(settings.distance)


def check_range(name: str, value: float, hint: str, or_zero: bool = False) -> None:
    """Refuses a setting that is not finite, or not greater than 0; `or_zero` allows 0."""
    if not 0 <= value < math.inf or (value == 0 and not or_zero):
        bound = "at least" if or_zero else "greater than"
        raise ValueError(f"{name} is {value}; it must be finite and {bound} 0{hint}.")


def check_shapes(features: Tensor, labels: Tensor, predictions: Tensor, weights: Tensor | None) -> None:
    """Raises a `ValueError` for tensors that do not fit together."""
    if features.ndim != 2:
        raise ValueError(
            f"features has shape {tuple(features.shape)}; it must be (M, D), one row a view: pool or flatten the rest."
        )
    rows = len(features)
    if labels.ndim not in (1, 2) or len(labels) != rows:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; it must be ({rows},) or ({rows}, T), one row for each of the "
            f"{rows} rows of features."
        )
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions has shape {tuple(predictions.shape)}; it must be that of labels, {tuple(labels.shape)}: "
            "reshape one of them."
        )
    if weights is not None and weights.shape != (rows,):
        raise ValueError(f"weights has shape {tuple(weights.shape)}; it must be ({rows},), one number a row.")


def check_numbers(features: Tensor, labels: Tensor, predictions: Tensor, weights: Tensor | None) -> None:
    """Raises a `ValueError` for a number that is not finite or a negative weight, where looking costs no waiting."""
    if not may_look(features):
        return
    tensors = {"features": features, "labels": labels, "predictions": predictions, "weights": weights}
    for name, tensor in tensors.items():
        # One cheap pass: a sum is finite only if its terms are. Should it overflow, every term is looked at.
        if tensor is not None and not math.isfinite(tensor.detach().sum()):
            wrong = (~tensor.isfinite()).nonzero().tolist()
            if wrong:
                value = tensor[tuple(wrong[0])].item()
                raise ValueError(f"{name}{wrong[0]} is {value}; it must be finite: mend or leave out that row.")
    if weights is not None and weights.numel() and weights.amin() < 0:
        i = int(weights.argmin())
        raise ValueError(f"weights[{i}] is {weights[i].item()}; it must be at least 0 (1 is an ordinary row).")
