"""What of a run's folder goes to the Hub, and its JSON without the paths and tokens of the machine it ran on."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conr_hf.hub.provenance import strip_paths
from conr_hf.utils.run_folder import STATE

Content = Path | bytes

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_MODEL = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json", _INDEX)
_RUN = ("README.md", "density.png", "intervals.json", "results.json", STATE)
_RESUME = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", STATE)
_RNG = re.compile(r"rng_state(_\d+)?\.pth")

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def upload_files(folder: Path) -> dict[str, Content]:
    """
    What goes up of a run's folder, or of a checkpoint's: the model and its processor, and of the run its card,
    results, plot, intervals and label bins. All else stays: predictions, recipe, checkpoints, reports, pickles.

    Args:
        folder (`pathlib.Path`): The folder.

    Returns:
        `dict`: by name in the repository a file, or the bytes that are sent in its place.

    Raises:
        `ValueError`: if there is no model in it, or a JSON file of it cannot be read.
    """
    return _contents(folder, [*_model_names(folder), *_there(folder, _RUN)])


def checkpoint_upload_files(folder: Path) -> dict[str, Content]:
    """
    What goes up of a checkpoint from which training is to go on: the model, and the state of training. The pickled
    `training_args.bin`, which holds paths and tokens and which a resume does not read, stays.

    Args:
        folder (`pathlib.Path`): The checkpoint's folder.

    Returns, raises:
        As [`upload_files`].
    """
    rng = sorted(path.name for path in folder.iterdir() if _RNG.fullmatch(path.name))
    return _contents(folder, [*_model_names(folder), *_there(folder, _RESUME), *rng])


def _there(folder: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (folder / name).is_file()]


def _model_names(folder: Path) -> list[str]:
    weights = _there(folder, _WEIGHTS)
    if (folder / _INDEX).is_file():
        weights += sorted(set(_read(folder / _INDEX).get("weight_map", {}).values()))
    lacking = [name for name in weights or _WEIGHTS[:1] if not (folder / name).is_file()]
    if lacking:
        missing = f"it has no {lacking[0]}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f'"{folder}" holds no model: {missing}. Give a folder that conr-hf train wrote.')
    return [*_there(folder, _MODEL), *weights]


def _contents(folder: Path, names: list[str]) -> dict[str, Content]:
    return {name: _fit(folder / name) if name.endswith(".json") else folder / name for name in names}


def _fit(path: Path) -> Content:
    """The file, or what is sent in its place: without paths and tokens."""
    content = _read(path)
    fit = strip_paths(_without_tokens({**content, **_command(content)}))
    return path if fit == content else (json.dumps(fit, indent=2) + "\n").encode()


def _command(content: Mapping[str, Any]) -> dict[str, str]:
    """The command line, word by word, since a path in it may hold spaces."""
    if "command" not in content:
        return {}
    words = [word.partition("=") for word in shlex.split(content["command"])]
    return {"command": shlex.join("".join(strip_paths(list(parts))) for parts in words)}


def _without_tokens(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_tokens(part) for name, part in value.items() if not name.endswith("token")}
    if isinstance(value, list):
        return [_without_tokens(part) for part in value]
    return _TOKEN.sub("...", value) if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f'"{path}" is no JSON: {error}. Save the model again.') from error
    if not isinstance(content, dict):
        raise ValueError(f'"{path}" does not hold what a run writes. Save the model again.')
    return content
