"""What is saved beside a model: resolved settings, bins of the training labels, and what a resumed run needs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from conr_hf.imbalance import Bins
from conr_hf.models.saved import companion_file
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.utils.run_folder import STATE

logger = logging.get_logger(__name__)

_BINS, _TRAINING = "bins.", "training."


def save_state(
    folder: str | Path, resolved: ResolvedConfig, bins: Bins, training: dict[str, Tensor] | None = None
) -> None:
    """Writes `conr_state.safetensors` beside a model, which loads without it; `training` is for a resumed run only."""
    tensors = {f"{_TRAINING}{name}": value.contiguous() for name, value in (training or {}).items()}
    tensors |= {
        f"{_BINS}{name}.{dimension}": torch.from_numpy(np.asarray(part))
        for name, parts in bins.to_dict().items()
        for dimension, part in enumerate(parts)
    }
    save_file(tensors, Path(folder, STATE), metadata={"resolved": json.dumps(dataclasses.asdict(resolved))})


# Fields whose values do not hang on the labels, by the options that set them.
_OPTIONS = {"weight": "conr_weight", "resample": "resample", "reweight": "reweight", "base_loss": "base_loss"}
_OPTIONS |= {name: name for name in ("rnc_weight", "num_views", "loss_space", "conr_anchors", "conr_reweight")}
_OPTIONS |= {f"{term}_gradient_share": f"{term}_gradient_share" for term in ("conr", "rnc", "ranksim")}


def load_state(name: str) -> tuple[ResolvedConfig, Bins] | None:
    """The settings and bins saved beside a model, a folder or an id on the Hub; `None` where there are none."""
    path = companion_file(name, STATE)
    if path is None:
        return None
    saved: dict[str, list[Any]] = {}
    try:
        with safe_open(path, "np") as file:
            keys = [key.removeprefix(_BINS) for key in file.keys() if key.startswith(_BINS)]  # noqa: SIM118
            for key in sorted(keys, key=lambda key: int(key.rpartition(".")[2])):
                saved.setdefault(key.rpartition(".")[0], []).append(file.get_tensor(_BINS + key))
            fields = json.loads(file.metadata()["resolved"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no file of conr_hf's. Remove it; the model loads without.") from error
    known = dataclasses.fields(ResolvedConfig)
    added = {field.name for field in known if field.default is not dataclasses.MISSING}  # since older files
    if other := sorted(({*fields} ^ {field.name for field in known}) - (added - {*fields})):
        raise ValueError(
            f"{path} was saved by another version of conr_hf, with or without {', '.join(other)}. The model itself is "
            "a plain one: give it training data (train_dataset, or --benchmark or --data with their labels)."
        )
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return ResolvedConfig(**{**fields, **lists}), Bins.from_dict(saved)


def load_training_state(checkpoint: str | Path | None) -> dict[str, Tensor] | None:
    """What [`save_state`] was given as `training`; nothing of a checkpoint without such a file, `None` without one."""
    if checkpoint is None:
        return None
    path = Path(checkpoint, STATE)
    saved = load_file(path) if path.is_file() else {}
    return {name.removeprefix(_TRAINING): value for name, value in saved.items() if name.startswith(_TRAINING)}


def warn_of_other_methods(checkpoint: str, settings: ResolvedConfig) -> None:
    """Names the methods that a checkpoint was trained with where they are others than those of the `settings`."""
    of_checkpoint = load_state(checkpoint)
    if of_checkpoint is None:
        return
    before, now = dataclasses.asdict(of_checkpoint[0]), dataclasses.asdict(settings)
    others = [
        f"{option} {before[field]} (now {now[field]})"
        for field, option in _OPTIONS.items()
        if before[field] != now[field]
    ]
    if others:
        logger.warning(
            f"{checkpoint} was trained with {', '.join(others)}. Set the options so for the run to go on as it was."
        )
