"""YAML as people write it: small files of plain values, in which nothing runs and nothing unfolds."""

from pathlib import Path
from typing import Any

import yaml

LARGEST = 1_000_000  # bytes


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them unfold into gigabytes
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)


def read_yaml(path: str | Path) -> Any:
    """
    What a YAML file holds; raises a `ValueError` that names file and line if it is no YAML in UTF-8, or has over 1 MB,
    aliases, or tags for objects of a program.
    """
    size = Path(path).stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size / 1e6:,.1f} MB and is not read; options take far less than 1 MB.")
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place, problem = f"{path}", "this is not YAML. Write one option a line"
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            place += f", line {error.problem_mark.line + 1}"
        if isinstance(error, yaml.composer.ComposerError | yaml.constructor.ConstructorError):
            problem = f"{error.problem}. Write plain values"
        raise ValueError(f"{place}: {problem}, as in name: value.") from error


def parse_yaml(text: str) -> Any:
    """What a YAML text holds; raises a `yaml.YAMLError`, `ValueError` or `RecursionError` if it cannot be read."""
    return yaml.load(text, Loader=_PlainLoader)
