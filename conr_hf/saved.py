"""Saved models: loaded, and what their files say of them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from conr_hf.opening import UNREADABLE, check_config, map_loader, reason_of


def load_saved(name: str, maps: bool = False) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A saved model in float32 and its processor. Nothing but JSON and safetensors is opened, and no code is run.

    Args:
        name (`str`): Run folder, checkpoint or Hub id.
        maps (`bool`, *optional*, defaults to `False`): Whether it may be a model that predicts maps.

    Raises:
        `ValueError`: if there is none of that name, it is no model for images, its weights are pickled, it needs
            code that comes with it, or it predicts maps and may not.
    """
    try:
        check_config(name)
        loader = map_loader(_config(name))
        if loader is None or maps:
            model = (loader or AutoModelForImageClassification).from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
            return model, AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as error:
        raise ValueError(
            f'"{name}" is not a saved model: {reason_of(error)}. Give a run folder or a model id.'
        ) from error
    raise ValueError(
        f'"{name}" predicts maps, which conr-hf predict and conr-hf evaluate can use, and {loader.__name__} loads in '
        "Python, as its model card shows."
    )


def predicts_maps(name: str) -> bool:
    """Whether a saved model predicts maps, by its configuration alone; not where it has none."""
    return map_loader(_config(name)) is not None


def _config(name: str) -> dict[str, Any]:
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError:
        return {}  # of an adapter, which has none; or said by who opens the model
    return config if isinstance(config, dict) else {}


def targets_of(model: PreTrainedModel) -> list[str]:
    """What the model's T outputs are called, in their order."""
    names: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    return [names[index] for index in range(len(names))]


def unit_beside(model_name: str) -> str:
    """The unit in the results of the run that a saved model or checkpoint lies in; `""` without."""
    return str(_results_beside(model_name).get("unit", ""))


def _results_beside(model_name: str) -> dict[str, Any]:
    files = [folder / "results.json" for folder in (Path(model_name), Path(model_name).parent)]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return found[0] if found and isinstance(found[0], dict) else {}
