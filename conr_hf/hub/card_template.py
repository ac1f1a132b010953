"""The template of a model card: rendered in a sandbox, with every value escaped."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from conr_hf.utils.markdown import escape, one_line

OURS = Path(__file__).parent / "templates" / "model_card.md"


@dataclass(frozen=True)
class CardValues:
    """
    What a template of a model card may use, by these names.

    Text is escaped where it is put in, so that HTML and Markdown in it do nothing. Filters: `code` (as code), `number`
    (four digits), `percent`, `python` (a string literal), `url` (a part of an address), `fenced("bash")` (a block of
    code).

    Args:
        card_data (`str`): The metadata as YAML, to stand between two lines `---`.
        model_name, model_id (`str`): The model's name, and its id on the Hub, or `you/NAME` where that is not known.
        targets (`Sequence[str]`): What is predicted.
        unit (`str`): Unit of the labels, or `""`.
        base (`Mapping`): What was trained: `name` or `""`, `id` on the Hub or `None`, `license` or `None`,
            `scratch`, `timm`.
        data (`Mapping`): What it was trained on: `name` or `""`, `id` on the Hub or `None`, `n` or `None`, and of a
            benchmark `description`, `credit`, `license`, `restricted` (its terms must be accepted), `people` (what of
            people its images show, or `""`).
        splits (`Sequence[Mapping]`): What was evaluated: `name`, and `rows` of `shot`, `n`, `mae`, `gm`, `bmae` and
            `baseline`, the MAE of the constant median or `None`; errors in label units. Of maps also `rmse`, of depth
            `abs_rel` and `delta1`, of gaze `angular_error` in degrees, else `None`.
        picture (`str`, *optional*): File of the picture of label density and errors.
        maps (`Mapping`, *optional*): Of a model that predicts maps: `loader`, the class of transformers that loads it,
            `output`, what its output calls them, and `picture`, the file of some maps, or `None`. Then `n` counts
            pixels.
        thresholds (`Sequence[float]`): Few shots have fewer training labels in their bin than the first, many more
            than the second.
        methods (`Sequence`): Of each method its `name` and `words`.
        training (`Mapping`): `command`, `recipe` (YAML), `hardware`, `minutes`, `seed`, `steps`, `epochs`,
            `best_epoch`, `metric`, `versions` (text); what is not known is `None`.
        intervals (`Mapping`, *optional*): `coverage` and `n` of the calibration, `split`, `widths` (`target`, `low`,
            `high`, `half_width`), `shots` (`split`, `target`, `shot`, `n`, `covered`, `low`, `high`, `kept`).
        limits (`Sequence[Mapping]`): Of each target `target`, `low` and `high` of its training labels' bins, `rare`
            (pairs of low and high: where few training labels are) and `more` (how many of these are left out).
        citations (`Sequence[str]`): BibTeX of the methods.
    """

    card_data: str
    model_name: str
    model_id: str
    targets: Sequence[str]
    unit: str
    base: Mapping[str, Any]
    data: Mapping[str, Any]
    splits: Sequence[Mapping[str, Any]]
    picture: str | None
    maps: Mapping[str, Any] | None
    thresholds: Sequence[float]
    methods: Sequence[Any]
    training: Mapping[str, Any]
    intervals: Mapping[str, Any] | None
    limits: Sequence[Mapping[str, Any]]
    citations: Sequence[str]


def read_template(path: str | Path) -> str:
    """
    The text of a user's template.

    Raises:
        `ValueError`: if it is no file, no UTF-8 or no Jinja template, or uses what a card does not have.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f'The model card template "{path}" cannot be read ({error.strerror}).') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'The model card template "{path}" is not UTF-8. Save it as UTF-8.') from error
    environment = _environment()
    try:
        parsed = environment.parse(text)
        environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f'The model card template "{path}" is no Jinja template: line {error.lineno}, {error.message}'
        ) from error
    if any(True for _ in meta.find_referenced_templates(parsed)):
        raise ValueError(f'The model card template "{path}" takes in another file. Write all of it in one.')
    known = [value.name for value in fields(CardValues)]
    if unknown := sorted(meta.find_undeclared_variables(parsed) - set(known) - set(environment.globals)):
        raise ValueError(
            f'The model card template "{path}" uses "{unknown[0]}", which a card does not have. It has '
            f"{', '.join(known)}."
        )
    return text


def render(text: str, values: CardValues) -> str:
    """
    A template filled in. `ModelCard.from_template` does the same without a sandbox and without escaping.

    Raises:
        `ValueError`: for whatever goes wrong in a user's template.
    """
    named = {value.name: getattr(values, value.name) for value in fields(values)}
    try:
        return _environment().from_string(text).render({**named, "card_data": Markup(values.card_data)}) + "\n"
    except Exception as error:  # an expression can raise anything
        raise ValueError(f"the template stopped with {type(error).__name__}, {error}") from error


def number(value: Any) -> str:
    """
    Four digits, or all before the point.

    Raises:
        `ValueError`: if it is no finite number.

    Example:
        >>> number(0.123456), number(512.71), number(12345.6)
        ('0.1235', '512.7', '12,346')
    """
    value = finite(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def finite(value: Any) -> int | float:
    """
    Raises:
        `ValueError`: if `value` is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'"{one_line(str(value))[:40]}" is no number')
    return value


def _shown(value: Any) -> Any:
    """What stands for a value in a card."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Markup(value)
    return Markup("" if value is None else escape(str(value)))


def _code(text: str) -> Markup:
    plain = one_line(str(text))
    return Markup(escape(plain) if not plain or set(plain) & set("`|") else f"`{plain}`")


def _fenced(text: str, language: str = "") -> Markup:
    lines = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in str(text).strip().split("\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))  # longer than any within
    return Markup(f"{fence}{language}\n{lines}\n{fence}")


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=True, finalize=_shown)
    environment.filters |= {
        "code": _code,
        "fenced": _fenced,
        "number": lambda value: Markup(number(value)),
        "percent": lambda share: Markup(f"{number(round(100 * share, 1))} %"),
        "python": lambda text: Markup(json.dumps(one_line(text), ensure_ascii=False)),
        "url": lambda text: Markup(quote(text, safe="/")),
    }
    return environment
