"""What is uploaded of a run: an allow-list of files, and of JSON a copy without the machine's paths and tokens."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conr_hf.hub.provenance import strip_paths
from conr_hf.utils.run_folder import CARD, INTERVALS, PICTURE, RESULTS, STATE, read_json

Content = Path | bytes

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_MODEL = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json", _INDEX)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_RESUME = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|" + re.escape(STATE))


def upload_files(folder: Path) -> dict[str, Content]:
    """
    What is uploaded of a run, by name in the repository: files, or bytes in their place. The model and its processor,
    and of the run its card, results, plot, intervals and label bins; no predictions, recipe, checkpoints, reports,
    pickles, or anything else. Refuses a folder without a model.
    """
    return _contents(folder, [*_model(folder), CARD, PICTURE, INTERVALS, RESULTS, STATE])


def checkpoint_upload_files(folder: Path) -> dict[str, Content]:
    """The same of a checkpoint: the model, and what a resume needs, not the pickled paths and tokens of `Trainer`."""
    return _contents(folder, [*_model(folder), *filter(_RESUME.fullmatch, sorted(f.name for f in folder.iterdir()))])


def check_holds(folder: Path, names: Iterable[str], problem: str) -> None:
    """Refuses a folder that lacks one of the files, with the problem that follows from it."""
    for name in names:
        if not (folder / name).is_file():
            missing = f"it has no {name}" if folder.is_dir() else "there is no such folder"
            raise ValueError(f'"{folder}" {problem}: {missing}. Give a folder that conr-hf train wrote.')


def _model(folder: Path) -> list[str]:
    weights = [name for name in _WEIGHTS if (folder / name).is_file()]
    if (folder / _INDEX).is_file():
        weights += sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
    check_holds(folder, weights or _WEIGHTS[:1], "holds no model")
    return [*_MODEL, *weights]


def _contents(folder: Path, names: Iterable[str]) -> dict[str, Content]:
    contents: dict[str, Content] = {name: folder / name for name in names if (folder / name).is_file()}
    for name in [name for name in contents if name.endswith(".json")]:
        content = read_json(folder / name)
        public = _public(content)
        if "command" in content:  # word by word, since a path in it may hold spaces
            words = [word.partition("=") for word in shlex.split(content["command"])]
            public["command"] = _public(shlex.join("".join(map(strip_paths, parts)) for parts in words))
        if public != content:
            contents[name] = (json.dumps(public, indent=2) + "\n").encode()
    return contents


def _public(value: Any) -> Any:
    """The same without the tokens and the machine's paths in it."""
    if isinstance(value, Mapping):
        return {name: _public(part) for name, part in value.items() if not name.endswith("token")}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return strip_paths(_TOKEN.sub("...", value)) if isinstance(value, str) else value
