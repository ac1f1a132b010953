"""`Batch`: what one forward over the views of a micro-batch gives to all losses."""

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from timm.models import efficientnet, mobilenetv3, regnet, resnet
from torch import Tensor, nn
from transformers import EfficientNetPreTrainedModel, ResNetPreTrainedModel

from conr_hf.models.outputs import prediction, resized
from conr_hf.utils.distributed import rank

_OURS = ("labels", "pixel_values", "position", "sample_weight")  # of a batch; whatever else it holds is the model's


class Forwarded(NamedTuple):
    """What the forward over M views gives; labels and predictions are in label units."""

    features: Tensor  # (M, D), or (M, D, h, w) of maps: what the head reads
    predictions: Tensor  # (M,), (M, T) or (M, H, W)
    labels: Tensor  # like predictions; NaN where a pixel has none
    outputs: Any = None  # the model's, for a loss of the user's own


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B samples in V views each, after the forward; labels and predictions are in label units."""

    features: Tensor  # (B * V, D), or (B * V, D, h, w) of maps: what the head reads
    predictions: Tensor  # (B * V,), (B * V, T) or (B * V, H, W)
    labels: Tensor  # like predictions; NaN where a pixel has none
    outputs: Any  # the model's, for a loss of the user's own
    sample_weight: Tensor | None  # (B,), the user's
    counts: list[int]  # how many of the B samples count, on each process; the rest repeat others
    total: Tensor | int  # samples of the whole step, over micro-batches and processes
    views: int  # of each sample (V)
    position: int  # of the first sample in the epoch's global order
    labels_by_view: bool  # each view has its own labels, as where a map is shifted with its image

    @property
    def is_map(self) -> bool:
        """Whether labels and predictions are maps."""
        return self.predictions.ndim == 3

    @property
    def own_rows(self) -> int:
        """Rows of this process that count."""
        return self.counts[rank()] * self.views

    def sample_shares(self) -> Tensor:
        """What each row counts in the mean over the step's samples, `(B * V,)`; 0 for repeats."""
        shares = torch.ones(len(self.labels) // self.views, device=self.labels.device)
        if self.sample_weight is not None:
            shares = shares * self.sample_weight
        own = torch.arange(len(shares), device=shares.device) < self.counts[rank()]
        return (torch.where(own, shares, 0) / (self.views * self.total)).repeat_interleave(self.views)


# Networks that channels-last pixels make faster: at 224 pixels on a CPU a step of timm's ResNet-50 takes 0.87 of its
# time, ResNeXt-50 0.85, EfficientNet-Lite0 0.62, B0 0.70, MobileNetV3 0.67, RegNetY-004 0.91; of transformers'
# ResNet-50 0.89 and EfficientNet-B0 0.69. A transformer gains nothing, and others nobody measured: with some unusual
# convolutions torch's CPU backend ends the process (pytorch#136348).
_FASTER_CHANNELS_LAST = (
    # Of timm's ResNet and RegNet the blocks, since a network beneath a dense head is taken apart.
    *(resnet.BasicBlock, resnet.Bottleneck, regnet.Bottleneck, efficientnet.EfficientNet, mobilenetv3.MobileNetV3),
    *(efficientnet.EfficientNetFeatures, mobilenetv3.MobileNetV3Features),
    *(ResNetPreTrainedModel, EfficientNetPreTrainedModel),
)


_FORMATS: WeakKeyDictionary[nn.Module, torch.memory_format] = WeakKeyDictionary()  # found once, not in each step


def memory_format(model: nn.Module) -> torch.memory_format:
    """How the pixels of a model, perhaps wrapped, lie in memory: channels last only where that is known to be good."""
    # Weights stay as they are: fused AdamW steps wrongly, without a word, from a state saved in the other layout.
    if model not in _FORMATS:
        is_faster = any(isinstance(layer, _FASTER_CHANNELS_LAST) for layer in model.modules())
        _FORMATS[model] = torch.channels_last if is_faster else torch.contiguous_format
    return _FORMATS[model]


def forward_views(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[Any, Tensor]:
    """
    One forward of the model, perhaps wrapped, over all views of a collated batch; what the batch holds beside what we
    put there is the model's. Returns its outputs, and its predictions in float32, in the shape of the views' labels.
    """
    others = {name: value for name, value in inputs.items() if name not in _OURS}
    pixels = inputs["pixel_values"]
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=memory_format(model))
    outputs = model(pixel_values=pixels, **others)
    predictions = prediction(outputs).float()
    return outputs, resized(predictions, labels.shape[-2:]) if labels.ndim == 3 else predictions.reshape(labels.shape)


def collect_batch(
    inputs: dict[str, Any], forwarded: Forwarded, counts: list[int], total: Tensor | int | None
) -> Batch:
    """The batch that losses read; `counts` as there, `total` unset for a step of this batch alone."""
    return Batch(
        *forwarded,
        sample_weight=inputs.get("sample_weight"),
        counts=counts,
        total=sum(counts) if total is None else total,
        views=views_of(inputs),
        position=inputs.get("position", 0),
        labels_by_view=has_labels_by_view(inputs, forwarded.labels.ndim == 3),
    )


def views_of(inputs: dict[str, Any]) -> int:
    """Views of each sample of a collated batch (V)."""
    pixels: Tensor = inputs["pixel_values"]
    return pixels.shape[1] if pixels.dim() == 5 else 1


def has_labels_by_view(inputs: dict[str, Any], is_map: bool) -> bool:
    """Whether a collated batch has labels for each view, `(B, V, T)` or `(B, V, H, W)`, and not for each sample."""
    return inputs["labels"].ndim == (4 if is_map else 3)


def view_labels(inputs: dict[str, Any], is_map: bool) -> Tensor:
    """Labels of the B * V views of a collated batch: `(B * V,)`, `(B * V, T)` or `(B * V, H, W)`, float32."""
    labels: Tensor = inputs["labels"].float()
    if has_labels_by_view(inputs, is_map):
        rows = labels.flatten(0, 1)
        return rows if is_map or rows.shape[1] > 1 else rows[:, 0]
    return labels.repeat_interleave(views_of(inputs), 0)
