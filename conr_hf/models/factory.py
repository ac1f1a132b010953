"""`load_regressor`: the name of a vision model -> the model with a regression head, and its image processor."""

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from conr_hf.models.adopt_head import AmbiguousHeadError, adopt_head, find_head
from conr_hf.models.dense import load_map_model
from conr_hf.models.head import Head
from conr_hf.models.image_processors import (
    check_channels,
    config_image_size,
    default_processor,
    in_grey,
    read_options,
    refuse_patches,
    resized,
)
from conr_hf.models.outputs import predicts_maps
from conr_hf.models.peft import has_adapter
from conr_hf.models.safe_loading import UNREADABLE, not_found, reason_of, safe_config
from conr_hf.models.sharding import no_zero3_init
from conr_hf.models.timm_wrapper import (
    check_architecture,
    hub_name,
    new_timm_model,
    timm_architecture,
    timm_model_of_file,
)

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
_SOURCES = (
    "Give a local folder, a model id of the Hub, or timm/NAME with a file of weights (weights=...) or without weights "
    "(pretrained=False)."
)


@no_zero3_init()
def load_regressor(
    name_or_path: str | PreTrainedConfig,
    target: str | Sequence[str] = "label",
    *,
    task: str = "image",
    pretrained: bool = True,
    weights: str | None = None,
    image_size: int | None = None,
    head: str | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A vision model whose logits are a regression, in float32, and the image processor that belongs to it.

    The model is a plain transformers model: saved, it loads with `AutoModelForImageClassification`, and
    `pipeline("image-classification")` prints the prediction under the target's name.

    Args:
        name_or_path (`str` or `PreTrainedConfig`):
            A model id on the Hub, a local folder, `timm/NAME` for any model of timm, or a configuration, from which a
            model is made without weights.
        target (`str` or `Sequence[str]`, *optional*, defaults to `"label"`):
            What is predicted: `"age"`, or `["pitch", "yaw"]` for several label dimensions (T = their number).
        task (`str`, *optional*, defaults to `"image"`):
            `"image"`: a prediction for each image. `"depth"`: a map, one for each pixel, of depth, height or what else
            the target is; of a depth model, or of any backbone under a light dense head, see
            [`~conr_hf.models.dense.load_map_model`].
        pretrained (`bool`, *optional*, defaults to `True`):
            Load weights. `False` starts from random ones, by the library's own initialisation.
        weights (`str`, *optional*):
            For `timm/NAME`: a local file of weights (safetensors, or a PyTorch state dict) instead of the Hub's.
        image_size (`int`, *optional*):
            Side in pixels of the model's input; the whole image is resized to it. Unset: the model's own. A
            transformer with pretrained position embeddings takes its own size only.
        head (`str`, *optional*):
            Name of the layer that predicts, where the model has several; see `adopt_head`.
        kwargs (*optional*):
            Passed to `from_pretrained`: `revision`, `token`, `cache_dir`, or fields of the model's configuration; of
            `timm/NAME`, arguments of `timm.create_model`, such as `in_chans=1` for grey images.

    Returns:
        `(PreTrainedModel, BaseImageProcessor)`. A checkpoint with T outputs keeps its head; any other gets a new one,
        with weight N(0, 0.02) and bias 0.

    Raises:
        `ValueError`: if there is no such model, it cannot be fetched, or weights other than the head's do not fit.

    Example:
    ```python
    model, processor = load_regressor("timm/resnet10t.c3_in1k", target="age")
    model, processor = load_regressor("facebook/dinov2-small", target=["pitch", "yaw"])
    ```
    """
    if kwargs.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code is True; a model that needs code of its own is not opened. Leave it out.")
    names = [target] if isinstance(target, str) else list(target)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"target is {target!r}; give one name, or several different ones.")
    if task not in ("image", "depth") or (task == "depth" and len(names) > 1):
        mend = "a map has one target" if task == "depth" else 'it must be "image" or "depth"'
        raise ValueError(f"task is {task!r} and target {target!r}; {mend}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be 1 or more.")
    labels: dict[str, Any] = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "regression",
    }
    kwargs = _without_ours(kwargs, labels)
    hub = {option: value for option, value in kwargs.items() if option in HUB_OPTIONS}
    shown = name_or_path if isinstance(name_or_path, str) else type(name_or_path).__name__
    architecture = timm_architecture(name_or_path)
    model_args = {} if architecture is None else {name: kwargs[name] for name in kwargs if name not in HUB_OPTIONS}
    if architecture is not None:
        check_architecture(architecture)
        if model_args and task == "depth":
            raise ValueError(f'{next(iter(model_args))} is not taken with timm/NAME and task="depth". Leave it out.')
    elif weights is not None:
        raise ValueError(f'weights="{weights}" needs a timm model; "{shown}" does not start with "timm/".')
    fresh: set[str] | None = None  # weights that came from nowhere; None: all of them
    if task == "depth":
        try:
            model, processor, trained = load_map_model(
                name_or_path, labels, pretrained=pretrained, weights=weights, image_size=image_size, hub=hub, **kwargs
            )
        except UNREADABLE as error:
            reason = f"could not be loaded as a model of maps: {reason_of(error)}"
            raise ValueError(f'"{shown}" {reason}. {_SOURCES}') from error
        fresh = set() if trained else None
    elif isinstance(name_or_path, PreTrainedConfig):
        model, processor = _from_config(name_or_path, labels, image_size)
    elif architecture is not None and weights is not None:
        model, processor, fresh = timm_model_of_file(architecture, labels, weights, image_size, model_args)
        _check_all_fit(fresh, model, weights)
    elif architecture is not None and not pretrained:
        model, processor = new_timm_model(architecture, labels, image_size, model_args)
    else:
        name = hub_name(architecture) if architecture is not None else name_or_path
        try:
            safe_config(name, **hub)
            if not pretrained:
                config = AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)
                model, processor = _from_config(config, labels, image_size, name)
            else:
                given = {**hub, "model_args": model_args} if model_args else kwargs
                model, fresh = _from_pretrained(name, labels, **given)
                processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **hub)
        except UNREADABLE as error:
            hint = f"Did you mean timm/{shown}? " if timm.is_model(shown.partition(".")[0]) else ""
            raise ValueError(f'"{shown}" could not be loaded: {not_found(name, error)}. {hint}{_SOURCES}') from error
        if pretrained:
            processor = resized(in_grey(processor, model.config), model.config, image_size)
    _renew(model, processor, fresh, head)
    return model, processor


def dummy_pixels(processor: BaseImageProcessor, config: PreTrainedConfig) -> Tensor:
    """
    One image as a model of this configuration gets it from `processor`: a `torch.Tensor` of shape `(1, C, H, W)` of
    noise. A processor that makes anything else of images is refused.
    """
    check_channels(config.to_dict())
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(read_options(config.to_dict())["mode"])
    made: Any = processor(images=[image], return_tensors="pt")
    pixels: Tensor | None = made.get("pixel_values")
    if pixels is None or pixels.ndim != 4:
        refuse_patches(processor, ", ".join(f"{name} of shape {tuple(each.shape)}" for name, each in made.items()))
    assert pixels is not None
    return pixels


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """
    Puts the weights that `save_pretrained` wrote to `folder` into `model`. `Trainer` would silently pass over all that
    transformers 5 saves under older names: every encoder layer of ViT, DINOv2, BEiT and Swin.
    """
    model.load_state_dict(type(model).from_pretrained(folder, dtype=torch.float32).state_dict())


@no_zero3_init()
def check_matches_config(model: PreTrainedModel) -> None:
    """Refuses a model whose checkpoints would not load in plain transformers, for layers its configuration lacks."""
    if has_adapter(model):
        return  # adapters are saved and loaded by themselves
    make = partial(type(model), copy.deepcopy(model.config))
    with torch.random.fork_rng(devices=[]):
        try:
            with init_empty_weights():
                vanilla = make()
        except NotImplementedError:  # a few models compute with their weights while they are made
            vanilla = make()
    if changed := sorted(set(vanilla.state_dict()) ^ set(model.state_dict())):
        raise ValueError(
            f"{type(model).__name__} has other layers than its configuration makes ({', '.join(changed[:4])}), so its "
            "checkpoints would not load in plain transformers. Change the model by its configuration."
        )


def _without_ours(kwargs: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` without what is set here; refuses another value of it."""
    dtype = {"dtype": torch.float32, "torch_dtype": torch.float32}
    ours: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": False, **dtype, **labels}
    for name, value in ours.items():
        given = kwargs.get(name, value)
        if given not in (value, str(value).removeprefix("torch.")):
            mend = "Name what is predicted with target" if name in labels else "Leave it out"
            raise ValueError(f"{name} is {given!r}, but load_regressor sets it to {value!r}. {mend}.")
    return {name: value for name, value in kwargs.items() if name not in ours}


def _from_pretrained(name: str, labels: dict[str, Any], **kwargs: Any) -> tuple[PreTrainedModel, set[str]]:
    kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True, "trust_remote_code": False}
    model, info = AutoModelForImageClassification.from_pretrained(name, **labels, dtype=torch.float32, **kwargs)
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    _check_all_fit(mismatched, model, name)
    fresh = mismatched | set(info["missing_keys"])
    if lacking := sorted(fresh - _head_weights(model)):  # some backbones lack a pooler or a last norm
        warnings.warn(f"{name} has no weights for {', '.join(lacking[:4])}; they start at random.", stacklevel=3)
    return model, fresh


