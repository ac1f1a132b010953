"""The template of a model card: rendered in a sandbox, with every value escaped."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from conr_hf.utils.markdown import escape, one_line

TEMPLATES = Path(__file__).parent / "templates"


class CardValues(TypedDict):
    """What a template of a model card may use, by these names. The package's own describes each at its top."""

    card_data: str
    model_name: str
    model_id: str
    targets: list[str]
    unit: str
    base: dict[str, Any]
    data: dict[str, Any]
    splits: list[dict[str, Any]]
    picture: str | None
    maps: dict[str, Any] | None
    thresholds: Sequence[float]
    methods: Sequence[Any]
    training: dict[str, Any]
    intervals: dict[str, Any] | None
    limits: list[dict[str, Any]]
    citations: list[str]


def read_template(path: str | Path | None) -> str:
    """The text of the user's template, or unset the package's own. Refuses one that uses what a card does not have."""
    whose = f'The model card template "{path}"'
    try:
        text = Path(path or TEMPLATES / "model_card.md").read_text(encoding="utf-8")
        parsed = _ENVIRONMENT.parse(text)
        _ENVIRONMENT.from_string(text)  # which looks for its filters
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{whose} cannot be read, or is not UTF-8 ({error}).") from error
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{whose} is no Jinja template: line {error.lineno}, {error.message}") from error
    if any(True for _ in meta.find_referenced_templates(parsed)):
        raise ValueError(f"{whose} takes in another file. Write all of it in one.")
    known = CardValues.__annotations__
    if unknown := sorted(meta.find_undeclared_variables(parsed) - {*known, *_ENVIRONMENT.globals}):
        raise ValueError(f'{whose} uses "{unknown[0]}", which a card does not have. It has {", ".join(known)}.')
    return text


def render(text: str, values: CardValues) -> str:
    """Fills in a template. `ModelCard.from_template` does so too, but without a sandbox and without escaping."""
    try:
        return _ENVIRONMENT.from_string(text).render({**values, "card_data": Markup(values["card_data"])}) + "\n"
    except Exception as error:  # an expression can raise anything
        raise ValueError(f"the template stopped with {type(error).__name__}, {error}") from error


def number(value: Any) -> str:
    """
    Four digits, or all before the point, of a finite number.

    >>> number(0.123456), number(512.71), number(12345.6)
    ('0.1235', '512.7', '12,346')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'"{one_line(str(value))[:40]}" is no number')
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _escaped(value: Any) -> Markup:
    if isinstance(value, Markup | int | float) and not isinstance(value, bool):
        return Markup(value)
    return Markup("" if value is None else escape(str(value)))


def _code(text: str) -> Markup:
    plain = one_line(str(text))
    return Markup(escape(plain) if not plain or set(plain) & set("`|") else f"`{plain}`")


def _fenced(text: str, language: str = "") -> Markup:
    lines = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in str(text).strip().split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))  # longer than any within
    return Markup(f"{fence}{language}\n{lines}\n{fence}")


_ENVIRONMENT = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=True, finalize=_escaped)
_ENVIRONMENT.filters |= {
    "code": _code,
    "fenced": _fenced,
    "number": lambda value: Markup(number(value)),
    "percent": lambda share: Markup(f"{number(round(100 * share, 1))} %"),
    "python": lambda text: Markup(json.dumps(one_line(text), ensure_ascii=False)),
    "url": lambda text: Markup(quote(text, safe="/")),
}
