"""The prediction of any model's output."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from conr_hf.models.safe_loading import MAP_LOADERS


def prediction(outputs: Any) -> Tensor:
    """What a model predicts: its logits, or depth; maps of one label without a dimension for it, `(B, H, W)`."""
    is_depth = isinstance(outputs, dict) and "predicted_depth" in outputs
    found: Tensor = outputs["predicted_depth"] if is_depth else outputs.logits
    return found.squeeze(1) if found.ndim == 4 else found


def predicts_maps(model: nn.Module) -> bool:
    """Whether a model predicts a number for each pixel: it is one for depth estimation or semantic segmentation."""
    # Of a model with adapters the class is PEFT's, and the model within.
    return any(type(layer).__name__.endswith(tuple(MAP_LOADERS)) for layer in model.modules())


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Predicted maps, `(B, h, w)`, brought to another size by linear interpolation."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