def _check_all_fit(misfits: set[str], model: PreTrainedModel, source: str) -> None:
    if others := sorted(misfits - _head_weights(model)):
        raise ValueError(
            f"{source} has no fitting weights for {', '.join(others[:4])}{' and others' if len(others) > 4 else ''}: "
            "they would start at random. Give the image_size and configuration of the checkpoint, or pretrained=False."
        )


def _head_weights(model: PreTrainedModel) -> set[str]:
    return {key for layer in _output_layers(model) for key in (f"{layer}.weight", f"{layer}.bias")}


def _output_layers(model: PreTrainedModel) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers with as many outputs as the model predicts, by name: the heads are among them."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    outputs = 1 if predicts_maps(model) else model.config.num_labels  # which depth models have none of
    return {name: layer for name, layer in layers.items() if layer.weight.shape[0] == outputs}


def _from_config(
    config: PreTrainedConfig, labels: dict[str, Any], image_size: int | None, name: str | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    if isinstance(config, TimmWrapperConfig):
        return new_timm_model(config.architecture, labels, image_size, config=config)
    config = type(config).from_dict({**config.to_dict(), **labels})
    config._name_or_path = ""  # no weights are from there
    config.architectures = config.architectures or []  # some types have several classes, and the first is ours
    if name is not None:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    else:
        processor, image_size = default_processor(config), image_size or config_image_size(config)
    model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    return model, resized(in_grey(processor, config), config, image_size)


def _renew(model: PreTrainedModel, processor: BaseImageProcessor, fresh: set[str] | None, head: str | None) -> None:
    """Draws new output layers from N(0, 0.02) and sets their bias to 0, by which the trainer knows them as fresh."""
    layers, pixels = _output_layers(model), dummy_pixels(processor, model.config)
    if fresh is not None:
        names = [name for name in layers if f"{name}.weight" in fresh]
    elif head is not None:
        names = [head]
    else:
        try:
            names = [find_head(model, pixels)]
        except AmbiguousHeadError:  # the trainer, which needs one, lists the layers there are
            names = []
    for layer in (layers[name] for name in names if name in layers):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_precision(model: nn.Module) -> None:
    """Refuses a model in half precision, as it was loaded or as something has made it since."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"The model's {name} is {parameter.dtype}, in which a prediction of 63.37 becomes 63.25. Load it "
                "in float32, by load_regressor or dtype=torch.float32, or keep it there (model.half() and full_eval "
                "do not); bf16=True trains in mixed precision."
            )


def prepare_model(
    model: nn.Module, pixel_values: Tensor, columns: Sequence[str] | None, head_name: str | None
) -> Head:
    """
    Makes a model ready for training, in place: adopts its head, which it returns, and refuses what could not be
    trained or saved right. `columns`: the T label columns, if they are known; other arguments as in [`adopt_head`].
    """
    check_precision(model)
    head = adopt_head(model, pixel_values, head_name)
    outputs = head.weight.shape[0]
    if columns is not None and outputs != len(columns):
        raise ValueError(
            f"The model predicts {outputs} values, but label_columns names {len(columns)} ({', '.join(columns)}). "
            "Load it with load_regressor(..., target=...), one target for each column."
        )
    if isinstance(model, PreTrainedModel):
        check_matches_config(model)
    model.config.problem_type = "regression"  # type: ignore[union-attr]  # unset, pipelines put a sigmoid on an output
    return head
