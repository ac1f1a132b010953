"""Saved models, loaded, and what their files say about them."""

from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel
from transformers.utils.hub import cached_file

from conr_hf.models.safe_loading import UNREADABLE, map_loader, reason_of, safe_config
from conr_hf.utils.run_folder import results_of


def load_saved(name: str, maps: bool = False) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    The saved model in a run folder, a checkpoint or on the Hub, in float32, and its processor. Nothing but JSON and
    safetensors is opened, and no code is run. One that predicts maps is refused unless `maps`.
    """
    try:
        loader = map_loader(safe_config(name))
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
    try:
        return map_loader(safe_config(name)) is not None
    except ValueError:  # whoever loads the model reports it
        return False


def target_names(model: PreTrainedModel) -> list[str]:
    """Names of the model's T outputs, in order."""
    return [name for _, name in sorted(model.config.id2label.items())]  # type: ignore[union-attr]


def saved_unit(model_name: str) -> str:
    """The unit in the results of the run that a saved model or checkpoint lies in; `""` without."""
    return str(results_of(model_name).get("unit", ""))


def companion_file(name: str, file_name: str) -> Path | None:
    """A file saved with a model, in a folder or on the Hub; `None` where there is no such file, or no name."""
    path = name and cached_file(
        name, file_name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(path) if path else None
