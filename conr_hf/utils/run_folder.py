"""The files of a run's folder: their names, and how they are read, in one place."""

import json
import shutil
from pathlib import Path
from typing import Any

CARD = "README.md"
FEATURE_INDEX = "feature_index.safetensors"
INTERVALS = "intervals.json"
PICTURE, MAPS = "density.png", "maps.png"
PREDICTIONS = "predictions.csv"
RECIPE = "recipe.yaml"
RESULTS = "results.json"
STATE = "conr_state.safetensors"

# What a finished run is known by, and what else it, its exports and `conr-hf report` leave behind.
_MODELS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_EXPORTS = ("model.onnx", "model.onnx.data", "model.pt2", "timm.safetensors")
_OTHERS = (
    *("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json"),
    *("training_args.bin", "trainer_state.json", STATE, FEATURE_INDEX, INTERVALS, PICTURE, MAPS, PREDICTIONS, RECIPE),
)
_REPORT = "report.json"  # in the folder report


def files_of_run(folder: str | Path) -> list[str]:
    """The names of what says that a folder holds a run: its models, results and whole checkpoints; empty without."""
    models = [path.name for pattern in _MODELS for path in sorted(Path(folder).glob(pattern))]
    results = [RESULTS] if Path(folder, RESULTS).is_file() else []
    checkpoints = sorted(path.parent.name for path in Path(folder).glob("checkpoint-*/trainer_state.json"))
    return [*models, *results, *checkpoints]


def clear_run(folder: str | Path) -> None:
    """Removes the files of a run from its folder: models, checkpoints, results, pictures, exports, card and report."""
    root = Path(folder)
    for path in [root / name for name in (*files_of_run(root), *_OTHERS)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in root.glob("checkpoint-*"):  # not written to their end
        if path.name[11:].isdigit():
            shutil.rmtree(path)
    clear_exports(root)
    card = root / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if text.startswith("---\n") and "- conr-hf\n" in text.split("---\n")[1]:  # a tag of every card
        card.unlink()  # another README stays


def clear_exports(folder: str | Path) -> None:
    """Removes what was made of a run's model: exports and report."""
    for name in _EXPORTS:
        Path(folder, name).unlink(missing_ok=True)
    if Path(folder, "report", _REPORT).is_file():
        shutil.rmtree(Path(folder, "report"))


def written_since(folder: Path, before: dict[str, int]) -> list[str]:
    """The names of the files in a folder that are new or written anew since [`file_times`] was asked."""
    return sorted(name for name, time in file_times(folder).items() if before.get(name) != time)


def file_times(folder: Path) -> dict[str, int]:
    """When each file in a folder, which need not be there, was written, in nanoseconds."""
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises a `ValueError` if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
    except ValueError as error:
        raise ValueError(f'"{path}" holds no JSON object ({error}); train or save again') from error
    return content


def results_of(model_name: str) -> dict[str, Any]:
    """The results of the run that a saved model or checkpoint is part of; empty without."""
    files = [folder / RESULTS for folder in (Path(model_name), Path(model_name).parent)]
    found: Any = next((json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()), {})
    return found if isinstance(found, dict) else {}
