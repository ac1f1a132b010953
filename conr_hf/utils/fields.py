"""Help texts and checks of the fields of configuration classes."""

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin

logger = logging.getLogger(__name__)

_Config = TypeVar("_Config")


def argument_help(docstring: str) -> dict[str, str]:
    """What the `Args` of a docstring say about each argument, as plain text on one line."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL)
    texts: dict[str, str] = {}
    for entry in re.split(r"^    (?=\w)", section[1] if section else "", flags=re.MULTILINE)[1:]:
        name, text = re.split(r" \(.*?\):\s", entry, maxsplit=1)
        texts[name] = " ".join(text.replace("`", "").split())
    return texts


def with_help(cls: type[_Config]) -> type[_Config]:
    """Gives the fields of a dataclass the texts of its docstring as `metadata["help"]`, for `HfArgumentParser`."""
    texts = argument_help(cls.__doc__ or "")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in texts:
            text = texts[field.name].replace("%", "%%")  # argparse formats with %
            field.metadata = MappingProxyType({"help": text})
    return cls


def check_choices(config: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises a `ValueError` for a field that is none of its `choices`, or of those in its type, a `Literal`."""
    for field in fields(config):
        parts = (field.type, *get_args(field.type))
        of_type = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        allowed = choices.get(field.name, [] if str in parts else of_type)
        value = getattr(config, field.name)
        if allowed and value not in (*allowed, field.default):
            raise ValueError(f'{field.name} is "{value}"; it must be one of {", ".join(allowed)}.')


def check_not_negative(config: Any, *names: str) -> None:
    """Raises a `ValueError` for a field below 0 or not finite; unset ones pass."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be 0 or more.")


def check_positive(config: Any, *names: str) -> None:
    """Raises a `ValueError` for a field that is not above 0 or not finite; unset ones pass."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            hint = " (0.07 is the paper's value)" if name == "conr_temperature" else ""
            raise ValueError(f"{name} is {value}; it must be greater than 0{hint}.")


def warn_without_effect(config: Any, needs: Mapping[str, tuple[bool, str]]) -> None:
    """Logs one warning of all fields set without effect; `needs` says whether each has one, and what that needs."""
    defaults = {field.name: field.default for field in fields(config)}
    idle = [
        f"{name} (needs {needed})"
        for name, (is_used, needed) in needs.items()
        if not is_used and getattr(config, name) != defaults[name]
    ]
    if idle:
        logger.warning(f"Set, but without effect: {', '.join(idle)}.")
