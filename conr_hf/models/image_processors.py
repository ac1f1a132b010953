"""Image processors: a model's own, for input of a given size that shows the whole image; and how images are read."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    PreTrainedConfig,
    TimmWrapperConfig,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
)

from conr_hf.models.timm_wrapper import sized_cfg

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def config_image_size(config: PreTrainedConfig) -> int:
    """The side in pixels of the input that a configuration declares, or ImageNet's 224."""
    declared = config.to_dict()
    parts = (declared, declared.get("vision_config") or {}, declared.get("backbone_config") or {})
    side = next((part["image_size"] for part in parts if part.get("image_size")), 224)
    return int(side[0] if isinstance(side, list | tuple) else side)


def read_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    How [`~conr_hf.data.images.to_image`] reads images for a model of this configuration: `mode`, grey for a model of
    one channel, else in colour; and the `image_range` that it was trained with, if any.
    """
    return {"mode": "L" if _channels(config) == 1 else "RGB", "image_range": config.get("image_range")}


def check_channels(config: Mapping[str, Any]) -> None:
    """Refuses a model for which no image can be read."""
    if (channels := _channels(config)) not in (1, 3):
        raise ValueError(
            f"The model takes {channels} channels, but images are read in colour, with 3 channels, or in grey, with "
            "1. Train it on rows of your own making, with pixel_values and labels."
        )


def _channels(config: Mapping[str, Any]) -> int:
    parts = (config, config.get("vision_config") or {}, config.get("backbone_config") or {})
    of_timm = (config.get("model_args") or {}).get("in_chans")
    return int(of_timm or next((part["num_channels"] for part in parts if part.get("num_channels")), 3))


def in_grey(processor: BaseImageProcessor, config: PreTrainedConfig) -> BaseImageProcessor:
    """`processor` for grey images, with the mean over its colours, if the model takes one channel."""
    if isinstance(config, TimmWrapperConfig) or read_options(config.to_dict())["mode"] == "RGB":
        return processor
    settings = processor.to_dict()
    means = {name: [float(np.mean(settings[name]))] for name in ("image_mean", "image_std") if settings.get(name)}
    return _made(type(processor), {**settings, **means, "do_convert_rgb": False})


def refuse_patches(processor: BaseImageProcessor, found: str) -> None:
    """Refuses a processor that does not make pixels of one size of an image."""
    raise ValueError(
        f"{type(processor).__name__} makes {found} of an image, where training needs pixels of shape (1, channels, "
        "height, width). Take a model of images of one size: in place of a SigLIP 2 NaFlex a "
        "google/siglip2-...-patch16-224."
    )


def default_processor(config: PreTrainedConfig) -> BaseImageProcessor:
    """The processor transformers pairs with this class of model, or ViT's where it knows none."""
    with TemporaryDirectory() as folder:  # AutoImageProcessor finds the class by a folder only
        config.save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text("{}")
        try:
            paired: BaseImageProcessor = AutoImageProcessor.from_pretrained(folder)
        except ValueError:
            return ViTImageProcessor()
    return paired


def full_image_processor(side: int, **looks: Any) -> BaseImageProcessor:
    """A new processor, to a square of `side` pixels; `looks` are its mean and deviation, unless ImageNet's."""
    return ViTImageProcessor(size=_square(side), **{**_IMAGENET, **looks})


def resized(processor: BaseImageProcessor, config: PreTrainedConfig, side: int | None) -> BaseImageProcessor:
    """`processor` for input of `side` pixels, the whole image resized to it; as it is without `side`."""
    if side is None:
        return processor
    if isinstance(config, TimmWrapperConfig):
        config.pretrained_cfg = sized_cfg(config.pretrained_cfg, side)
        return TimmWrapperImageProcessor(config.pretrained_cfg, architecture=config.architecture)
    settings = processor.to_dict()
    if not settings.get("size"):
        refuse_patches(processor, "patches")
    is_cropped = (settings.get("do_center_crop") and settings.get("crop_size")) or "crop_pct" in settings
    by_edge = "shortest_edge" in settings["size"] and is_cropped
    settings |= {"size": {"shortest_edge": side} if by_edge else _square(side)}
    settings |= {"crop_size": _square(side)} if settings.get("crop_size") else {}
    settings |= {"crop_pct": 1.0} if "crop_pct" in settings else {}
    return _made(type(processor), settings)


def without_crop(processor: BaseImageProcessor, side: int | None) -> BaseImageProcessor:
    """`processor` for the whole image, nothing cut off or added, in a square of `side` pixels if that is given."""
    settings = processor.to_dict()
    if side is not None and type(processor).__name__.startswith("GLPN"):  # which ignores size
        looks = {name: settings[name] for name in ("rescale_factor", "resample") if name in settings}
        return ViTImageProcessor(size=_square(side), do_normalize=False, **looks)
    settings |= {name: False for name in ("do_center_crop", "do_pad") if settings.get(name)}
    if side is not None:
        settings |= {"size": _square(side)}
        settings |= {"keep_aspect_ratio": False} if "keep_aspect_ratio" in settings else {}
    return _made(type(processor), settings)


def _made(kind: type[BaseImageProcessor], settings: dict[str, Any]) -> BaseImageProcessor:
    made: BaseImageProcessor = kind.from_dict(settings)
    return made


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}
