"""The methods of a run in words, and the papers they are from."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.config import DataConfig
from conr_hf.hub.card_template import TEMPLATES, number


class Method(NamedTuple):
    """A method of a run: its name, the key of its paper in `papers.bib` or `""`, and its settings in words."""

    name: str
    paper: str
    words: str


def describe_methods(
    conr: Mapping[str, Any],
    options: Mapping[str, Any],
    unit: str,
    refit: Mapping[str, Any] | None = None,
    own_transform: bool = False,
) -> list[Method]:
    """
    The methods of a run as `templates/methods.md` describes them, the base loss first: from the fields of
    [`ResolvedConfig`] (empty if unknown) and of [`ConRConfig`] (missing ones are off), and from `refit_head` and
    `own_transform` of `results.json`. Incomplete ones raise `jinja2.UndefinedError`, `TypeError` or `ValueError`.
    """
    if not conr:
        return []
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_one_line)
    environment.filters["number"] = number
    template = environment.from_string((TEMPLATES / "methods.md").read_text(encoding="utf-8"))
    text = template.render(
        conr=conr,
        options=options,
        unit=unit,
        refit=refit,
        augmentation=_augmentation(options),
        own_transform=own_transform,
    )
    sections = re.split(r"(?m)^## ", text)[1:]
    found = [re.split(r" \|(.*)\n", section, maxsplit=1) for section in sections]
    return [Method(name, paper.strip(), " ".join(settings.split())) for name, paper, settings in found]


def _augmentation(options: Mapping[str, Any]) -> Augmentation:
    known = [field.name for field in fields(DataConfig) if field.name in options]
    return DataConfig(**{"crop_padding": 0.0, **{name: options[name] for name in known}}).augmentation_settings()


def citations(methods: Iterable[Method]) -> list[str]:
    """BibTeX of the methods' papers, each once."""
    text = (TEMPLATES / "papers.bib").read_text(encoding="utf-8")
    papers = {key: entry for entry, key in re.findall(r"(?ms)^(@\w+\{(\w+),.*?^\})", text)}
    return [papers[key] for key in dict.fromkeys(method.paper for method in methods) if key]


def _one_line(value: Any) -> str:
    """A value that no heading begins in."""
    return " ".join(str(value).splitlines())
