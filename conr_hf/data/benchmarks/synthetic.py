"""Shared by synthetic benchmarks: settings from text, and labels of a given imbalance."""

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

S = TypeVar("S")


def read_settings(name: str, text: str, kind: type[S]) -> S:
    """The settings in a text like `"imbalance=10, rows=500"`, for a dataclass with a default for each."""
    kinds = {setting.name: setting.type for setting in fields(kind)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        setting, _, value = (piece.strip() for piece in part.partition("="))
        if setting not in kinds:
            raise ValueError(f'{name}: "{part}" is no setting; write {", ".join(f"{known}=..." for known in kinds)}.')
        try:
            settings[setting] = float(value) if kinds[setting] is float else int(value)
        except ValueError as error:
            number = "a number" if kinds[setting] is float else "a whole number"
            raise ValueError(f'{name}: {setting} is "{value}"; it must be {number}.') from error
    return kind(**settings)


def check_settings(name: str, imbalance: float, rows: int, seed: int) -> None:
    """Raises `ValueError` for settings of a synthetic benchmark that are out of range."""
    if not 1 <= imbalance < float("inf"):
        raise ValueError(f"{name}: imbalance is {imbalance:g}; it must be finite and 1 or more.")
    if rows < 1:
        raise ValueError(f"{name}: rows is {rows}; it must be 1 or more.")
    if seed < 0:
        raise ValueError(f"{name}: seed is {seed}; it must be 0 or more.")


def long_tailed(even: np.ndarray, imbalance: float) -> np.ndarray:
    """Numbers spread evenly from 0 to 1, moved so that their density falls exponentially from 1 to 1 / imbalance."""
    if imbalance == 1:
        return even
    # The inverse of the distribution function.
    moved: np.ndarray = -np.log1p(even * (1 / imbalance - 1)) / np.log(imbalance)
    return moved
