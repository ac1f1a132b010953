"""What is saved beside a model for those who go on with it: resolved settings, and bins of the training labels."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.utils.hub import cached_file

from conr_hf.imbalance import Bins
from conr_hf.resolved import Resolved

FILE_NAME = "conr_state.safetensors"


def save_state(folder: str | Path, resolved: Resolved, bins: Bins) -> None:
    """Writes `conr_state.safetensors` into `folder`; nothing in it is needed to load or use the model."""
    arrays = {
        f"{name}.{dimension}": np.asarray(part)
        for name, parts in bins.to_dict().items()
        for dimension, part in enumerate(parts)
    }
    save_file(arrays, Path(folder, FILE_NAME), metadata={"resolved": json.dumps(asdict(resolved))})


def load_state(name: str) -> tuple[Resolved, Bins] | None:
    """The resolved settings and the bins saved beside a model, a folder or an id on the Hub; or `None`."""
    path = name and cached_file(
        name, FILE_NAME, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if not path:
        return None
    saved: dict[str, list[Any]] = {}
    with safe_open(path, "np") as file:
        for key in sorted(file.keys(), key=lambda key: int(key.rpartition(".")[2])):
            saved.setdefault(key.rpartition(".")[0], []).append(file.get_tensor(key))
        fields = json.loads(file.metadata()["resolved"])
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Resolved(**{**fields, **lists}), Bins.from_dict(saved)
