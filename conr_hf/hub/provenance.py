"""Where a run comes from: its parts on the Hub by name, and nothing of the machine it was made on."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import timm

# Two names or more: "/km2" is a unit. Not the path of a URL, nor the rest of a relative path.
_PATH = re.compile(r"(?<![\w.~/\\-])(?!//)(?:file://|~|[A-Za-z]:)?(?:[/\\]+[^\s/\\\"'`,;:=|<>\[\]{}()]+){2,}[/\\]?")


def hub_ids(*, model: str, pretrained: bool, weights: str | None, data: str | None) -> dict[str, str | None]:
    """
    The ids on the Hub of the `model` and `data` that a run is made from, or `None` where they are not from there. Only
    the machine that trains knows: elsewhere a folder's path looks like an id.
    """
    ids = {"model": model if pretrained and weights is None else None, "data": data}
    found = {key: name if name and is_hub_id(name) and not Path(name).exists() else None for key, name in ids.items()}
    if found["model"] and model.startswith("timm/"):
        known = timm.get_pretrained_cfg(model.removeprefix("timm/"))
        found["model"] = known.hf_hub_id if known is not None else None
    return found


def is_hub_id(name: str) -> bool:
    """Whether this can be the name of a model or data set on the Hub: `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def strip_paths(value: Any) -> Any:
    """
    The same with every absolute path in its strings cut to the last part.

    Example:
        >>> strip_paths({"data": "/home/me/my faces", "source": "root=/srv/me/faces, from https://hf.co/a/b"})
        {'data': 'my faces', 'source': 'root=faces, from https://hf.co/a/b'}
    """
    if isinstance(value, Mapping):
        return {name: strip_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [strip_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    posix, windows = PurePosixPath(value), PureWindowsPath(value)
    if (posix.is_absolute() or windows.is_absolute()) and len(windows.parts) > 2:
        return windows.name  # which takes both kinds of slashes
    return _PATH.sub(lambda found: PureWindowsPath(found.group()).name, value)
