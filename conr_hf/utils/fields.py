"""Help texts and range checks of configuration fields."""

import math
from collections.abc import Mapping
from typing import Any


def about(text: str) -> dict[str, str]:
    return {"help": text}


def check_choices(config: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a `ValueError` for a field that is none of its `choices`."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f'{name} is "{getattr(config, name)}"; it must be one of {", ".join(allowed)}.')


def check_not_negative(config: Any, *names: str) -> None:
    """Raises a `ValueError` for a field below 0 or not finite; unset ones pass."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be 0 or more.")


def check_positive(config: Any, *names: str) -> None:
    """Raises a `ValueError` for a field that is not above 0 or not finite; unset ones pass."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            hint = " (0.07 is the paper's value)" if name == "conr_temperature" else ""
            raise ValueError(f"{name} is {value}; it must be greater than 0{hint}.")
