"""Saved models: loaded, and what their files say of them."""

import json
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from conr_hf.opening import UNREADABLE, check_config, reason_of


def load_saved(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A saved model in float32 and its processor. Nothing but JSON and safetensors is opened, and no code is run.

    Raises:
        `ValueError`: if there is none of that name, it is no model for images, its weights are pickled, or it needs
            code that comes with it.
    """
    try:
        check_config(name)
        model = AutoModelForImageClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        return model, AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as error:
        raise ValueError(
            f'"{name}" is not a saved model: {reason_of(error)}. Give a run folder or a model id.'
        ) from error


def targets_of(model: PreTrainedModel) -> list[str]:
    """What the model's T outputs are called, in their order."""
    names: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    return [names[index] for index in range(len(names))]


def unit_beside(model_name: str) -> str:
    """The unit in the results of the run that a saved model or checkpoint lies in; `""` without."""
    files = [folder / "results.json" for folder in (Path(model_name), Path(model_name).parent)]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return str(found[0].get("unit", "")) if found and isinstance(found[0], dict) else ""
