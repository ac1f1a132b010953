"""What is uploaded of a run: an allow-list of files, and of JSON a copy without the machine's paths and tokens."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conr_hf.hub.provenance import strip_paths
from conr_hf.utils.run_folder import INTERVALS, PICTURE, RESULTS, STATE, read_json

Content = Path | bytes

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_MODEL = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json", _INDEX)
_RUN = ("README.md", PICTURE, INTERVALS, RESULTS, STATE)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_RESUME = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|" + re.escape(STATE))


def upload_files(folder: Path) -> dict[str, Content]:
    """
    What is uploaded of a run's folder: the model and its processor, and of the run its card, results, plot, intervals
    and label bins. Not predictions, recipe, checkpoints, reports, pickles, or anything else.

    Returns:
        `dict`: by name in the repository a file, or the bytes that are sent in its place.

    Raises:
        `ValueError`: if there is no model in it, or a JSON file of it cannot be read.
    """
    return _contents(folder, [*_model(folder), *_RUN])


def checkpoint_upload_files(folder: Path) -> dict[str, Content]:
    """
    The same of a checkpoint to resume from: the model, and the state of training. Not the pickled
    `training_args.bin`, which holds paths and tokens, and which a resume does not read.
    """
    return _contents(folder, [*_model(folder), *filter(_RESUME.fullmatch, sorted(f.name for f in folder.iterdir()))])


def _model(folder: Path) -> list[str]:
    weights = [name for name in _WEIGHTS if (folder / name).is_file()]
    if (folder / _INDEX).is_file():
        weights += sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
    for name in weights or _WEIGHTS[:1]:
        if not (folder / name).is_file():
            missing = f"it has no {name}" if folder.is_dir() else "there is no such folder"
            raise ValueError(f'"{folder}" holds no model: {missing}. Give a folder that conr-hf train wrote.')
    return [*_MODEL, *weights]


def _contents(folder: Path, names: Iterable[str]) -> dict[str, Content]:
    contents: dict[str, Content] = {name: folder / name for name in names if (folder / name).is_file()}
    for name, path in contents.items():
        if name.endswith(".json"):
            content = read_json(folder / name)
            public = _public(content)
            contents[name] = path if public == content else (json.dumps(public, indent=2) + "\n").encode()
    return contents


def _public(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file of a run without the paths and tokens of the machine."""
    if "command" in content:  # word by word, since a path in it may hold spaces
        words = [word.partition("=") for word in shlex.split(content["command"])]
        content = {**content, "command": shlex.join("".join(map(strip_paths, parts)) for parts in words)}
    stripped: dict[str, Any] = strip_paths(_without_tokens(content))
    return stripped


def _without_tokens(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_tokens(part) for name, part in value.items() if not name.endswith("token")}
    if isinstance(value, list):
        return [_without_tokens(part) for part in value]
    return _TOKEN.sub("...", value) if isinstance(value, str) else value
