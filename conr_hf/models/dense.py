"""Models that predict maps: depth models of transformers, and any backbone with a light dense head."""

from functools import partial
from typing import Any

import timm
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
    TimmWrapperConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_DEPTH_ESTIMATION_MAPPING

from conr_hf.models.image_processors import config_image_size, full_image_processor, without_crop
from conr_hf.models.safe_loading import map_loader, safe_config
from conr_hf.models.timm_wrapper import drawn_weights, read_weights, timm_architecture

LIGHT = 64  # channels of a new dense head; UperNet's own 512 are for 150 classes


def load_map_model(
    name_or_path: str | PreTrainedConfig,
    labels: dict[str, Any],
    *,
    pretrained: bool,
    weights: str | None,
    image_size: int | None,
    hub: dict[str, Any],
    **kwargs: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor, bool]:
    """
    A model that predicts a number for each pixel, and its processor, which shows it the whole image.

    - A checkpoint for depth estimation (DPT, Depth Anything, GLPN) or semantic segmentation (SegFormer, UperNet, ...)
      stays what it is, with one output.
    - Any other checkpoint that transformers has as a backbone (ConvNeXt, Swin, DINOv2, ...), and any model of timm
      that gives feature maps, gets the dense head of UperNet with 64 channels. A plain vision transformer's maps are
      as coarse as its patches.

    DPT and Depth Anything without pretrained weights give features so near to 0 at first that ConR, which compares
    their directions, swamps the base loss; the trainer warns of it. Start them from a checkpoint.

    Also returns whether the head arrived trained on labels like these: of a regression, or of a model of metric depth.
    `labels`: these entries of the configuration; `hub`: those of `kwargs` that say where on the Hub; others as in
    [`~conr_hf.models.factory.load_regressor`]. A model that can predict no maps is refused.
    """
    architecture = timm_architecture(name_or_path)
    if architecture is not None:
        return *_on_timm(architecture, labels, pretrained, weights, image_size), False
    if isinstance(name_or_path, PreTrainedConfig):
        config, name, pretrained = name_or_path, None, False
    else:
        safe_config(name_or_path, **hub)
        name = name_or_path
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)
    if isinstance(config, TimmWrapperConfig):
        raise ValueError(f'"{name}" is a model of timm for whole images. Name it as timm/{config.architecture}.')
    kind = _kind(config)
    if kind is None:
        return *_on_backbone(name, config, labels, pretrained, image_size, **hub), False
    declared = config.to_dict()
    is_metric = config.model_type == "glpn" or declared.get("depth_estimation_type") == "metric"
    trained = pretrained and (config.problem_type == "regression" or is_metric)
    if "use_auxiliary_head" in declared:
        labels = {**labels, "use_auxiliary_head": False}  # a second head, which learns nothing here
    if not pretrained or name is None:
        config = type(config).from_dict({**declared, **labels})
        config._name_or_path = ""  # no weights are from there
        model = kind.from_config(config, dtype=torch.float32)
    else:
        model = kind.from_pretrained(
            name, **labels, dtype=torch.float32, ignore_mismatched_sizes=True, trust_remote_code=False, **kwargs
        )
    if name is None:
        return model, full_image_processor(image_size or config_image_size(config)), trained
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **hub)
    return model, without_crop(processor, image_size), trained


def _kind(config: PreTrainedConfig) -> Any:
    """The class that loads a checkpoint which predicts maps, or `None`."""
    if config.architectures:
        return map_loader(config.to_dict())
    if type(config) in MODEL_FOR_DEPTH_ESTIMATION_MAPPING:
        return AutoModelForDepthEstimation
    return AutoModelForSemanticSegmentation if isinstance(config, UperNetConfig) else None


def _on_timm(
    architecture: str, labels: dict[str, Any], pretrained: bool, weights: str | None, image_size: int | None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    make: Any = partial(timm.create_model, architecture, features_only=True, pretrained=pretrained)
    if weights is not None:
        read_weights(weights)
        make = partial(make, pretrained=True, pretrained_cfg_overlay={"file": weights})
    try:
        source = make()
    except (RuntimeError, AttributeError) as error:  # a model that gives no feature maps
        raise ValueError(f"timm/{architecture} gives no feature maps to predict a map from: {error}.") from error
    if weights is not None and (lacking := drawn_weights(make, source.state_dict())):
        raise ValueError(f"{weights} has no weights for {', '.join(lacking[:4])} and others: is it of another model?")
    options: Any = {"out_indices": tuple(source.feature_info.out_indices), "use_pretrained_backbone": False}
    model = _under_light_head(TimmBackboneConfig(backbone=architecture, **options), labels)
    model.backbone._backbone.load_state_dict(source.state_dict())
    cfg = timm.get_pretrained_cfg(architecture)
    if cfg is None:
        return model, full_image_processor(image_size or 224)
    return model, full_image_processor(image_size or cfg.input_size[-1], image_mean=cfg.mean, image_std=cfg.std)


def _on_backbone(
    name: str | None, config: PreTrainedConfig, labels: dict[str, Any], pretrained: bool, side: int | None, **hub: Any
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f'"{name or config.model_type}" predicts no maps and gives no feature maps to predict them from. Name a '
            "model for depth estimation or semantic segmentation, a backbone such as ConvNeXt, Swin or DINOv2, or "
            "timm/NAME."
        )
    kind: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    last = len(config.to_dict()["stage_names"]) - 1
    wanted = list(range(1, last + 1)) if last <= 5 else [last * quarter // 4 for quarter in (1, 2, 3, 4)]
    if pretrained and name is not None:
        source = kind.from_pretrained(name, out_indices=wanted, dtype=torch.float32, **hub)
        own = source.config
    else:
        own = type(config).from_dict({**config.to_dict(), "out_features": None, "out_indices": wanted})
        source = kind(own)
    model = _under_light_head(own, labels)
    model.backbone.load_state_dict(source.state_dict())
    looks: dict[str, Any] = {}
    if name is not None:
        settings = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **hub).to_dict()
        looks = {key: settings[key] for key in ("image_mean", "image_std") if settings.get(key) is not None}
    return model, full_image_processor(side or config_image_size(config), **looks)


def _under_light_head(backbone: PreTrainedConfig, labels: dict[str, Any]) -> Any:
    config = UperNetConfig(backbone_config=backbone, hidden_size=LIGHT, use_auxiliary_head=False, **labels)
    return UperNetForSemanticSegmentation(config)
