"""timm models, in transformers' wrapper."""

import difflib
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from transformers import (
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)

from conr_hf.models.safe_loading import reason_of

# What transformers warns of and no user can change: how it reads and saves the processor of a timm model.
_NO_NEWS = ("The `save_pretrained` method is disabled", "Requested torchvision backend is not available")
for _module in ("timm_wrapper.image_processing_timm_wrapper", "auto.image_processing_auto"):
    logging.getLogger(f"transformers.models.{_module}").addFilter(
        lambda record: not record.getMessage().startswith(_NO_NEWS)
    )


def timm_architecture(name_or_path: str | PreTrainedConfig) -> str | None:
    """`NAME` of `timm/NAME`; `None` for anything else, a local folder of that name among it."""
    if not isinstance(name_or_path, str) or not name_or_path.startswith("timm/") or os.path.isdir(name_or_path):
        return None
    return name_or_path.removeprefix("timm/")


def check_architecture(architecture: str) -> None:
    """Refuses a name of which timm has no model."""
    base = architecture.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=1)
        hint = f"Did you mean timm/{near[0]}?" if near else "timm.list_models() names them."
        raise ValueError(f'timm has no model "{architecture}". {hint}')


def hub_name(architecture: str) -> str:
    """`resnet10t` -> `timm/resnet10t.c3_in1k`, the Hub's name of timm's default weights."""
    cfg: Any = timm.get_pretrained_cfg(architecture)
    if cfg is None or not cfg.hf_hub_id:
        raise ValueError(
            f'timm has no weights for "{architecture}" on the Hub. Use pretrained=False, or weights=FILE.'
        )
    return str(cfg.hf_hub_id)


def new_timm_model(
    architecture: str,
    labels: dict[str, Any],
    image_size: int | None,
    model_args: dict[str, Any] | None = None,
    config: TimmWrapperConfig | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A model by timm's own initialisation, and its processor. `labels`: these entries of its configuration;
    `image_size`: side in pixels of its input, unless its own; `model_args`: arguments of `timm.create_model`;
    `config`: whose settings of timm to take over.
    """
    check_architecture(architecture)
    declared = {} if config is None else config.to_dict()
    given = {**(declared.get("model_args") or {}), **(model_args or {})}
    model, processor, make = _wrapped(architecture, labels, image_size, given, declared.get("pretrained_cfg"))
    model.timm_model.load_state_dict(make().state_dict())
    return model, processor


def timm_model_of_file(
    architecture: str, labels: dict[str, Any], weights: str, image_size: int | None, model_args: dict[str, Any]
) -> tuple[PreTrainedModel, BaseImageProcessor, set[str]]:
    """
    A model with the weights of a file (safetensors, or a PyTorch state dict), its processor, and the names of the
    weights that the file lacks, which start at random. Arguments as in [`new_timm_model`].
    """
    state = read_weights(weights)
    model, processor, make = _wrapped(architecture, labels, image_size, model_args)
    overlay: dict[str, Any] = {"file": weights}
    classifier = model.config.pretrained_cfg.get("classifier")
    head = state.get(f"{classifier[0] if isinstance(classifier, list | tuple) else classifier}.weight")
    if head is not None and len(head) == labels["num_labels"]:
        overlay["num_classes"] = labels["num_labels"]  # or timm leaves the file's head out
    make = partial(make, pretrained=True, pretrained_cfg_overlay=overlay)
    original = make().state_dict()
    model.timm_model.load_state_dict(original)
    return model, processor, {f"timm_model.{key}" for key in drawn_weights(make, original)}


def read_weights(weights: str) -> dict[str, torch.Tensor]:
    """The tensors in a file of weights; refuses a file that holds anything else."""
    if not os.path.isfile(weights):
        raise ValueError(f'weights="{weights}" is not a file.')
    try:
        return dict(timm.models.load_state_dict(weights, weights_only=True))
    except Exception as error:  # a file of anything
        raise ValueError(
            f'weights="{weights}" cannot be read: {reason_of(error)}. Give safetensors, or a PyTorch state dict.'
        ) from error


def drawn_weights(make: Callable[[], nn.Module], state: dict[str, torch.Tensor]) -> list[str]:
    """
    Which weights of a model that `make` loads from a file are not in it, and start at random: timm does not report
    them, but in a second model they differ from those in `state`, of the first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        again = make().state_dict()
    return [key for key, value in state.items() if not torch.equal(value, again[key])]


def sized_cfg(cfg: dict[str, Any], side: int) -> dict[str, Any]:
    """timm's description of a model's weights, for input of `side` pixels that shows the whole image."""
    channels = cfg.get("input_size", (3, 0, 0))[0]
    kept = {key: value for key, value in cfg.items() if key not in ("test_input_size", "test_crop_pct")}
    return {**kept, "input_size": (channels, side, side), "crop_pct": 1.0}


def _wrapped(
    architecture: str,
    labels: dict[str, Any],
    image_size: int | None,
    model_args: dict[str, Any],
    pretrained_cfg: dict[str, Any] | None = None,
) -> tuple[Any, BaseImageProcessor, Callable[..., nn.Module]]:
    """The model in its wrapper, its processor, and what makes the model as timm itself does."""
    model_args = dict(model_args)
    known: Any = timm.get_pretrained_cfg(architecture)
    cfg: dict[str, Any] = known.to_dict() if known is not None else {"architecture": architecture}
    cfg |= pretrained_cfg or {}
    if (channels := model_args.get("in_chans", 3)) != 3:
        looks = {name: [float(np.mean(cfg.get(name, 0.5)))] * channels for name in ("mean", "std")}
        cfg |= {**looks, "input_size": (channels, *cfg.get("input_size", (3, 224, 224))[1:])}
    if image_size is not None:
        cfg = sized_cfg(cfg, image_size)
        if cfg.get("fixed_input_size"):
            model_args["img_size"] = image_size
    cfg = json.loads(json.dumps({key: value for key, value in cfg.items() if key not in ("num_classes", "file")}))
    settings: dict[str, Any] = {"architecture": architecture, "pretrained_cfg": cfg, "model_args": model_args or None}
    # It draws every weight from N(0, 0.02): timm's own initialisation, or a file's weights, must be restored.
    try:
        model = TimmWrapperForImageClassification(TimmWrapperConfig(**settings, **labels))
    except TypeError as error:  # of an argument that it does not take
        raise ValueError(f"timm/{architecture} cannot be made with {model_args}: {reason_of(error)}.") from error
    make = partial(timm.create_model, architecture, num_classes=labels["num_labels"], **model_args)
    return model, TimmWrapperImageProcessor(cfg, architecture=architecture), make
