"""The files of a run's folder: their names, and how they are read, in one place."""

import json
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
