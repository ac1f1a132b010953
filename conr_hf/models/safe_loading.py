"""Models of other people, loaded without running code that comes with them."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForDepthEstimation, AutoModelForSemanticSegmentation, PreTrainedConfig

UNREADABLE = (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError)

MAP_LOADERS = {  # what the class that a configuration names ends with -> what loads it
    "ForDepthEstimation": AutoModelForDepthEstimation,
    "ForSemanticSegmentation": AutoModelForSemanticSegmentation,
}


def map_loader(config: Mapping[str, Any]) -> Any:
    """The class of transformers that loads a model of maps, by its configuration; `None` for other models."""
    architecture = str((config.get("architectures") or [""])[0])
    return next((loader for ending, loader in MAP_LOADERS.items() if architecture.endswith(ending)), None)


def safe_config(name: str, **hub: Any) -> dict[str, Any]:
    """
    The configuration of a model in a folder or on the Hub (`hub`: `revision`, `token` and the like). Refuses one that
    has timm read a file of its own choosing, which older versions unpickle.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, **hub)
    except OSError:
        return {}  # whoever loads the model reports it, unless it is an adapter, which has none
    if not isinstance(config, dict):
        raise ValueError("its config.json holds no settings by name")
    if "checkpoint_path" in (config.get("model_args") or {}):
        raise ValueError("its config.json names a checkpoint_path among model_args, which is never read")
    return config


def not_found(name: str, error: Exception) -> str:
    """Why a model of this name could not be loaded: that there is no such folder is not told as a network's fault."""
    place = Path(name)
    if place.exists():
        return reason_of(error)
    parts = place.expanduser().parts
    if len(parts) > 2 or place.is_absolute() or name.startswith((".", "~")) or (parts[1:] and place.parent.is_dir()):
        return "there is no such folder"
    return f"there is no such folder, and it is not to be had from the Hub ({reason_of(error)})"


def reason_of(error: Exception) -> str:
    """Why something could not be loaded, in one line."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, UnpicklingError) or "weights_only" in text:
        return "its weights are pickled with more than tensors among them, which could run code as they are read"
    if isinstance(error, SafetensorError):
        return f"its safetensors file is damaged ({text})"
    if "custom code" in text:
        return "it needs code that comes with it, which is never run"
    return text.splitlines()[0].rstrip(".")
